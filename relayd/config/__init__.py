"""The configuration: typed, defaulted, validated. Knows nothing of the rest of relayd but core's values."""

from __future__ import annotations
