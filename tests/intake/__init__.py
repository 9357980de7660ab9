"""Tests of relayd/intake and of state.db."""

from __future__ import annotations
