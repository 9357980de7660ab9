"""What operators do to the queue: hold, release, retry, fail, delete, move; and what time does: expire, tell of delay.

Each act goes message by message through the lifecycle table; a message that is being sent is left alone and counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from relayd.core.ids import MessageId, format_id
from relayd.core.lifecycle import ATTEMPTABLE, Act, State
from relayd.core.mail import Message
from relayd.core.units import Millis
from relayd.delivery.settle import RELEASED, Policy, delay, expire, move, steer
from relayd.spool.filter import QueueFilter
from relayd.spool.store import Delivery, Settlement, Store

_BATCH = 1000
_ATTEMPTABLE = QueueFilter(states=ATTEMPTABLE)
_HELD = QueueFilter(states=frozenset({State.HELD}))


class Queue(Protocol):
    """The part of the dispatcher that steering needs; without a running daemon nothing is in hand."""

    def claim(self, message: MessageId) -> bool:
        """Take a message out of memory so that it can be changed; False while it is being sent."""

    def unclaim(self, message: MessageId) -> None:
        """The change is on disk."""

    def wake(self, lane: str, when: Millis) -> None:
        """Something in the store became due in this lane."""


class IdleQueue:
    """Stands for the dispatcher where no daemon runs."""

    def claim(self, message: MessageId) -> bool:
        """Nothing is being sent."""
        return True

    def unclaim(self, message: MessageId) -> None:
        """Nothing was claimed."""

    def wake(self, lane: str, when: Millis) -> None:
        """The daemon looks by itself when it starts."""


@dataclass(slots=True)
class Steered:
    """What an act changed."""

    recipients: int = 0
    messages: list[str] = field(default_factory=list)
    busy: int = 0
    """Messages left alone because they were being sent."""
    refused: int = 0
    """Recipients left alone because their sender may not use the upstream that they were to go to."""


class Steering:
    """Changes what waits in one worker's store, on its event loop."""

    def __init__(
        self, store: Store, queue: Queue, policy: Policy, clock: Callable[[], Millis], owed: Callable[[], None]
    ) -> None:
        self._store = store
        self._queue = queue
        self.policy = policy
        self._clock = clock
        self._owed = owed

    async def act(self, deed: Act, wanted: QueueFilter, *, by: str, reason: str = "") -> Steered:
        """Do `deed` to every waiting recipient that the filter selects."""

        def steered(delivery: Delivery, now: Millis) -> Settlement:
            return steer(delivery.message, delivery.recipients, deed, self.policy, now, by=by, reason=reason)

        return await self._do(wanted, steered)

    async def move(
        self, wanted: QueueFilter, lane_of: Callable[[Message], str | None], *, by: str, reason: str = ""
    ) -> Steered:
        """Move every waiting recipient that the filter selects to another lane, where it stays whatever routes say.

        `lane_of` says which lane, None where the sender may not use the upstream.
        """
        refused = 0

        def moved(delivery: Delivery, now: Millis) -> Settlement:
            nonlocal refused
            message = delivery.message
            lane = None if message.origin.inbound else lane_of(message)
            if lane is None:
                refused += len(delivery.recipients)
                return Settlement(message.id, ())
            moving = [(waiting, lane) for waiting in delivery.recipients if waiting.lane != lane]
            return move(message, moving, now, reason, by)

        done = await self._do(wanted, moved)
        done.refused = refused
        return done

    async def _do(self, wanted: QueueFilter, change: Callable[[Delivery, Millis], Settlement]) -> Steered:
        done = Steered()
        after: MessageId = 0
        while found := await self._store.select(wanted, _BATCH, after):
            after = max(delivery.message.id for delivery in found)
            written, busy = await self._change(found, wanted, change)
            done.busy += busy
            for settlement in written:
                done.recipients += len(settlement.changes)
                done.messages.append(format_id(settlement.message))
        return done

    async def expire(self) -> int:
        """End what is past its lifetime, whatever state its upstream is in. How many recipients that was.

        What is held has a lifetime of its own; what was released after its end is given time for one more attempt.
        """
        spared: frozenset[tuple[MessageId, int]] = frozenset()

        async def overdue(accepted_before: Millis, limit: int) -> Sequence[Delivery]:
            nonlocal spared
            found = await self._store.overdue(accepted_before, limit)
            spared = await self._store.released([each.message.id for each in found], self._clock() - RELEASED)
            return found

        def expired(delivery: Delivery, now: Millis) -> Settlement:
            message = delivery.message
            ended = [waiting for waiting in delivery.recipients if (message.id, waiting.n) not in spared]
            return Settlement(message.id, tuple(expire(message, waiting, self.policy, now) for waiting in ended))

        count = await self._sweep(overdue, self.policy.lifetime, expired)
        spared = frozenset()
        return count + await self._sweep(self._store.held, self.policy.held_lifetime, expired, _HELD)

    async def tell_delays(self) -> int:
        """Owe a delay notice for what has waited long enough. How many recipients that was."""
        if not self.policy.delay_notice:
            return 0

        def told(delivery: Delivery, now: Millis) -> Settlement:
            changes = tuple(
                delay(delivery.message, waiting, self.policy, now)
                for waiting in delivery.recipients
                if not waiting.delayed
            )
            return Settlement(delivery.message.id, changes)

        return await self._sweep(self._store.undelayed, self.policy.delay_notice, told)

    async def _sweep(
        self,
        find: Callable[[Millis, int], Awaitable[Sequence[Delivery]]],
        age: Millis,
        change: Callable[[Delivery, Millis], Settlement],
        wanted: QueueFilter = _ATTEMPTABLE,
    ) -> int:
        """Change everything that was accepted longer ago than `age`, batch by batch."""
        changed = 0
        while found := await find(self._clock() - age, _BATCH):
            written, _ = await self._change(found, wanted, change)
            changed += sum(len(settlement.changes) for settlement in written)
            if not written:
                break  # what is being sent now is met again in the next round
        return changed

    async def _change(
        self, found: Sequence[Delivery], wanted: QueueFilter, change: Callable[[Delivery, Millis], Settlement]
    ) -> tuple[list[Settlement], int]:
        """Settle what the change makes of each message; the settlements written, and how many were being sent.

        Raises StoreError when some could not be written; the others are.
        """
        claimed = [delivery.message.id for delivery in found if self._queue.claim(delivery.message.id)]
        lanes: set[str] = set()
        writing: list[asyncio.Future[None]] = []
        settlements: list[Settlement] = []
        try:
            for delivery in await self._standing(claimed, wanted):
                lanes.update(waiting.lane for waiting in delivery.recipients)
                settlement = change(delivery, self._clock())
                lanes.update(each.after.lane for each in settlement.changes)
                if settlement.changes:
                    settlements.append(settlement)
                    writing.append(self._store.settle(settlement))
            if writing:
                await asyncio.wait(writing)
        finally:
            lanes.update(waiting.lane for delivery in found for waiting in delivery.recipients)
            # whoever asked may go away: what is being written stays claimed until it is
            self._when_done(writing, lambda: self._release(claimed, lanes))
        failed = [error for written in writing if (error := written.exception()) is not None]
        if failed:
            raise failed[0]
        if any(c.after.notice for settlement in settlements for c in settlement.changes):
            self._owed()
        return settlements, len(found) - len(claimed)

    async def _standing(self, claimed: Sequence[MessageId], wanted: QueueFilter) -> list[Delivery]:
        """Claimed messages as they stand now that nobody else changes them; until then somebody may have."""
        if not claimed:
            return []
        return await self._store.select(replace(wanted, ids=frozenset(claimed)), len(claimed))

    @staticmethod
    def _when_done(writing: Sequence[asyncio.Future[None]], call: Callable[[], None]) -> None:
        left = sum(not future.done() for future in writing)
        if not left:
            call()
            return

        def one_less(_: asyncio.Future[None]) -> None:
            nonlocal left
            left -= 1
            if not left:
                call()

        for future in writing:
            if not future.done():
                future.add_done_callback(one_less)

    def _release(self, claimed: Sequence[MessageId], lanes: Iterable[str]) -> None:
        for message in claimed:
            self._queue.unclaim(message)
        # claimed messages left the window: those that still wait are read from disk again when due
        now = self._clock()
        for lane in lanes:
            self._queue.wake(lane, now)
