"""Notices that somebody has put the clock back, and has what waits for a moment wait no longer than it was meant to.

All moments on disk are of the time of day. Most of what compares them knows by itself what lies too far ahead; when a
retry was meant to be, only the step itself tells.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Protocol

import structlog

from relayd.core.units import Millis

STEP: Millis = 30_000
"""Steps back of less than this are waited out."""


class Times(Protocol):
    """The part of the Store that holds moments of retries."""

    @property
    def ahead(self) -> Millis:
        """How far the clock was behind the newest message when the store was opened."""

    async def pull_in(self, by: Millis) -> int:
        """What waits for a later moment waits for one that is earlier by so much. Raises StoreError."""


class Lanes(Protocol):
    """The part of the dispatcher that waits."""

    def lanes(self) -> Iterable[str]:
        """Every lane at work."""

    def try_now(self, lane: str) -> bool:
        """End a pause."""

    def wake_all(self) -> None:
        """Anything may have become due."""


class ClockWatch:
    """Of one worker. `look` is to be called every second."""

    def __init__(
        self,
        store: Times,
        lanes: Lanes,
        clock: Callable[[], Millis],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._lanes = lanes
        self._clock = clock
        self._monotonic = monotonic
        self._offset: float | None = None
        """Of the time of day against a clock that nobody can set, in milliseconds."""

    async def look(self) -> None:
        """Compare both clocks. Raises StoreError, and looks again then."""
        offset = self._clock() - self._monotonic() * 1000
        back = float(self._store.ahead) if self._offset is None else self._offset - offset
        if back >= STEP:
            for lane in list(self._lanes.lanes()):
                self._lanes.try_now(lane)
            moved = await self._store.pull_in(round(back))
            self._lanes.wake_all()
            structlog.get_logger("relayd.delivery").warning(
                "clock_put_back", seconds=round(back / 1000), recipients_due_earlier=moved
            )
        self._offset = offset
