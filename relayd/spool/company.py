"""When a commit begins: at once where nobody else is busy, a moment later where clients are about to bring more.

Each commit has a cost of its own besides what it writes, and takes the interpreter lock from the loop several times.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

COMPANY = 0.004
"""Seconds that a commit waits at most."""
STILL = 0.00004
"""Seconds of a turn of the loop in which nobody brought anything."""


async def company(clock: Callable[[], float] = time.perf_counter) -> None:
    """Wait as long as the loop is busy, `COMPANY` at most: what comes meanwhile shares the commit.

    `clock` has to be finer than `STILL`; uvloop's own goes by milliseconds.
    """
    begun = now = clock()
    while now - begun < COMPANY:
        await asyncio.sleep(0)
        then, now = now, clock()
        if now - then < STILL:
            return
