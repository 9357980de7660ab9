"""The store against a model that is a dict: whatever is done in whatever order, with restarts in between."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import replace
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from relayd.config.models import Spool
from relayd.core.event import Event, EventKind
from relayd.core.feedback import FeedbackKind
from relayd.core.ids import MessageId
from relayd.core.lifecycle import State, learn
from relayd.core.mail import Message
from relayd.spool.audit import audit
from relayd.spool.filter import QueueFilter
from relayd.spool.sqlite import SqliteStore
from relayd.spool.store import Amended, Amendment, Notice, Settlement, Waiting
from tests.support.clock import Clock
from tests.support.mail import make_change, make_message, make_waiting

LANES = st.sampled_from(["acme", "other", ""])
AFTER = st.sampled_from([State.DEFERRED, State.UNCERTAIN, State.HELD, State.DELIVERED, State.BOUNCED, State.DELETED])


class SpoolMachine(RuleBasedStateMachine):
    """Each rule does the same to store and model; the invariant compares all that can be asked."""

    messages = Bundle("messages")

    @initialize(memory=st.just(Path("/dev/shm")))
    def begin(self, memory: Path) -> None:
        self.folder = tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)
        self.directory = Path(self.folder.name) / "spool"
        self.loop = asyncio.new_event_loop()
        self.clock = Clock()
        self.heard: list[Event] = []
        self.kept: dict[MessageId, tuple[Message, bytes]] = {}
        self.recipients: dict[MessageId, list[Waiting]] = {}
        self.facts: dict[MessageId, list[tuple[int, EventKind]]] = {}
        self.known: set[str] = set()
        self.open()

    def open(self) -> None:
        # small segments, so that rollover is part of every run
        self.store = SqliteStore(self.directory, 0, 1, Spool(segment=60.0), self.clock)
        self.loop.run_until_complete(self.store.open())
        self.store.subscribe(self.heard.extend)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.loop.run_until_complete(self.store.close())
            report = audit(self.directory)
            assert report.clean, report.discrepancies
            assert report.accepted == sum(len(each) for each in self.recipients.values())
            self.loop.close()
            self.folder.cleanup()

    @rule(seconds=st.sampled_from([0.0, 0.001, 30.0, 61.0, -45.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(
        target=messages,
        shapes=st.lists(
            st.lists(st.tuples(LANES, st.booleans(), st.integers(-50, 50)), min_size=1, max_size=3),
            min_size=1,
            max_size=4,
        ),
    )
    def accept(self, shapes: list[list[tuple[str, bool, int]]]) -> object:
        """Several messages that meet in one commit."""
        waits = []
        new = []

        async def all_of_it() -> None:
            for shape in shapes:
                message = make_message(self.store.mint(), content=b"x" * len(new))
                recipients = [
                    make_waiting(n, lane=lane, state=State.HELD if held else State.QUEUED, due=self.clock.now + offset)
                    for n, (lane, held, offset) in enumerate(shape)
                ]
                content = b"x" * len(new)
                waits.append(self.store.accept(message, recipients, content))
                new.append(message.id)
                self.kept[message.id] = (message, content)
                self.recipients[message.id] = recipients
                self.facts[message.id] = [(waiting.n, EventKind.ACCEPTED) for waiting in recipients]
            await asyncio.gather(*waits)

        self.loop.run_until_complete(all_of_it())
        return multiple(*new)

    @rule(
        acts=st.lists(st.tuples(messages, AFTER, st.integers(-50, 50), st.booleans()), min_size=1, max_size=4),
        n=st.integers(0, 2),
    )
    def settle(self, acts: list[tuple[MessageId, State, int, bool]], n: int) -> None:
        """Settlements that meet in one commit, some of them of the same recipient."""
        waits = []

        async def all_of_it() -> None:
            for number, state, offset, owes in acts:
                message, _ = self.kept[number]
                recipients = self.recipients[number]
                place = n % len(recipients)
                due = self.clock.now + offset if state in (State.DEFERRED, State.UNCERTAIN) else None
                if state is State.UNCERTAIN and owes:
                    due = None
                change = make_change(
                    message,
                    recipients[place],
                    state,
                    due=due,
                    at=self.clock.now,
                    notice=Notice.FAILURE if owes else None,
                )
                waits.append(self.store.settle(Settlement(number, (change,))))
                if not recipients[place].state.final:
                    # what is owed stays owed until it is made
                    owed = change.after.notice or recipients[place].notice
                    recipients[place] = replace(change.after, notice=owed)
                    self.facts[number].append((place, change.event.kind))
            await asyncio.gather(*waits)

        self.loop.run_until_complete(all_of_it())

    @rule(number=messages, n=st.integers(0, 2), hard=st.booleans(), stale=st.booleans(), owes=st.booleans())
    def something_comes_back(self, number: MessageId, n: int, hard: bool, stale: bool, owes: bool) -> None:
        """A bounce, by the lifecycle table; perhaps told twice, perhaps decided on a state that is past."""
        message, _ = self.kept[number]
        recipients = self.recipients[number]
        place = n % len(recipients)
        before = recipients[place]
        learned = learn(before.state, FeedbackKind.BOUNCE, "failed" if hard else "delayed", hard=hard)
        change = make_change(
            message,
            before,
            learned.state,
            at=self.clock.now,
            due=None if learned.state.final else before.due,
            kind=learned.event,
            notice=Notice.FAILURE if owes and learned.state is not before.state else None,
            source="bounce",
        )
        key = f"{number} {place} {hard}"
        past = State.EXPIRED if before.state is not State.EXPIRED else State.QUEUED
        if stale and not (past.final and not learned.state.final):
            expected = Amended.KNOWN if key in self.known else Amended.OVERTAKEN
        else:
            past, expected = before.state, Amended.KNOWN if key in self.known else Amended.WRITTEN

        async def amended() -> Amended:
            return await self.store.amend(Amendment(change, past, key))

        assert self.loop.run_until_complete(amended()) is expected
        if expected is Amended.WRITTEN:
            self.known.add(key)
            self.facts[number].append((place, learned.event))
            if learned.state is not before.state:
                recipients[place] = replace(
                    before, state=learned.state, due=None, notice=change.after.notice or before.notice
                )

    @rule(number=messages)
    def make_reports(self, number: MessageId) -> None:
        async def all_of_them() -> None:
            await self.store.noticed(number, range(3))

        self.loop.run_until_complete(all_of_them())
        self.recipients[number] = [replace(waiting, notice=None) for waiting in self.recipients[number]]

    @rule(old=LANES, new=LANES, skip=st.sets(messages, max_size=2))
    def relane(self, old: str, new: str, skip: set[MessageId]) -> None:
        def choose(message: Message, recipient: object) -> str:
            return new

        moved = self.loop.run_until_complete(self.store.relane(choose, skip))
        expected = 0
        for number, recipients in self.recipients.items():
            for place, waiting in enumerate(recipients):
                if not waiting.state.final and number not in skip and waiting.lane != new:
                    due = None if waiting.due is None else min(waiting.due, self.clock.now)
                    recipients[place] = replace(waiting, lane=new, due=due)
                    self.facts[number].append((waiting.n, EventKind.MOVED))
                    expected += 1
        assert moved == expected

    @rule()
    def restart(self) -> None:
        self.loop.run_until_complete(self.store.close())
        self.open()

    @rule()
    def retain(self) -> None:
        self.loop.run_until_complete(self.store.retain(self.clock.now))

    @invariant()
    def answers_are_those_of_the_model(self) -> None:
        if hasattr(self, "store"):
            self.loop.run_until_complete(self.compare())

    async def compare(self) -> None:
        now = self.clock.now
        for lane in ("acme", "other", ""):
            due = await self.store.due(lane, now, 1000, ())
            expected = {}
            later = []
            for number, recipients in self.recipients.items():
                mine = [w for w in recipients if w.lane == lane and w.due is not None]
                ready = tuple(w for w in mine if w.due is not None and w.due <= now)
                later += [w.due for w in mine if w.due is not None and w.due > now]
                if ready:
                    expected[number] = ready
            assert {each.message.id: each.recipients for each in due.deliveries} == expected
            order = [min(w.due or 0 for w in each.recipients) for each in due.deliveries]
            assert order == sorted(order)
            assert due.next_due == min(later, default=None)
        assert [(depth.lane, depth.depth) for depth in await self.store.lanes()] == self.depths()
        unfinished = {
            number: tuple(w for w in recipients if not w.state.final) for number, recipients in self.recipients.items()
        }
        found = await self.store.select(QueueFilter(), 1000)
        assert {each.message.id: each.recipients for each in found} == {n: w for n, w in unfinished.items() if w}
        waiting = {
            number: tuple(w for w in some if w.state is not State.HELD)
            for number, some in unfinished.items()
            if any(w.state is not State.HELD for w in some)
        }
        past = await self.store.overdue(now + 10**9, 1000)
        assert {each.message.id: each.recipients for each in past} == waiting
        past = await self.store.undelayed(now + 10**9, 1000)
        assert {each.message.id: each.recipients for each in past} == waiting
        owed = [number for number, some in self.recipients.items() if any(w.notice for w in some)]
        assert sorted(await self.store.owing(1000)) == sorted(owed)
        for number in list(self.kept)[-3:]:
            history = await self.store.history(number)
            assert history.message == self.kept[number][0]
            assert list(history.recipients) == self.recipients[number]
            assert [(event.n, event.kind) for event in history.events] == self.facts[number]
            assert await self.store.content(number) == self.kept[number][1]
        assert len(self.heard) == sum(len(facts) for facts in self.facts.values())

    def depths(self) -> list[tuple[str, int]]:
        counts: dict[str, int] = {}
        for recipients in self.recipients.values():
            for waiting in recipients:
                if waiting.due is not None:
                    counts[waiting.lane] = counts.get(waiting.lane, 0) + 1
        return sorted(counts.items())


TestSpoolMachine = SpoolMachine.TestCase
TestSpoolMachine.settings = settings(
    max_examples=12,
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    # shrinking what fails takes longer than a test may; the steps are printed anyway
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)
