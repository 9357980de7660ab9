"""When a commit begins: where the loop is busy, or clients are about to bring mail, it waits a moment for more.

Each commit has a cost of its own besides what it writes, and takes the interpreter lock from the loop several times.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

PATIENCE = 0.016
"""Seconds that a commit waits at most, but for what one more look takes."""
STALLED = 0.001
"""Seconds in which no client said anything: those who are to bring mail are not waited for any longer."""
SLOW = 0.05
"""Seconds, once or twice, after which a mail that came no further is not waited for at all, until it does."""
STILL = 0.00004
"""Seconds of a turn of the loop in which nobody brought anything."""


class Company:
    """What one worker knows of mail that is about to come: its listeners tell, its segments ask before each commit.

    `clock` has to be finer than `STILL`; uvloop's own goes by milliseconds.
    """

    __slots__ = ("_clock", "_coming", "_period", "_period_begun", "_waits", "heard")

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.heard = 0
        """Commands and contents of any client so far; the listeners count their commands."""
        self._coming: dict[object, int] = {}
        """Clients whose mail is coming, and the period in which it came a step further."""
        self._period = 0
        self._period_begun = clock()
        self._waits: dict[asyncio.Future[None], Callable[[], int]] = {}

    def __len__(self) -> int:
        """How many clients are waited for."""
        return len(self._coming)

    def expect(self, client: object) -> None:
        """A mail of this client is coming, and has come a step further."""
        self._coming[client] = self._period

    def forget(self, client: object) -> None:
        """It has come, or will not, or is too big to say when it will have."""
        if self._coming.pop(client, None) is None:  # a big one: each piece of it ends here
            return
        self.heard += 1
        if self._waits:
            self.look()

    def look(self) -> None:
        """Somebody has come: a commit that waits may have waited enough."""
        for news, kept in self._waits.items():
            if not news.done() and self._enough(kept()):
                news.set_result(None)

    def _enough(self, kept: int) -> bool:
        """Twice as many have come as are coming: to wait for all would leave the processor without work."""
        return 2 * len(self) <= kept

    async def wait(self, kept: Callable[[], int]) -> None:
        """Wait, within bounds, for what may share a commit: longer, the fewer mails of clients (`kept`) it has.

        Where it has none, it waits only while the loop is busy: what became of mail is to be on disk soon, for a crash
        repeats what is not.
        """
        clock = self._clock
        begun = now = clock()
        while now - begun < PATIENCE:
            await asyncio.sleep(0)
            then, now = now, clock()
            if now - then < STILL:
                count = kept()
                if not count or self._enough(count) or not await self._news(kept):
                    break
                now = clock()
        if now - self._period_begun > SLOW:
            self._leave_behind(now)

    def _leave_behind(self, now: float) -> None:
        """Wait no more for those whose mail came no further in the period that ends."""
        self._coming = {client: period for client, period in self._coming.items() if period == self._period}
        self._period += 1
        self._period_begun = now

    async def _news(self, kept: Callable[[], int]) -> bool:
        """Wait until enough have come, or time has passed; whether any client has said something."""
        heard, loop = self.heard, asyncio.get_running_loop()
        news: asyncio.Future[None] = loop.create_future()
        self._waits[news] = kept
        timer = loop.call_later(STALLED, _end, news)
        try:
            await news
        finally:
            timer.cancel()
            del self._waits[news]
        return self.heard != heard


def _end(news: asyncio.Future[None]) -> None:
    if not news.done():
        news.set_result(None)
