"""What operators do to the queue: hold, release, retry, fail, delete; and what time does: expire, tell of delay.

Each act goes message by message through the lifecycle table; a message that is being sent is left alone and counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
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

    def wake(self, lane: str, when: Millis) -> None:
        """Something in the store became due in this lane."""


class IdleQueue:
    """Stands for the dispatcher where no daemon runs."""

    def claim(self, message: MessageId) -> bool:
        """Nothing is being sent."""
        return True

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
        seen: set[MessageId] = set()
        while True:
            found = [d for d in await self._store.select(wanted, _BATCH + len(seen)) if d.message.id not in seen]
            seen.update(delivery.message.id for delivery in found)
            settlements = []
            for delivery in found:
                if not self._queue.claim(delivery.message.id):
                    done.busy += 1
                    continue
                settlements.append(self._steered(delivery, deed, by, reason))
            for settlement in await self._write([s for s in settlements if s.changes]):
                done.recipients += len(settlement.changes)
                done.messages.append(format_id(settlement.message))
            self._wake_all(found)
            if len(found) < _BATCH:
                return done

    def _steered(self, delivery: Delivery, deed: Act, by: str, reason: str) -> Settlement:
        return steer(delivery.message, delivery.recipients, deed, self.policy, self._clock(), by=by, reason=reason)

    async def expire(self) -> int:
        """End what is past its lifetime, whatever state its upstream is in. How many recipients that was."""
        now = self._clock()
        ended = 0
        while overdue := await self._store.overdue(now - self.policy.lifetime, _BATCH):
            settlements = [
                Settlement(
                    delivery.message.id,
                    tuple(expire(delivery.message, w, self.policy, now) for w in delivery.recipients),
                )
                for delivery in overdue
                if self._queue.claim(delivery.message.id)
            ]
            await self._write(settlements)
            ended += sum(len(settlement.changes) for settlement in settlements)
            if len(settlements) < len(overdue):
                break  # the rest is being sent: its own attempt, or the next round, ends it
        return ended

    async def tell_delays(self) -> int:
        """Owe a delay notice for what has waited long enough. How many recipients that was."""
        if not self.policy.delay_notice:
            return 0
        now = self._clock()
        told = 0
        while late := await self._store.undelayed(now - self.policy.delay_notice, _BATCH):
            settlements = [
                Settlement(
                    delivery.message.id,
                    tuple(delay(delivery.message, w, self.policy, now) for w in delivery.recipients),
                )
                for delivery in late
                if self._queue.claim(delivery.message.id)
            ]
            await self._write(settlements)
            self._wake_all(late)
            told += sum(len(settlement.changes) for settlement in settlements)
        return told

    async def _write(self, settlements: Sequence[Settlement]) -> Sequence[Settlement]:
        if settlements:
            await asyncio.gather(*(self._store.settle(settlement) for settlement in settlements))
        if any(change.after.notice for settlement in settlements for change in settlement.changes):
            self._owed()
        return settlements

    def _wake_all(self, deliveries: Sequence[Delivery]) -> None:
        """Claimed messages left the window: those that still wait are read from disk again when due."""
        now = self._clock()
        for lane in {waiting.lane for delivery in deliveries for waiting in delivery.recipients}:
            self._queue.wake(lane, now)
