"""Daemons for the tests of this folder, as in tests/endtoend."""

from __future__ import annotations

from tests.endtoend.conftest import make_daemon

__all__ = ["make_daemon"]
