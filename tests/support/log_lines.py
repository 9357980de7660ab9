"""The daemon's own log of whatever runs in this process, as it would be written: for tests that look at its lines."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Iterator
from typing import Any

import structlog

from relayd import logs
from relayd.config.models import Log

STEERING = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What must never be in a log or on a terminal, but for line ends: controls, and marks that turn text around."""


class LogLines:
    """What was logged so far."""

    def __init__(self, stream: io.StringIO) -> None:
        self._stream = stream

    @property
    def text(self) -> str:
        return self._stream.getvalue()

    def all(self, event: str | None = None) -> list[dict[str, Any]]:
        """The lines, as far as they tell of this event."""
        lines = [json.loads(line) for line in self.text.splitlines()]
        return [line for line in lines if event is None or line["event"] == event]

    @property
    def errors(self) -> list[dict[str, Any]]:
        return [line for line in self.all() if line["level"] in ("error", "critical")]


@contextlib.contextmanager
def log_lines(level: str = "debug") -> Iterator[LogLines]:
    """The log while this lasts; afterwards logging is set up as before."""
    before, stream = structlog.get_config(), io.StringIO()
    logs.setup(Log.model_validate({"format": "json", "level": level}), stream=stream)
    try:
        yield LogLines(stream)
    finally:
        structlog.configure(**before)
