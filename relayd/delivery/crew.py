"""The carriers of one lane: coroutines that each hold at most one connection and carry one message after another.

They are hired as mail comes and leave when idle. What an attempt is, is attempt.py's; how many may be, slots.py's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from relayd.core.session import Session
from relayd.core.units import Millis
from relayd.delivery.lanes import Lane
from relayd.delivery.pace import Pace
from relayd.delivery.slots import LEASE, ConnectionSlots
from relayd.spool.store import Delivery

IDLE = 10.0
"""Seconds that a carrier keeps its connection open without mail."""

STALE = 1.0
"""Seconds of idleness after which a session is probed before it is used again."""


@dataclass(slots=True)
class Carrier:
    """One carrier's hold on its connection. Whoever opens a session puts it here; the crew closes it."""

    session: Session | None = None
    broken: bool = False
    """The session is in an unknown state: close it."""


Attempt = Callable[[Carrier, Delivery], Awaitable[None]]
"""Carries one delivery, opening a session where the carrier has none. It settles; only cancellation is raised."""


class Crew:
    """The carriers of one lane, on one event loop."""

    def __init__(
        self,
        lane: Lane,
        slots: ConnectionSlots,
        attempt: Attempt,
        clock: Callable[[], Millis],
        closed: Callable[[], None],
        *,
        pace: Pace,
    ) -> None:
        self._lane = lane
        self._slots = slots
        lane.unwritten_most = slots.most
        self._attempt = attempt
        self._clock = clock
        self._closed = closed
        self._pace = pace
        self._going: set[asyncio.Task[None]] = set()
        """Carriers that leave because there are too many for the pace."""
        self._idle: dict[asyncio.Future[bool], float] = {}
        """Carriers without mail, and when each leaves (loop time)."""
        self._sweep: asyncio.TimerHandle | None = None
        """Sends off who has been idle for long: one timer for all, set anew only when it rings."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._alarm: asyncio.TimerHandle | None = None
        self._stopping = False
        self._hired = 0
        self._carriers: list[Carrier] = []
        self.endpoint = ""
        """host:port of the session that was used last."""
        self.generation = 0
        """Grows when sessions opened so far must not be used any more (the upstream's settings changed)."""

    @property
    def size(self) -> int:
        """Carriers at work or idle."""
        return len(self._tasks)

    @property
    def stopping(self) -> bool:
        """What is in hand is finished, and nothing begun."""
        return self._stopping

    @property
    def connections(self) -> int:
        """Sessions that are open."""
        return sum(carrier.session is not None for carrier in self._carriers)

    def ready(self) -> None:
        """There is mail to carry: wake a carrier, or hire one."""
        if self._stopping:
            return
        gate = self._lane.gate
        if gate.shut:
            return
        if gate.paused:
            if gate.probing:
                return
            wait = gate.left(self._clock())
            if wait > 0:
                self._call_again(wait / 1000)
                return
        budget = self._lane.budget
        if budget is not None and budget.closed(self._lane.turns.urgency):
            return
        # the last one to fall idle first: its connection is the warmest, and the others can leave
        while self._idle:
            idle, _ = self._idle.popitem()
            if not idle.done():
                idle.set_result(True)
                return
        if len(self._tasks) < min(self._slots.most, self._pace.allowed):
            self._hired += 1
            task = asyncio.create_task(self._carry(), name=f"carry {self._lane.name} #{self._hired}")
            self._tasks.add(task)
            task.add_done_callback(self._left)

    def all_ready(self) -> None:
        """The pause is over, or the window was filled: as many carriers as there may be."""
        self.call(self._slots.most)

    def call(self, carriers: int) -> None:
        """There is mail for so many carriers."""
        for _ in range(min(carriers, self._slots.most)):
            self.ready()

    def renew(self) -> None:
        """Sessions opened so far are closed instead of being used again."""
        self.generation += 1
        self._wake_all()

    def resize(self, slots: ConnectionSlots) -> None:
        """As many connections as these slots give from now on. What is in hand is finished first."""
        self._slots = slots
        self._lane.unwritten_most = slots.most
        self._pace.resize(slots.most)
        self._wake_all()

    def _wake_all(self) -> None:
        idle, self._idle = self._idle, {}
        for waiter in idle:
            _let(waiter, go_on=True)

    def resume(self) -> None:
        """Go on although `stop` was called: it is not waited for any more."""
        self._stopping = False
        self.all_ready()

    async def stop(self, deadline: float) -> None:
        """Let carriers finish what they have in hand until `deadline` (loop time), then cancel them."""
        self._stopping = True
        if self._alarm is not None:
            self._alarm.cancel()
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for waiter in self._idle:
            _let(waiter, go_on=False)
        if self._tasks:
            left = max(deadline - asyncio.get_running_loop().time(), 0)
            _, pending = await asyncio.wait(self._tasks, timeout=left)
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    def _call_again(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        when = loop.time() + seconds + 0.001
        if self._alarm is not None:
            if loop.time() < self._alarm.when() <= when:
                return  # it rings in time, and finds out whether it is too early
            self._alarm.cancel()
        self._alarm = loop.call_at(when, self.all_ready)

    def _left(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._going.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            structlog.get_logger("relayd.delivery").error("carrier failed", task=task.get_name(), exc_info=error)
            self._call_again(1.0)
        elif self._lane.has_mail:
            self.ready()

    async def _carry(self) -> None:
        carrier, slots = Carrier(), self._slots
        if not await slots.acquire(lambda: self._stopping or slots is not self._slots):
            return
        loop = asyncio.get_running_loop()
        leased_at = used_at = loop.time()
        generation, after_you = self.generation, False
        self._carriers.append(carrier)
        try:
            while not self._stopping and slots is self._slots and not self._too_many():
                if carrier.session is not None and generation != self.generation:
                    await self._close(carrier)
                generation = self.generation
                delivery = self._lane.take()
                if delivery is not None:
                    await self._carry_one(carrier, delivery, stale=loop.time() - used_at > STALE)
                    used_at = loop.time()
                elif not await self._wait(1.0 if slots.leased else IDLE):
                    break
                if slots.leased and loop.time() - leased_at > LEASE:
                    leased_at = loop.time()
                    if after_you := slots.wanted():
                        break
        finally:
            try:
                await self._close(carrier)
            finally:
                # by identity: two carriers may look alike
                self._carriers = [each for each in self._carriers if each is not carrier]
                slots.release(after_you=after_you)

    def _too_many(self) -> bool:
        """There are more carriers than the pace allows: this one leaves."""
        if len(self._tasks) - len(self._going) <= self._pace.allowed:
            return False
        if (task := asyncio.current_task()) is not None:
            self._going.add(task)
        return True

    async def _carry_one(self, carrier: Carrier, delivery: Delivery, *, stale: bool) -> None:
        try:
            if stale and carrier.session is not None and not await carrier.session.probe():
                await self._close(carrier)
            await self._attempt(carrier, delivery)
            if carrier.session is not None:
                self.endpoint = carrier.session.endpoint
        except BaseException:
            # whatever it was, the message is on disk and must not stay in this hand for ever, nor the probe
            self._lane.done(delivery.message.id)
            self._lane.gate.abandoned()
            raise
        if carrier.session is not None and (carrier.broken or not carrier.session.usable):
            await self._close(carrier)

    async def _close(self, carrier: Carrier) -> None:
        session, carrier.session, carrier.broken = carrier.session, None, False
        if session is not None:
            await session.close()
            self._closed()

    async def _wait(self, seconds: float) -> bool:
        """Idle until there is mail; False when it is time to leave."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        self._idle[waiter] = leaves = loop.time() + seconds
        if self._sweep is None or leaves < self._sweep.when():
            self._sweep_at(leaves)
        try:
            return await waiter
        finally:
            self._idle.pop(waiter, None)

    def _sweep_at(self, when: float) -> None:
        if self._sweep is not None:
            self._sweep.cancel()
        self._sweep = asyncio.get_running_loop().call_at(when, self._send_off)

    def _send_off(self) -> None:
        """Whoever has been idle for so long leaves."""
        self._sweep, now = None, asyncio.get_running_loop().time()
        for waiter, leaves in list(self._idle.items()):
            if leaves <= now + 0.001:
                del self._idle[waiter]
                _let(waiter, go_on=False)
        if self._idle:
            self._sweep_at(min(self._idle.values()))


def _let(waiter: asyncio.Future[bool], *, go_on: bool) -> None:
    if not waiter.done():
        waiter.set_result(go_on)
