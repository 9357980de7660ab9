"""The daemon as a service: processes, signals, logs, metrics, scripts, unit file."""

from __future__ import annotations
