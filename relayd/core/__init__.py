"""Pure values and deciders: no I/O, no clock, no asyncio, no third-party import."""

from __future__ import annotations
