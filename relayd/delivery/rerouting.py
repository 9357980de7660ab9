"""Looks at the routes again for mail that waits, beside the deliveries: after a reload all of it, at start the strays.

Strays are recipients in lanes that no upstream has any more; nobody else would look at them. What is due in a living
lane needs none of this: its route is looked at before each attempt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from relayd.core.ids import MessageId
from relayd.core.mail import Message
from relayd.core.units import Millis
from relayd.delivery.settle import move
from relayd.spool.filter import QueueFilter
from relayd.spool.store import Delivery, Store, StoreError, Waiting

_BATCH = 500
AGAIN = 5.0
"""Seconds until a walk that failed is begun anew."""


class Lanes(Protocol):
    """The part of the dispatcher that rerouting needs."""

    def choose(self, message: Message, waiting: Waiting) -> str:
        """The lane that a recipient belongs in now; "" for none."""

    def living(self, lane: str) -> bool:
        """Is there an upstream of this name?"""

    def claim(self, message: MessageId) -> bool:
        """Take a message out of memory so that it can be changed; False while somebody sends or changes it."""

    def unclaim(self, message: MessageId) -> None:
        """The change is on disk."""

    def wake_all(self) -> None:
        """Anything may have become due anywhere."""


class Rerouting:
    """Walks over one worker's queue, on its event loop."""

    def __init__(self, store: Store, lanes: Lanes, clock: Callable[[], Millis]) -> None:
        self._store = store
        self._lanes = lanes
        self._clock = clock
        self._everything = False
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._log = structlog.get_logger("relayd.delivery")

    def start(self) -> None:
        """Begin with the strays."""
        self._wanted.set()
        self._task = asyncio.create_task(self._run(), name="rerouting")

    async def stop(self) -> None:
        """Stop; the next start looks again."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def begin(self, *, everything: bool) -> None:
        """Walk over the queue soon, or once more after the walk that is under way."""
        self._everything = self._everything or everything
        self._wanted.set()

    async def _run(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            everything, self._everything = self._everything, False
            try:
                if everything:
                    claims = _Claims(self._lanes)
                    try:
                        await self._store.relane(self._lanes.choose, claims, claims.release)
                    finally:
                        claims.release(list(claims.held))
                        self._lanes.wake_all()
                await self._strays()
            except Exception as error:  # noqa: BLE001 - mail that nobody looks at must not wait for a restart
                known = isinstance(error, StoreError)
                self._log.exception("rerouting failed", error=str(error), exc_info=not known)
                self.begin(everything=everything)
                await asyncio.sleep(AGAIN)

    async def _strays(self) -> None:
        """Move what lies in lanes without an upstream."""
        missed = False
        for depth in await self._store.lanes():
            if self._lanes.living(depth.lane):
                continue
            after: MessageId = 0
            while found := await self._store.select(QueueFilter(lane=depth.lane), _BATCH, after):
                after = max(delivery.message.id for delivery in found)
                claimed = [delivery.message.id for delivery in found if self._lanes.claim(delivery.message.id)]
                missed = missed or len(claimed) < len(found)
                try:
                    await self._adopt(depth.lane, claimed)
                finally:
                    for message in claimed:
                        self._lanes.unclaim(message)
                    self._lanes.wake_all()
        if missed:
            await asyncio.sleep(AGAIN)
            self.begin(everything=False)

    async def _adopt(self, lane: str, messages: Sequence[MessageId]) -> None:
        """Move what still lies in a lane, now that nobody else changes it."""
        if not messages:
            return
        wanted = QueueFilter(lane=lane, ids=frozenset(messages))
        found = await self._store.select(wanted, len(messages))
        await asyncio.gather(*(self._move(delivery) for delivery in found))

    async def _move(self, delivery: Delivery) -> None:
        message, now = delivery.message, self._clock()
        choose = self._lanes.choose
        chosen = [(waiting, choose(message, waiting)) for waiting in delivery.recipients]
        moving = [(waiting, lane) for waiting, lane in chosen if lane != waiting.lane]
        if moving:
            await self._store.settle(move(message, moving, now))


class _Claims:
    """The messages that must not be moved now; asked about one, it takes the others out of memory.

    Whether an upstream can be used may change at any moment: what is being moved must not be sent meanwhile.
    """

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self.held: set[MessageId] = set()

    def __contains__(self, message: object) -> bool:
        if not isinstance(message, int) or not self._lanes.claim(message):
            return True
        self.held.add(message)
        return False

    def release(self, messages: Sequence[MessageId]) -> None:
        """Their moves are on disk: they may be read from there again."""
        for message in messages:
            self.held.discard(message)
            self._lanes.unclaim(message)
