"""Whose turn it is in a lane: urgent mail first, then the rest, and of each priority fresh mail and backlog in turn.

Pure queues; what comes into them and from where is lanes.py's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from relayd.core.priority import URGENCIES
from relayd.core.units import Millis
from relayd.spool.store import Delivery

SHARE = 10
"""Less urgent mail gets one turn after so many of more urgent mail: it is slowed down, never starved."""


class Turn:
    """The mail of one priority in a lane's window."""

    __slots__ = ("_of_stored", "fresh", "looked", "next_due", "passed", "stored", "urgency")

    def __init__(self, urgency: int) -> None:
        self.urgency = urgency
        self.fresh: deque[Delivery] = deque()
        self.stored: deque[Delivery] = deque()
        self.next_due: Millis = 0
        """When the store has something that is not in the window; 0: look now."""
        self.looked = 0.0
        """When the store was last asked, in loop time."""
        self.passed = 0
        """Turns of more urgent mail while this waited."""
        self._of_stored = False

    def __bool__(self) -> bool:
        return bool(self.fresh or self.stored)

    def queue_of(self, delivery: Delivery) -> deque[Delivery]:
        """Where a delivery stands."""
        return self.fresh if delivery.content is not None else self.stored

    def pop(self) -> Delivery:
        """The next one, fresh and stored ones in turn."""
        first, second = (self.stored, self.fresh) if self._of_stored else (self.fresh, self.stored)
        self._of_stored = not self._of_stored
        return (first or second).popleft()

    def put_in_front(self, delivery: Delivery) -> None:
        """This one, which is here, is the next."""
        self.remove(delivery)
        queue = self.queue_of(delivery)
        queue.appendleft(delivery)
        self._of_stored = queue is self.stored

    def remove(self, delivery: Delivery) -> None:
        """This very one goes. What was claimed meanwhile and read again stands here twice, equal but not the same."""
        queue = self.queue_of(delivery)
        for place, other in enumerate(queue):
            if other is delivery:
                del queue[place]
                return


class Turns:
    """All priorities of one lane."""

    __slots__ = ("all",)

    def __init__(self) -> None:
        self.all = tuple(Turn(urgency) for urgency in URGENCIES)

    def __iter__(self) -> Iterator[Delivery]:
        for turn in self.all:
            yield from turn.fresh
            yield from turn.stored

    def of(self, urgency: int) -> Turn:
        """The queues of one priority."""
        return self.all[1 - urgency if -1 <= urgency <= 1 else 1]

    @property
    def urgency(self) -> int:
        """Of the most urgent mail that is here."""
        return next((turn.urgency for turn in self.all if turn), URGENCIES[-1])

    def next(self) -> Turn | None:
        """Whose turn it is; None where there is nothing."""
        high, normal, bulk = self.all
        if not (high.fresh or high.stored or bulk.fresh or bulk.stored):
            return normal if normal.fresh or normal.stored else None  # the usual case, asked for every mail
        chosen = None
        for turn in self.all:
            if turn and (chosen is None or turn.passed >= SHARE):
                chosen = turn
        return chosen

    def took(self, turn: Turn) -> None:
        """It had its turn."""
        turn.passed = 0
        for other in self.all[2 - turn.urgency :]:
            if other.fresh or other.stored:
                other.passed += 1

    def put_in_front(self, delivery: Delivery) -> None:
        """This one, which is here, is the next of all."""
        for turn in self.all:
            turn.passed = 0
        turn = self.of(delivery.message.priority)
        turn.passed = SHARE
        turn.put_in_front(delivery)
