"""The queue in memory: one lane for each upstream, a bounded window over what waits on disk.

Fresh mail enters by `push` with its content, retries and backlog are fed from the store; both take turns, so that
neither starves the other. Lanes hand out deliveries and never speak to an upstream: carriers (attempt.py) do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from relayd.core.ids import MessageId
from relayd.core.units import Millis
from relayd.delivery.budget import Budget
from relayd.delivery.gate import Gate
from relayd.delivery.turns import Turn, Turns
from relayd.intake.memory import MemoryBudget
from relayd.spool.store import Delivery, Store, StoreError

FEED_RETRY = 5.0
"""Seconds until the store is asked again after it failed to answer."""
LOOK = 60.0
"""Seconds after which a lane looks at the store whatever it was told: a clock put forward makes mail due early."""
_SOON = 0.02
_NEVER: Millis = 1 << 62


class Lane:
    """One upstream's part of the queue. Lives on one event loop.

    A message is in the lane's window at most once (`_held`); it leaves when its settlement is on disk.
    """

    def __init__(
        self,
        name: str,
        store: Store,
        memory: MemoryBudget,
        clock: Callable[[], Millis],
        *,
        window: int,
        ready: Callable[[Lane], None],
    ) -> None:
        self.name = name
        self.gate = Gate()
        self.budget: Budget | None = None
        """What may still be sent; None: there is no limit."""
        self.resize(window)
        self._store = store
        self._memory = memory
        self._clock = clock
        self._ready = ready
        self.turns = Turns()
        self._held: dict[MessageId, Delivery | None] = {}
        """The window; None stands for a message that is claimed."""
        self._flying: set[MessageId] = set()
        self._wake = asyncio.Event()
        self._emptied = 0
        """Counts `clear`: what was read before it says nothing any more."""
        self._changed: set[MessageId] | None = None
        """Claimed while the store was being asked, so that its answer about them may be stale; None while it is not."""
        self._landing: asyncio.Future[None] | None = None
        self._again: set[MessageId] = set()
        """In the window, but another recipient of theirs came due meanwhile and was passed over."""
        self._feeder: asyncio.Task[None] | None = None
        self._log = structlog.get_logger("relayd.delivery")
        self.blocked = 0
        """Settlements that could not be written: nothing more is taken until they are."""
        self._unwritten: dict[MessageId, int] = {}
        """Settlements on their way to the disk, by message: what a crash would repeat."""
        self.unwritten_most = 1
        """Nothing more is taken while there are so many: as many as there may be connections (the crew says)."""
        self._held_up = False

    def start(self) -> None:
        """Begin, or go on, to feed from the store."""
        if self._feeder is not None:
            self._feeder.cancel()
        self.look()
        self._feeder = asyncio.create_task(self._feed(), name=f"feed {self.name or 'unrouted'}")

    async def stop(self) -> None:
        """Stop feeding and let go of everything in the window; it stays on disk."""
        if self._feeder is not None:
            self._feeder.cancel()
            await asyncio.gather(self._feeder, return_exceptions=True)
            self._feeder = None
        self.clear()

    def resize(self, window: int) -> None:
        """So many messages at most from now on, stored and fresh ones; one half is kept for those from the store."""
        self.window = window
        self._stored_most = max(window // 2, 1)

    def __len__(self) -> int:
        return len(self._held)

    @property
    def flying(self) -> int:
        """Deliveries that carriers have in hand."""
        return len(self._flying)

    def has_in_hand(self, message: MessageId) -> bool:
        """Has a carrier taken it, and is what became of it not on disk yet?"""
        return message in self._flying

    async def landed(self) -> None:
        """Wait until carriers have nothing in hand."""
        while self._flying:
            self._landing = asyncio.get_running_loop().create_future()
            await self._landing

    def push(self, delivery: Delivery) -> None:
        """Fresh mail, kept on disk already. Where the window is full it waits there."""
        message, content, held = delivery.message, delivery.content, self._held
        if content is None or message.id in held or len(held) >= self.window or not self._memory.lend(len(content)):
            self.due_at(self._clock(), urgency=message.priority)
            return
        held[message.id] = delivery
        self.turns.of(message.priority).fresh.append(delivery)
        self._ready(self)

    def due_at(self, when: Millis, message: MessageId | None = None, urgency: int | None = None) -> None:
        """The store has something for this lane at that moment, maybe of this message: look then.

        `urgency` is the priority of what it has; None: any.
        """
        if message is not None and self._held.get(message) is not None:
            self._again.add(message)
        for turn in self.turns.all if urgency is None else (self.turns.of(urgency),):
            if when < turn.next_due:
                turn.next_due = when
                self._wake.set()

    def look(self) -> None:
        """Anything may be due: look at once."""
        for turn in self.turns.all:
            turn.next_due = 0
        self._wake.set()

    def take(self) -> Delivery | None:
        """The next delivery, the urgent ones first; None when there is none, or the upstream is paused or asked for too
        much already.
        """
        turns, gate = self.turns, self.gate
        turn = turns.next()
        if turn is None or self.blocked or not gate.may_take(self._clock()):
            return None
        if len(self._unwritten) >= self.unwritten_most:
            self._held_up = True
            return None
        budget = self.budget
        if budget is not None and not budget.reserve(turns.urgency):
            return None
        if gate.suspects:
            self._put_in_front(gate.suspects)
            turn = turns.next()
        while turn is not None:
            delivery = turn.pop()
            number = delivery.message.id
            if delivery.content is None and len(turn.stored) <= self._stored_most // 4:
                self._wake.set()
            if self._held.get(number) is delivery:
                turns.took(turn)
                self._flying.add(number)
                gate.taken()
                if budget is not None:
                    budget.assign(number)
                return delivery
            self._let_go(delivery)  # claimed meanwhile
            turn = turns.next()
        if budget is not None:
            budget.cancel()
        return None

    def _put_in_front(self, suspects: set[str]) -> None:
        """The probe is to be of a sender that is no suspect, if any is here: it tells whose trouble it is."""
        for delivery in self.turns:
            if delivery.message.envelope.sender not in suspects and self._held.get(delivery.message.id) is delivery:
                self.turns.put_in_front(delivery)
                return

    @property
    def unwritten(self) -> int:
        """Messages with settlements on their way to the disk. One that goes out in many transactions counts once: how
        many of its own it may have is up to `behind.py`, and others must not wait for them.
        """
        return len(self._unwritten)

    def writes(self, message: MessageId) -> None:
        """A settlement of this message is on its way to the disk."""
        self._unwritten[message] = self._unwritten.get(message, 0) + 1

    def written(self, message: MessageId) -> None:
        """It is there, or could not be written. Who was refused mail for too many of them gets some."""
        left = self._unwritten.pop(message) - 1
        if left:
            self._unwritten[message] = left
        if self._held_up and len(self._unwritten) <= (self.unwritten_most + 1) // 2:
            self._held_up = False
            for _ in range(self.unwritten_most):
                self._ready(self)

    def done(self, message: MessageId) -> None:
        """What was taken is settled on disk (or is to be read again from there)."""
        self._flying.discard(message)
        if self.budget is not None:
            self.budget.done(message)
        if self._landing is not None:
            self._landed()
        delivery = self._held.get(message)
        if delivery is None:
            return
        del self._held[message]
        self._let_go(delivery)
        if delivery.content is None or len(delivery.recipients) > 1 or message in self._again:
            # another recipient of the same message may have come due meanwhile, and was passed over
            self._again.discard(message)
            self.due_at(self._clock(), urgency=delivery.message.priority)

    def idle(self) -> list[Delivery]:
        """What is in the window and in nobody's hand."""
        held = self._held
        return [delivery for delivery in self.turns if held.get(delivery.message.id) is delivery]

    def take_out(self, delivery: Delivery) -> bool:
        """Take this one, whatever the gate says, to move it elsewhere; False where somebody else has it."""
        if self.blocked or delivery.message.id in self._flying or self._held.get(delivery.message.id) is not delivery:
            return False
        turn = self.turns.of(delivery.message.priority)
        turn.remove(delivery)
        if delivery.content is None and len(turn.stored) <= self._stored_most // 4:
            self._wake.set()
        self._flying.add(delivery.message.id)
        return True

    def put_back(self, delivery: Delivery) -> None:
        """What was taken is not attempted now after all: it is the next one, with the recipients given here."""
        message = delivery.message.id
        if self._feeder is None:
            # nobody takes from a lane that was stopped: on disk it is found by whoever comes next
            self.done(message)
            return
        self._flying.discard(message)
        if self.budget is not None:
            self.budget.done(message)
        if message not in self._held:
            return
        self._held[message] = delivery
        self.turns.of(delivery.message.priority).queue_of(delivery).appendleft(delivery)
        self._landed()

    def _landed(self) -> None:
        if self._landing is not None and not self._flying and not self._landing.done():
            self._landing.set_result(None)

    def clear(self) -> None:
        """Empty the window, save for what carriers have in hand: the store is asked anew."""
        for delivery in self.turns:
            self._let_go(delivery)
        for turn in self.turns.all:
            turn.fresh.clear()
            turn.stored.clear()
        self._held = {i: d for i, d in self._held.items() if i in self._flying or d is None}
        self._again &= self._flying
        self._emptied += 1
        self.look()

    def claim(self, message: MessageId) -> bool:
        """Keep a message out of the window while it is changed; False while a carrier has it in hand."""
        if message in self._flying:
            return False
        self._held[message] = None
        self._again.discard(message)
        if self._changed is not None:
            self._changed.add(message)
        return True

    def banish(self, message: MessageId) -> None:
        """Never hand this one out again, as long as this process lives."""
        delivery = self._held.get(message)
        if delivery is not None:
            self._let_go(delivery)
        self._held[message] = None

    def unclaim(self, message: MessageId) -> None:
        """The change is on disk: the message may be read from there again."""
        if self._held.get(message, self) is None:
            del self._held[message]

    @property
    def has_mail(self) -> bool:
        """Something in the window could be taken, were the gate open."""
        return self.turns.next() is not None

    def wants_budget(self) -> bool:
        """Something in the window could be taken, were there permits."""
        return self.has_mail and not self.blocked and self.gate.may_take(self._clock())

    def _let_go(self, delivery: Delivery) -> None:
        if delivery.content is not None:
            self._memory.returned(len(delivery.content))

    async def _feed(self) -> None:
        """Keep the stored half of the window filled while the store has mail that is due."""
        while True:
            self._wake.clear()
            try:
                wait = await self._look()
            except StoreError as error:
                self._log.error("the queue cannot be read", upstream=self.name, error=str(error))
                wait = FEED_RETRY
            except Exception:  # noqa: BLE001 - nobody else would ever look at this lane again
                self._log.exception("the queue cannot be read", upstream=self.name)
                wait = FEED_RETRY
            await _wait(self._wake, min(wait, LOOK))

    async def _look(self) -> float:
        """Read from the store what it is time for; seconds to wait before the next look, if nobody wakes us."""
        wait = LOOK
        for turn in self.turns.all:
            wait = min(wait, await self._look_for(turn))
        return wait

    async def _look_for(self, turn: Turn) -> float:
        room = self._stored_most - len(turn.stored)
        if room <= self._stored_most // 2:
            return LOOK  # take() wakes us
        now, at = self._clock(), asyncio.get_running_loop().time()
        if turn.next_due > now and at - turn.looked < LOOK - 1:
            return (turn.next_due - now) / 1000
        turn.looked = at
        turn.next_due = _NEVER
        self._changed = set()
        try:
            return await self._fill(turn, now, room, self._changed)
        except BaseException:
            turn.next_due = 0
            raise
        finally:
            self._changed = None

    async def _fill(self, turn: Turn, now: Millis, room: int, changed: set[MessageId]) -> float:
        emptied = self._emptied
        due = await self._store.due(self.name, now, room, self._held, turn.urgency)
        if emptied != self._emptied:
            return 0.0
        if due.next_due is not None:
            turn.next_due = min(turn.next_due, due.next_due)
        taken = 0
        for delivery in due.deliveries:
            number = delivery.message.id
            if number in changed:
                turn.next_due = 0
            elif number not in self._held:
                self._held[number] = delivery
                turn.stored.append(delivery)
                taken += 1
        for _ in range(taken):
            self._ready(self)
        if turn.next_due > now:
            return (turn.next_due - now) / 1000
        # what is due already but did not fit waits for room: take() wakes us, as long as there is something to take
        return LOOK if taken else _SOON


async def _wait(event: asyncio.Event, seconds: float) -> None:
    if seconds <= 0:
        await asyncio.sleep(0)
        return
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
