"""From the spool to the upstream: schedule, sign, route, send, settle, report."""

from __future__ import annotations
