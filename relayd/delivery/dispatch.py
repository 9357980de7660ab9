"""Delivery of one worker: its upstreams come and go with the configuration, and others ask about what they do.

What happens to one delivery is attempt.py's; here lanes, crews and gates are put together and taken apart.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from relayd.core.blocking import Block
from relayd.core.ids import MessageId
from relayd.core.mail import Message, upstream_of
from relayd.core.units import Millis
from relayd.delivery.attempt import Attempts
from relayd.delivery.budget import BudgetBook
from relayd.delivery.crew import Crew
from relayd.delivery.lanes import Lane
from relayd.delivery.line import Line, Plan, UpstreamPlan
from relayd.delivery.moving import Moving, settled
from relayd.delivery.observer import DeliveryObserver
from relayd.delivery.pace import Pace
from relayd.delivery.rerouting import Rerouting
from relayd.delivery.slots import ConnectionSlots
from relayd.delivery.standings import StandingBook
from relayd.delivery.storm import StormGuard, StormRule
from relayd.delivery.writing import Writer
from relayd.intake.memory import MemoryBudget
from relayd.spool.store import Delivery, Store, Waiting

_LEAVE = 900.0
"""Seconds for what a removed upstream has in hand."""


_DAY: Millis = 86_400_000
"""Overflow stands in for budgets of this span or longer; shorter ones are waited for."""


def _never(message: Message, address: str) -> Block | None:
    """Nobody is blocked."""
    return None


class Dispatcher:
    """Delivery of one worker. All methods are called on its event loop."""

    def __init__(
        self,
        store: Store,
        memory: MemoryBudget,
        plan: Plan,
        *,
        observer: DeliveryObserver,
        clock: Callable[[], Millis],
        owed: Callable[[], None],
        blocked: Callable[[Message, str], Block | None] = _never,
        standings: StandingBook | None = None,
        run_dir: Path,
        slot: int = 0,
        slots: int = 1,
        budgets: BudgetBook | None = None,
    ) -> None:
        """Without `budgets` nothing is limited over time."""
        self._store = store
        self._memory = memory
        self._plan = plan
        self._observer = observer
        self._clock = clock
        self._run_dir = run_dir
        self._slot, self._slots = slot, slots
        self._budgets = budgets
        self._lines: dict[str, Line] = {}
        self._leaving: dict[str, tuple[Line, asyncio.Task[None]]] = {}
        """Upstreams that the configuration has no more, until their hands are empty."""
        self._claimed: set[MessageId] = set()
        self._rerouting = Rerouting(store, self, clock)
        self._random = random.Random()  # noqa: S311 - jitter, not secrecy
        self.standings = standings if standings is not None else StandingBook(None, observer, clock)
        self._writer = Writer(
            store, plan.policy, observer=observer, clock=clock, owed=owed, wake=self.wake, rng=self._random
        )
        self._attempts = Attempts(
            store,
            plan,
            self._writer,
            choose=self.choose,
            observer=observer,
            clock=clock,
            blocked=blocked,
            rng=self._random,
            memory=memory,
        )
        self._writer.choose, self._writer.other = self.choose, self.other
        self._moving = Moving(self._lines, self._attempts, self.standings.unavailable, self.choose, self._shared)
        self.standings.changed = self._moving.changed
        self.standings.exhausted = self._exhausted
        plan.table.standing = self.standings.unavailable

    # -- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to deliver what is due; beside that, look for mail in lanes that no upstream has any more."""
        for plan in self._plan.upstreams.values():
            self._add(plan)
        self._rerouting.start()
        self._moving.start()

    async def apply(self, plan: Plan) -> None:
        """Deliver by another configuration from now on; what is in hand is finished first.

        Nothing in here waits or can fail half-way: walking over the queue goes on beside the deliveries.
        """
        plan.table.standing = self.standings.unavailable
        self._plan, old = plan, self._plan
        self._attempts.plan, self._writer.policy = plan, plan.policy
        old.signing.close()
        rerouted = plan.table.routes != old.table.routes
        for name in [name for name in self._lines if name not in plan.upstreams]:
            self._leave(name)
        for upstream in plan.upstreams.values():
            line = self._lines.get(upstream.name) or self._back(upstream.name)
            if line is None:
                self._add(upstream)
            else:
                self._change(line, upstream)
                if rerouted:
                    line.lane.clear()
        self._rerouting.begin(everything=rerouted)
        self._moving.changed()

    async def stop(self, deadline: float) -> None:
        """Finish what is in hand until `deadline` (loop time), then let go."""
        leaving = list(self._leaving.values())
        for _, task in leaving:
            task.cancel()
        await asyncio.gather(
            self._rerouting.stop(), self._moving.stop(), *(task for _, task in leaving), return_exceptions=True
        )
        lines = [*self._lines.values(), *(line for line, _ in leaving)]
        await asyncio.gather(*(line.crew.stop(deadline) for line in lines))
        await asyncio.gather(*(line.lane.stop() for line in lines))
        self._lines.clear()
        self._leaving.clear()
        await self._writer.stop()
        if self._budgets is not None:
            await self._budgets.stop()
        self._plan.signing.close()

    def _share(self, plan: UpstreamPlan) -> ConnectionSlots:
        return ConnectionSlots(self._run_dir, quote(plan.name, safe="@"), plan.connections, self._slot, self._slots)

    def _add(self, plan: UpstreamPlan) -> None:
        lane = Lane(plan.name, self._store, self._memory, self._clock, window=self._plan.window, ready=self._ready)
        line = self._lines[plan.name] = Line(lane, plan, self._observer, self._random, self.standings)
        self._guard(line)
        closed = partial(self._observer.connections, plan.name, -1)
        share = self._share(plan)
        line.pace = Pace(share.most, plan.first or share.most)
        line.crew = Crew(lane, share, partial(self._attempts.carry, line), self._clock, closed, pace=line.pace)
        self._limit(line)
        self._begin(line)

    def _guard(self, line: Line) -> None:
        """Each worker sees its part of a storm, and judges by its part of the rule."""
        rule = line.plan.storm
        if rule is None:
            line.guard = None
        else:
            line.guard = StormGuard(StormRule(max(-(-rule.replies // self._slots), 1), rule.within))

    def _limit(self, line: Line) -> None:
        """Give a line the budgets of its plan."""
        if line.lane.budget is not None:
            line.lane.budget.apply(line.plan.shares)
        elif line.plan.shares and self._budgets is not None:
            crew, lane = line.crew, line.lane
            lane.budget = self._budgets.open(lane.name, line.plan.shares, crew.call, lane.wants_budget)

    def _exhausted(self, lane: str) -> str | None:
        """Which budget of a day is used up in this lane, if any: overflow stands in then."""
        line = self._lines.get(lane)
        if line is None or line.lane.budget is None:
            return None
        found = line.lane.budget.exhausted(_DAY)
        return None if found is None else f"the budget of {found.window.count} is used up"

    def _shared(self, lane: str) -> bool:
        return self._plan.table.shared(upstream_of(lane))

    def _begin(self, line: Line) -> None:
        for message in self._claimed:
            line.lane.claim(message)
        self.standings.know(line.lane.name, line)
        line.lane.start()

    def _change(self, line: Line, plan: UpstreamPlan) -> None:
        """Take over another plan for an upstream."""
        old, line.plan = line.plan, plan
        if plan.storm != old.storm:
            self._guard(line)
        line.lane.resize(self._plan.window)
        if plan.connections != old.connections:
            line.crew.resize(self._share(plan))
        if plan.shares != old.shares:
            self._limit(line)
        if plan.identity != old.identity:
            line.crew.renew()
            if line.gate.paused:
                self._end_pause(line)
        line.crew.all_ready()

    def try_now(self, lane: str) -> bool:
        """A login that works again elsewhere is tried here at once; False where nothing had paused it."""
        line = self._lines.get(lane)
        if line is None or not line.lane.gate.paused:
            return False
        self._end_pause(line)
        self.wake(lane, self._clock())
        line.crew.all_ready()
        return True

    def put_off(self, lane: str) -> frozenset[MessageId]:
        """Messages that its trouble has put off; they are forgotten here."""
        line = self._lines.get(lane)
        if line is None:
            return frozenset()
        found, line.put_off = frozenset(line.put_off), set()
        return found

    def _end_pause(self, line: Line) -> None:
        line.gate.end_pause()
        self.standings.try_now(line.lane.name)

    def _leave(self, name: str) -> None:
        """The configuration has this upstream no more: it takes no new mail, and goes when its hands are empty."""
        line = self._lines.pop(name)
        self.standings.forget(name)
        task = asyncio.create_task(self._see_off(line), name=f"leave {name}")
        self._leaving[name] = line, task

    async def _see_off(self, line: Line) -> None:
        await line.lane.stop()
        await line.crew.stop(asyncio.get_running_loop().time() + _LEAVE)
        await line.lane.landed()
        if self._budgets is not None:
            await self._budgets.drop(line.plan.name)
        if line.lane.gate.paused:
            self._observer.paused(line.plan.name, False)
        del self._leaving[line.plan.name]
        self._rerouting.begin(everything=False)

    def _back(self, name: str) -> Line | None:
        """An upstream that was about to leave is wanted again: it knows what it has in hand, a new one would not."""
        line, task = self._leaving.pop(name, (None, None))
        if line is None or task is None:
            return None
        task.cancel()
        self._lines[name] = line
        self._begin(line)
        line.crew.resume()
        return line

    # -- what others ask ------------------------------------------------------------------------------------------

    def push(self, delivery: Delivery) -> None:
        """Fresh mail, kept on disk: all its recipients are of one lane."""
        line = self._lines.get(delivery.recipients[0].lane)
        if line is not None:
            line.lane.push(delivery)
        else:
            # accepted by a configuration that was replaced while the mail was written
            self._rerouting.begin(everything=False)

    def claim(self, message: MessageId) -> bool:
        """Take a message out of memory so that it can be changed; False while somebody sends or changes it."""
        if message in self._claimed or self.busy(message):
            return False
        self._claimed.add(message)
        for line in self._lines.values():
            line.lane.claim(message)
        return True

    def unclaim(self, message: MessageId) -> None:
        """The change is on disk. Whoever changed it wakes the lanes that it waits in."""
        self._claimed.discard(message)
        for line in self._lines.values():
            line.lane.unclaim(message)

    def busy(self, message: MessageId) -> bool:
        """Is a carrier sending it, or what became of it not written yet?"""
        lines = [*self._lines.values(), *(line for line, _ in self._leaving.values())]
        return any(line.lane.has_in_hand(message) for line in lines)

    def living(self, lane: str) -> bool:
        """Is there an upstream of this name?"""
        return lane in self._lines

    def wake(self, lane: str, when: Millis, message: MessageId | None = None) -> None:
        """Something in the store became due in this lane, maybe of this message."""
        line = self._lines.get(lane)
        if line is not None:
            line.lane.due_at(when, message)
        elif lane:
            self._rerouting.begin(everything=False)

    def wake_all(self) -> None:
        """Anything may have become due anywhere."""
        for line in self._lines.values():
            line.lane.look()

    def lanes(self) -> list[str]:
        """Every lane at work."""
        return list(self._lines)

    def in_hand(self) -> int:
        """Deliveries that are being sent now."""
        return sum(line.lane.flying for line in self._lines.values())

    def standing(self) -> dict[str, dict[str, Any]]:
        """Each upstream's standing, for `relayd status` and `relayd upstream list`."""
        now = self._clock()
        return {
            name: {
                "paused": line.lane.gate.paused,
                "reason": line.lane.gate.reason,
                "since": line.lane.gate.since if line.lane.gate.paused else 0,
                "next_probe": line.lane.gate.paused_until,
                "suspended": line.lane.gate.shut,
                "in_memory": len(line.lane),
                "sending": line.lane.flying,
                "connections": line.crew.connections,
                "endpoint": line.crew.endpoint,
                "throughput": line.throughput.per_minute(now),
                "waits_for": None if line.lane.budget is None else line.lane.budget.waits_for(),
                "allowed": line.pace.allowed,
            }
            for name, line in self._lines.items()
        }

    def choose(self, message: Message, waiting: Waiting, *, keep: bool = False) -> str:
        """The lane that a recipient belongs in now, with `keep` the one that it is in if that may be; "" for none."""
        keep = keep or settled(waiting)
        lane = self._plan.table.upstream_for(message, waiting.recipient, waiting.lane, keep=keep)
        return lane or ""

    def other(self, message: Message, waiting: Waiting) -> str | None:
        """Another lane for a recipient than the one that it is in; None where no other can be used."""
        return self._plan.table.other_than(waiting.lane, message, waiting.recipient)

    def _ready(self, lane: Lane) -> None:
        line = self._lines.get(lane.name)
        if line is not None:
            line.crew.ready()
            if line.gate.paused or line.gate.shut or lane.budget is not None:
                self._moving.arrived(lane.name)
