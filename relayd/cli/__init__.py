"""The commands of relayd."""

from __future__ import annotations
