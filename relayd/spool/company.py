"""When a commit begins: at once where nobody else is busy, a moment later where clients are about to bring more.

Each commit has a cost of its own besides what it writes, and takes the interpreter lock from the loop several times.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

SHORT = 0.004
"""Seconds that a commit waits at most where the loop comes to rest now and then …"""
LONG = 0.016
"""… and where it does not: clients wait for the processor then, and the fewer commits the sooner it is free."""
STILL = 0.00004
"""Seconds of a turn of the loop in which nobody brought anything."""


class Company:
    """The wait before each commit of one segment.

    `clock` has to be finer than `STILL`; uvloop's own goes by milliseconds.
    """

    __slots__ = ("_clock", "patience")

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.patience = SHORT
        """Seconds of the next wait, at most."""

    async def wait(self) -> None:
        """Wait as long as the loop is busy, within bounds: what comes meanwhile shares the commit."""
        clock = self._clock
        begun = now = clock()
        while now - begun < self.patience:
            await asyncio.sleep(0)
            then, now = now, clock()
            if now - then < STILL:
                self.patience = max(SHORT, self.patience / 2)
                return
        self.patience = min(LONG, self.patience * 2)
