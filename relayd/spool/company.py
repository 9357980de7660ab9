"""When a commit begins: it waits for clients who are about to bring mail, as long as they get on with it.

Each commit has a cost of its own besides what it writes, and takes the interpreter lock from the loop several times.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

PATIENCE = 0.016
"""Seconds that a commit waits at most."""
STALLED = 0.001
"""Seconds in which nobody's mail came any further: whoever is that slow is not waited for."""
STILL = 0.00004
"""Seconds of a turn of the loop in which nobody brought anything."""


class Company:
    """What one worker knows of mail that is about to come: its listeners tell, its segments ask before each commit.

    `clock` has to be finer than `STILL`; uvloop's own goes by milliseconds.
    """

    __slots__ = ("_clock", "_coming", "_steps", "_waits")

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._coming: set[object] = set()
        self._steps = 0
        self._waits: dict[asyncio.Future[None], Callable[[], int]] = {}

    def expect(self, client: object) -> None:
        """A mail of this client is coming, and has come a step further."""
        self._coming.add(client)
        self._steps += 1

    def forget(self, client: object) -> None:
        """It has come, or will not, or is too big to say when it will have."""
        self._coming.discard(client)
        if self._waits:
            self.look()

    def look(self) -> None:
        """Somebody has come: a commit that waits may have waited enough."""
        for news, kept in self._waits.items():
            if not news.done() and self._enough(kept()):
                news.set_result(None)

    def _enough(self, kept: int) -> bool:
        """Twice as many have come as are coming: to wait for all would leave the processor without work."""
        return 2 * len(self._coming) <= kept

    async def wait(self, kept: Callable[[], int]) -> None:
        """Wait, within bounds, for mail that may share a commit with what `kept` counts: mail whose client waits.

        Where nobody waits for the commit, it waits as long as the loop is busy.
        """
        clock = self._clock
        begun = now = clock()
        while now - begun < PATIENCE:
            await asyncio.sleep(0)
            then, now = now, clock()
            if now - then < STILL:
                if self._enough(kept()):
                    return
                if not await self._news(kept):
                    break
                now = clock()
        self._coming.clear()  # they count again with their next step

    async def _news(self, kept: Callable[[], int]) -> bool:
        """Wait until enough have come, or time has passed; whether anybody has made a step."""
        steps, loop = self._steps, asyncio.get_running_loop()
        news: asyncio.Future[None] = loop.create_future()
        self._waits[news] = kept
        timer = loop.call_later(STALLED, _end, news)
        try:
            await news
        finally:
            timer.cancel()
            del self._waits[news]
        return self._steps != steps or self._enough(kept())


def _end(news: asyncio.Future[None]) -> None:
    if not news.done():
        news.set_result(None)
