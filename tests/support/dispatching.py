"""A dispatcher on a real store, and upstreams inside the process whose every answer a test decides.

What goes over a wire is tested with fake_upstream.py; here it is about order, waiting and failing.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

from relayd.config.models import Match, Route, Spool
from relayd.core.ids import MessageId
from relayd.core.lifecycle import OnUncertain, Outcome, OutcomeKind, Stage, State
from relayd.core.mail import Envelope, Recipient
from relayd.core.reply import Reply
from relayd.core.retry import parse_schedule
from relayd.core.session import ConnectFailedError, Outgoing, Sent
from relayd.delivery.budget import BudgetBook
from relayd.delivery.dispatch import Dispatcher
from relayd.delivery.dkim import Signer, SigningPool
from relayd.delivery.line import Plan, UpstreamPlan
from relayd.delivery.routing import RouteTable
from relayd.delivery.settle import Policy
from relayd.delivery.standings import StandingBook
from relayd.delivery.steering import Steering
from relayd.intake.memory import MemoryBudget
from relayd.spool.budgets import BudgetStore
from relayd.spool.filter import QueueFilter
from relayd.spool.sqlite import SqliteStore
from relayd.spool.state import StateDB
from relayd.spool.store import Delivery, Settlement, Store, Waiting
from tests.support.clock import Clock
from tests.support.mail import CONTENT, make_message

PATIENCE = 60.0
"""Seconds after which something that does not come true fails the test: more than the slowest machine needs."""


async def until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Let the loop run until something holds. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - the parts under test ring no bell for tests
            await asyncio.sleep(0.001)


TAKEN = Outcome(OutcomeKind.DELIVERED, Stage.DOT, Reply(250, "2.0.0", "Ok"), "delivered")
LATER = Outcome(OutcomeKind.DEFERRED, Stage.RCPT, Reply(450, "4.2.1", "Later"), "unknown")
NEVER = Outcome(OutcomeKind.REJECTED, Stage.RCPT, Reply(550, "5.1.1", "Nobody here"), "unknown")
SILENCE = Outcome(OutcomeKind.UNCERTAIN, Stage.DOT, Reply(451, "4.4.2", "No answer"), "unknown")
NOT_YOU = Outcome(OutcomeKind.TROUBLE, Stage.MAIL, Reply(550, "5.7.1", "Sender not allowed"), "unknown")
QUOTA = Outcome(OutcomeKind.TROUBLE, Stage.RCPT, Reply(550, "5.4.5", "Daily quota exceeded"), "unknown")
NO_LINE = Outcome(OutcomeKind.TROUBLE, Stage.CONNECT, Reply(451, "4.4.1", "Connection refused"), "unknown")

Choice = str | list[str] | dict[str, int]
Answer = Callable[[Outgoing], Sequence[Outcome] | Awaitable[Sequence[Outcome]]]


class ScriptedUpstream:
    """A Connector and what it was given. `answer` says what becomes of each transaction."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.answer: Answer = lambda mail: [TAKEN] * len(mail.recipients)
        self.refuses: Outcome | None = None
        """Opening a session fails with this."""
        self.transactions: list[Outgoing] = []
        self.accepted: Counter[tuple[str, str]] = Counter()
        """How often the whole mail arrived here, by id and recipient: taken, or nobody knows."""
        self.open_now = 0
        self.most_open = 0
        self.probe_error: Exception | None = None

    async def open(self) -> ScriptedSession:
        await asyncio.sleep(0)
        if self.refuses is not None:
            raise ConnectFailedError(self.refuses, "", "nowhere:0")
        self.open_now += 1
        self.most_open = max(self.most_open, self.open_now)
        return ScriptedSession(self)


class ScriptedSession:
    """See relayd/core/session.py."""

    endpoint = "here:25"
    tls: str | None = None

    def __init__(self, upstream: ScriptedUpstream) -> None:
        self.sent = 0
        self.in_doubt: Sent | None = None
        self._upstream = upstream
        self._open = True

    @property
    def usable(self) -> bool:
        return self._open

    async def send(self, mail: Outgoing) -> Sent:
        self.sent += 1
        upstream = self._upstream
        upstream.transactions.append(mail)
        answer = upstream.answer(mail)
        outcomes = tuple(answer if isinstance(answer, Sequence) else await answer)
        for recipient, outcome in zip(mail.recipients, outcomes, strict=True):
            if outcome.kind in (OutcomeKind.DELIVERED, OutcomeKind.UNCERTAIN):
                upstream.accepted[mail.id, recipient.address] += 1
        return Sent(outcomes, outcomes[-1].stage, str(outcomes[-1].reply), None, dsn=False)

    async def probe(self) -> bool:
        if self._upstream.probe_error is not None:
            raise self._upstream.probe_error
        return self._open

    async def close(self) -> None:
        if self._open:
            self._open = False
            self._upstream.open_now -= 1


class Watcher:
    """A DeliveryObserver that counts."""

    def __init__(self) -> None:
        self.connections_now: Counter[str] = Counter()
        self.paused_now: dict[str, bool] = {}
        self.suspended_now: dict[str, bool] = {}
        self.upstream_events: list[tuple[str, str]] = []

    def attempt(self, upstream: str, seconds: float) -> None:
        pass

    def connections(self, upstream: str, change: int) -> None:
        self.connections_now[upstream] += change

    def connect_failed(self, upstream: str, cls: str) -> None:
        pass

    def paused(self, upstream: str, paused: bool) -> None:
        self.paused_now[upstream] = paused

    def suspended(self, upstream: str, suspended: bool) -> None:
        self.suspended_now[upstream] = suspended

    def upstream_event(self, upstream: str, event: str) -> None:
        self.upstream_events.append((upstream, event))

    def report(self, kind: str) -> None:
        pass


class TrickyStore:
    """The real store, save that tests decide about settlements: `before` may wait or raise."""

    def __init__(self, store: SqliteStore) -> None:
        self.real = store
        self.before: Callable[[Settlement], Awaitable[None]] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._newest: dict[int, asyncio.Task[None]] = {}

    def __getattr__(self, name: str) -> object:
        return getattr(self.real, name)

    async def written(self) -> None:
        """Wait until nothing is being written."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def settle(self, settlement: Settlement) -> asyncio.Future[None]:
        if self.before is None:
            return self.real.settle(settlement)
        before, earlier = self.before, self._newest.get(settlement.message)

        async def settled() -> None:
            if earlier is not None:
                # the real one writes what belongs to one message in the order in which it came
                await asyncio.wait([earlier])
            await before(settlement)
            await self.real.settle(settlement)

        task = asyncio.create_task(settled(), name="tricky settle")
        self._tasks.add(task)
        self._newest[settlement.message] = task
        task.add_done_callback(self._tasks.discard)
        return task


class World:
    """One worker's delivery on a spool in `directory`, with a clock that is moved by hand."""

    def __init__(self, directory: Path, clock: Clock | None = None) -> None:
        self.directory = directory
        self.clock = clock or Clock()
        self.upstreams: dict[str, ScriptedUpstream] = {}
        self.watcher = Watcher()
        self.permits = StateDB(directory / "permits.db")
        self.memory = MemoryBudget(1 << 24)
        self.lifetime = 5 * 86_400_000
        self.on_uncertain = OnUncertain.RETRY
        self.settings: dict[str, dict[str, object]] = {}
        """Fields of UpstreamPlan, by upstream."""
        self.owed = 0
        self.state: StateDB | None = None
        self.overflows: dict[str, str] = {}

    def upstream(self, name: str) -> ScriptedUpstream:
        """The upstream of this name, made at the first mention."""
        return self.upstreams.setdefault(name, ScriptedUpstream(name))

    def plan(self, routes: Mapping[str, Choice] | str, *names: str, window: int = 100) -> Plan:
        """`routes`: recipient domain → upstreams, in order; or one upstream for all. `names`: others beside those."""
        table = [
            Route(match=None if domain == "*" else Match(recipient_domain=domain), upstream=name)
            for domain, name in ({"*": routes} if isinstance(routes, str) else routes).items()
        ]
        upstreams = {}
        for name in (*(name for route in table for name in route.upstreams), *names):
            facts: dict[str, object] = {"connections": 4, "recipients": 100, "identity": name}
            facts |= self.settings.get(name, {})
            upstreams[name] = UpstreamPlan(
                name,
                self.upstream(name),
                on_uncertain=self.on_uncertain,
                **facts,  # type: ignore[arg-type]
            )
        policy = Policy(parse_schedule("1m, 5m*"), self.lifetime, 0, notify=True, held_lifetime=6 * self.lifetime)
        return Plan(upstreams, RouteTable(table, self.overflows), SigningPool(Signer([], self.clock)), policy, window)

    async def open(self, plan: Plan) -> None:
        """Start on what is on disk."""
        self.store = SqliteStore(self.directory / "spool", 0, 1, Spool(), self.clock)
        await self.store.open()
        self.tricky = TrickyStore(self.store)
        run = self.directory / "run"
        run.mkdir(exist_ok=True)
        self.current = plan
        self.standings = StandingBook(self.state, self.watcher, self.clock)
        await self.permits.close()
        await self.permits.open()
        self.budgets = BudgetBook(BudgetStore(self.permits), self.clock, 1)
        self.dispatcher = Dispatcher(
            cast("Store", self.tricky),
            self.memory,
            plan,
            observer=self.watcher,
            clock=self.clock,
            owed=self._owe,
            standings=self.standings,
            run_dir=run,
            budgets=self.budgets,
        )
        self.steering = Steering(cast("Store", self.tricky), self.dispatcher, plan.policy, self.clock, self._owe)
        await self.standings.start()
        await self.dispatcher.start()

    def _owe(self) -> None:
        self.owed += 1

    async def reload(self, plan: Plan) -> None:
        """Take another plan."""
        self.current = plan
        await self.dispatcher.apply(plan)

    async def close(self, seconds: float = 5) -> None:
        """Stop in good order."""
        await self.dispatcher.stop(asyncio.get_running_loop().time() + seconds)
        await self.store.close()
        await self.permits.close()

    async def die(self) -> None:
        """Be gone like after kill -9, as far as that can be played: what is leased is not handed back."""
        await self.permits.close()
        await self.close(0)

    def look(self) -> None:
        """What real time does where the clock is moved by hand."""
        self.dispatcher.wake_all()
        for line in self.dispatcher._lines.values():
            line.crew.all_ready()

    def calm(self) -> bool:
        """Nothing happens any more until the clock is moved: no mail is left that may go out."""
        if self.dispatcher.in_hand():
            return False
        for line in self.dispatcher._lines.values():
            lane, budget = line.lane, line.lane.budget
            if budget is not None and budget._asking is not None:
                return False
            if budget is not None and lane.has_mail and not budget.closed(lane.turns.urgency):
                return False
            few = lane._stored_most // 4
            feeds = any(turn.next_due <= self.clock() and len(turn.stored) <= few for turn in lane.turns.all)
            if (budget is None and lane.has_mail) or feeds or lane._changed is not None:
                return False
        return True

    async def accept(
        self,
        *addresses: str,
        sender: str = "shop@example.com",
        push: bool = True,
        urgency: int = 0,
        content: bytes = CONTENT,
    ) -> MessageId:
        """Keep a mail and hand it on, as intake does."""
        number, now = self.store.mint(), self.clock()
        message = make_message(number, envelope=Envelope(sender), accepted_at=now, priority=urgency, content=content)
        waiting = []
        for n, address in enumerate(addresses):
            recipient = Recipient(address)
            lane = self.current.table.upstream_for(message, recipient) or ""
            waiting.append(Waiting(n, recipient, lane, due=self.clock()))
        await self.store.accept(message, waiting, content)
        if push:
            for lane in dict.fromkeys(w.lane for w in waiting):
                part = tuple(w for w in waiting if w.lane == lane)
                self.dispatcher.push(Delivery(message, part, content))
        return message.id

    async def states(self, message: MessageId) -> list[State]:
        """How each recipient stands."""
        return [waiting.state for waiting in (await self.store.history(message)).recipients]

    async def waiting(self) -> list[Waiting]:
        """Every recipient that is not final."""
        return [w for d in await self.store.select(QueueFilter(), 10_000) for w in d.recipients]

    async def settled(self, *messages: MessageId, state: State = State.DELIVERED) -> None:
        """Wait until all recipients of these messages have a state."""
        async with asyncio.timeout(PATIENCE):
            for message in messages:
                while set(await self.states(message)) != {state}:  # noqa: ASYNC110
                    await asyncio.sleep(0.002)
