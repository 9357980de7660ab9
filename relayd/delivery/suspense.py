"""Refusals that wait to be believed: each is settled as a bounce, or, where it is part of a storm, held back for good.

Whether it is a storm says storm.py. A crash loses nothing here: such a recipient stands on disk as before its attempt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from relayd.core.units import Millis

if TYPE_CHECKING:
    from relayd.delivery.line import Line

LOOK = 0.1
"""Seconds between looks at what is in suspense."""
MOST = 1000
"""Refusals in suspense at once, of one worker; further ones are believed."""

Settle = Callable[[bool], None]
"""Settles a refusal: True as one of a storm, False as what it says."""


@dataclass(frozen=True, slots=True)
class _Suspect:
    line: Line
    key: str
    since: Millis
    settle: Settle


class Suspense:
    """The refusals of one worker that wait, on its event loop."""

    def __init__(self, clock: Callable[[], Millis]) -> None:
        self._clock = clock
        self._suspects: list[_Suspect] = []
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._suspects)

    @property
    def full(self) -> bool:
        """No more can be held back."""
        return len(self._suspects) >= MOST

    def hold(self, line: Line, key: str, settle: Settle) -> None:
        """Keep a refusal until it is decided."""
        self._suspects.append(_Suspect(line, key, self._clock(), settle))
        self._wake()

    def look(self) -> None:
        """Settle what is decided."""
        now, waiting = self._clock(), []
        suspects, self._suspects = self._suspects, []
        for suspect in suspects:
            line = suspect.line
            if line.stormed():
                suspect.settle(True)
            elif line.guard is not None and line.guard.waits(suspect.key, suspect.since, now):
                waiting.append(suspect)
            else:
                suspect.settle(False)
        self._suspects = waiting + self._suspects
        self._wake()

    def stop(self) -> None:
        """Nothing is decided about what is left: it is tried again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        suspects, self._suspects = self._suspects, []
        for suspect in suspects:
            suspect.settle(True)

    def _wake(self) -> None:
        if self._timer is None and self._suspects:
            self._timer = asyncio.get_running_loop().call_later(LOOK, self._ring)

    def _ring(self) -> None:
        self._timer = None
        self.look()
