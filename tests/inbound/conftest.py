"""Daemons that end with their test."""

from __future__ import annotations

from tests.endtoend.conftest import make_daemon

__all__ = ["make_daemon"]
