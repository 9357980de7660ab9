"""Failures that a killed process had written down but not judged: judged at the next start, so that no block is lost.

How far its worker's events have been judged is written to state.db now and then. At the start, what stands behind is
judged again: a block that came about then, and was perhaps lifted since, does not come about again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Protocol

import structlog

from relayd.core.blocking import DAY
from relayd.core.event import EventKind
from relayd.core.units import Millis
from relayd.intake.blocks import BlockBook
from relayd.spool import blocklist
from relayd.spool.state import StateDB, StateError
from relayd.spool.store import Page, StoreError

MARK = 10.0
"""Seconds between two notes of how far the events are judged, and before another try where one failed."""
SINCE = 14 * DAY
"""Older failures are not judged again: they count no more, by default."""
KINDS = (EventKind.BOUNCED, EventKind.EXPIRED, EventKind.COMPLAINED, EventKind.NOTED, EventKind.POSTPONED)
"""Events that may block."""


class Stream(Protocol):
    """What is asked of the Store."""

    async def positions(self) -> dict[str, int]:
        """By segment, the last event that readers have heard of."""

    def behind(self, known: Mapping[str, int], kinds: Sequence[EventKind], since: Millis) -> AsyncIterator[Page]:
        """Events behind such positions."""


class Unjudged:
    """Of one worker, on its event loop. `start` before mail comes, `stop` when the book has stopped."""

    def __init__(self, book: BlockBook, stream: Stream, state: StateDB, clock: Callable[[], Millis]) -> None:
        self._book = book
        self._stream = stream
        self._state = state
        self._clock = clock
        self._caught_up = False
        self._written: Mapping[str, int] = {}
        self._task: asyncio.Task[None] | None = None
        self._log = structlog.get_logger("relayd.blocks")

    def start(self) -> None:
        """Begin to catch up, beside all else."""
        self._task = asyncio.create_task(self._run(), name="judge what was left unjudged")

    async def stop(self) -> None:
        """Note how far the book has come, and end."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if self._caught_up:
            await self._try(self._mark)

    async def _run(self) -> None:
        while True:
            await self._try(self._mark if self._caught_up else self._catch_up)
            await asyncio.sleep(MARK)

    async def _try(self, work: Callable[[], Awaitable[None]]) -> bool:
        try:
            await work()
        except (StateError, StoreError) as error:
            self._log.error("failures before the last start are not judged yet", error=str(error))
            return False
        return True

    async def _catch_up(self) -> None:
        known = await self._state.read(blocklist.judged)
        events = 0
        async for page in self._stream.behind(known, KINDS, self._clock() - SINCE):
            await self._book.judge_again(page.events)
            await self._keep({page.segment: page.position})
            events += len(page.events)
        self._caught_up = True
        if events:
            self._log.info("failures judged that came before the start", count=events)

    async def _mark(self) -> None:
        positions = await self._stream.positions()
        if positions != self._written and await self._book.judge_kept():
            await self._keep(positions)
            self._written = positions

    async def _keep(self, positions: Mapping[str, int]) -> None:
        now = self._clock()
        await self._state.write(lambda db: blocklist.keep_judged(db, positions, now))
