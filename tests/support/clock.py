"""A clock that tests move by hand: a callable that returns milliseconds since the epoch, as all of relayd takes one."""

from __future__ import annotations

START = 1_750_000_000_000


class Clock:
    """Stands still until it is moved."""

    def __init__(self, now: int = START) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now

    def advance(self, seconds: float) -> None:
        """Forward, or with a negative figure back."""
        self.now += round(seconds * 1000)
