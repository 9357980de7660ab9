"""What operators do to the queue: hold, release, retry, fail, delete; and what time does: expire, tell of delay.

Each act goes message by message through the lifecycle table; a message that is being sent is left alone and counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from relayd.core.ids import MessageId, format_id
from relayd.core.lifecycle import Act
from relayd.core.units import Millis
from relayd.delivery.settle import Policy, delay, expire, steer
from relayd.spool.filter import QueueFilter
from relayd.spool.store import Delivery, Settlement, Store

_BATCH = 1000


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
        done = Steered()
        after: MessageId = 0

        def steered(delivery: Delivery, now: Millis) -> Settlement:
            return steer(delivery.message, delivery.recipients, deed, self.policy, now, by=by, reason=reason)

        while True:
            found = await self._store.select(wanted, _BATCH, after)
            written, busy = await self._change(found, steered)
            done.busy += busy
            for settlement in written:
                done.recipients += len(settlement.changes)
                done.messages.append(format_id(settlement.message))
            if not found:
                return done
            after = max(delivery.message.id for delivery in found)

    async def expire(self) -> int:
        """End what is past its lifetime, whatever state its upstream is in. How many recipients that was."""

        def expired(delivery: Delivery, now: Millis) -> Settlement:
            changes = tuple(expire(delivery.message, w, self.policy, now) for w in delivery.recipients)
            return Settlement(delivery.message.id, changes)

        return await self._sweep(self._store.overdue, self.policy.lifetime, expired)

    async def tell_delays(self) -> int:
        """Owe a delay notice for what has waited long enough. How many recipients that was."""
        if not self.policy.delay_notice:
            return 0

        def told(delivery: Delivery, now: Millis) -> Settlement:
            changes = tuple(delay(delivery.message, w, self.policy, now) for w in delivery.recipients)
            return Settlement(delivery.message.id, changes)

        return await self._sweep(self._store.undelayed, self.policy.delay_notice, told)

    async def _sweep(
        self,
        find: Callable[[Millis, int], Awaitable[Sequence[Delivery]]],
        age: Millis,
        change: Callable[[Delivery, Millis], Settlement],
    ) -> int:
        """Change everything that was accepted longer ago than `age`, batch by batch."""
        changed = 0
        while found := await find(self._clock() - age, _BATCH):
            written, busy = await self._change(found, change)
            changed += sum(len(settlement.changes) for settlement in written)
            if busy:
                break  # what is being sent now is met again in the next round
        return changed

    async def _change(
        self, found: Sequence[Delivery], change: Callable[[Delivery, Millis], Settlement]
    ) -> tuple[list[Settlement], int]:
        """Settle what the change makes of each message; the settlements written, and how many were being sent."""
        now = self._clock()
        claimed = [delivery for delivery in found if self._queue.claim(delivery.message.id)]
        try:
            settlements = [s for s in (change(delivery, now) for delivery in claimed) if s.changes]
            await asyncio.gather(*(self._store.settle(settlement) for settlement in settlements))
        finally:
            for delivery in claimed:
                self._queue.unclaim(delivery.message.id)
        if any(c.after.notice for settlement in settlements for c in settlement.changes):
            self._owed()
        # claimed messages left the window: those that still wait are read from disk again when due
        for lane in {waiting.lane for delivery in claimed for waiting in delivery.recipients}:
            self._queue.wake(lane, now)
        return settlements, len(found) - len(claimed)
