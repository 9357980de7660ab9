"""A worker's delivery lived through at random: outcomes, reloads, acts, restarts and clocks; then everything must fit.

Each seed is a whole life. What the upstreams saw is compared with what the spool says.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from relayd.core.event import EventKind
from relayd.core.ids import MessageId, format_id
from relayd.core.lifecycle import Act, OnUncertain, Outcome, OutcomeKind, State
from relayd.core.permits import Kind, Share, Window
from relayd.core.session import Outgoing
from relayd.delivery import lanes, rerouting, writing
from relayd.delivery.line import Plan
from relayd.spool.filter import QueueFilter
from relayd.spool.schema import FINAL_EVENT
from relayd.spool.store import Settlement, StoreError
from tests.support.dispatching import LATER, NEVER, NO_LINE, NOT_YOU, QUOTA, SILENCE, TAKEN, World, until

STEPS = 120
BUDGETS = (
    Share("all", Kind.MESSAGES, (Window(40, 60_000),)),
    Share("all", Kind.RECIPIENTS, (Window(60, 60_000),)),
)
DOMAINS = ("a.example", "b.example", "c.example")
NAMES = ("one", "two", "three")
OUTCOMES = (TAKEN, TAKEN, TAKEN, LATER, LATER, NEVER, SILENCE, NOT_YOU, QUOTA)


@dataclass
class Life:
    """What has happened so far."""

    world: World
    chance: random.Random
    mails: dict[MessageId, tuple[str, ...]] = field(default_factory=dict)
    unsure: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Arrivals of which the upstream gave no sign, by id and recipient."""
    calm: bool = False
    """The disk fails no more for the moment."""
    kind: bool = False
    """From now on everything is taken."""

    def plan(self) -> Plan:
        chance = self.chance
        used = chance.sample(NAMES, chance.randint(1, 3))
        for name in NAMES:
            self.world.settings[name] = {
                "connections": chance.randint(1, 5),
                "recipients": chance.choice([1, 2, 100]),
                "identity": chance.choice([name, f"{name} anew"]),
                "shares": chance.choice([(), BUDGETS]),
            }
        routes = {domain: chance.choice(used) for domain in chance.sample(DOMAINS, chance.randint(0, 3))}
        plan = self.world.plan({**routes, "*": chance.choice(used)}, *used, window=chance.choice([3, 10, 100]))
        for name in NAMES:
            self.world.upstream(name).answer = self.answer
        return plan

    async def answer(self, mail: Outgoing) -> Sequence[Outcome]:
        for _ in range(self.chance.choice([0, 0, 1, 3, 20])):
            await asyncio.sleep(0.001)
        if self.kind:
            return [TAKEN] * len(mail.recipients)
        first = self.chance.choice(OUTCOMES)
        if first in (SILENCE, NOT_YOU):
            outcomes = [first] * len(mail.recipients)
        else:
            outcomes = [self.chance.choice((first, TAKEN)) for _ in mail.recipients]
        for recipient, outcome in zip(mail.recipients, outcomes, strict=True):
            if outcome.kind is OutcomeKind.UNCERTAIN:
                self.unsure[mail.id, recipient.address] += 1
        return outcomes

    async def trouble_on_disk(self, settlement: Settlement) -> None:
        if self.calm:
            return
        await asyncio.sleep(self.chance.choice([0, 0, 0.001, 0.01]))
        if not (self.kind or self.calm) and self.chance.random() < 0.05:
            raise StoreError("a passing fault")

    async def step(self) -> None:
        world, chance = self.world, self.chance
        roll = chance.random()
        if roll < 0.6:
            number = len(self.mails)
            count = chance.choice([1, 1, 1, 2, 5])
            addresses = tuple(f"r{number}-{n}@{chance.choice(DOMAINS)}" for n in range(count))
            sender = chance.choice(["shop@example.com", "news@example.com", "odd@example.com"])
            message = await world.accept(*addresses, sender=sender, push=chance.random() < 0.8)
            self.mails[message] = addresses
        elif roll < 0.75:
            await self.act()
        elif roll < 0.82:
            await world.reload(self.plan())
        elif roll < 0.86:
            upstream = world.upstream(chance.choice(NAMES))
            upstream.refuses = None if upstream.refuses else NO_LINE
        elif roll < 0.89:
            await self.restart()
        else:
            world.clock.advance(chance.choice([0.1, 5, 60, 400]))
            self.world.look()
        await asyncio.sleep(chance.choice([0, 0, 0.001, 0.005]))

    async def act(self) -> None:
        chance = self.chance
        deed = chance.choice([Act.HOLD, Act.RELEASE, Act.RETRY, Act.FAIL, Act.DELETE])
        some = frozenset(chance.sample(sorted(self.mails), min(len(self.mails), 5)))
        if some:
            wanted = QueueFilter(ids=some, upstream=chance.choice([None, None, *NAMES]))
            acts = [self.world.steering.act(deed, wanted, by="test")]
            if chance.random() < 0.3:
                acts.append(self.world.steering.act(Act.RELEASE, QueueFilter(), by="test"))
            await asyncio.gather(*acts, return_exceptions=True)

    async def restart(self) -> None:
        # a settlement that cannot be written until the end is lost, and its mail sent again: not here, to count exactly
        self.calm = True
        await self.world.tricky.written()
        await asyncio.sleep(0)  # who waited for what failed just now hears of it
        await until(lambda: not self.world.dispatcher._writer._unsettled)
        await self.world.dispatcher.stop(asyncio.get_running_loop().time() + self.chance.choice([0, 1]))
        await self.world.tricky.written()
        await self.world.store.close()
        self.calm = False
        self.check_empty()
        await self.world.open(self.plan())
        self.world.tricky.before = self.trouble_on_disk

    def check_empty(self) -> None:
        assert self.world.memory.used == 0
        assert not +self.world.watcher.connections_now
        assert all(upstream.open_now == 0 for upstream in self.world.upstreams.values())

    async def end(self) -> None:
        """Everything works from now on: all mail must end."""
        self.kind = True
        for upstream in self.world.upstreams.values():
            upstream.refuses = None
        async with asyncio.timeout(60):
            while waiting := await self.world.store.select(QueueFilter(), 10_000):
                self.world.clock.advance(600)
                # only these: what is claimed again and again comes to nobody's hand where the disk is slow
                if held := frozenset(
                    each.message.id for each in waiting if any(w.due is None for w in each.recipients)
                ):
                    await self.world.steering.act(Act.RELEASE, QueueFilter(ids=held), by="test")
                self.world.look()
                await asyncio.sleep(0.02)
        await until(lambda: self.world.dispatcher.in_hand() == 0)

    async def check(self) -> None:
        """What upstreams saw, what the events tell and how recipients stand must be one story."""
        arrived: Counter[tuple[str, str]] = Counter()
        for upstream in self.world.upstreams.values():
            arrived += upstream.accepted
        for message, addresses in self.mails.items():
            history = await self.world.store.history(message)
            assert [waiting.recipient.address for waiting in history.recipients] == list(addresses)
            for waiting in history.recipients:
                events = [event for event in history.events if event.n == waiting.n]
                final = [FINAL_EVENT[event.kind] for event in events if event.kind in FINAL_EVENT]
                assert final == [waiting.state]
                key = format_id(message), waiting.recipient.address
                sure = arrived[key] - self.unsure[key]
                if sure != (1 if waiting.state is State.DELIVERED else 0):
                    told = [f"{event.at} n={event.n} {event.kind} {event.detail}" for event in history.events]
                    sent = [
                        f"{name}: {[r.address for r in mail.recipients]}"
                        for name, upstream in self.world.upstreams.items()
                        for mail in upstream.transactions
                        if mail.id == key[0]
                    ]
                    pytest.fail("\n".join([f"{key} arrived {arrived[key]} times", *told, *sent]))
                counted = [
                    event
                    for event in events
                    if event.kind in (EventKind.DEFERRED, EventKind.UNCERTAIN, EventKind.DELIVERED, EventKind.BOUNCED)
                    and not event.detail.get("upstream_trouble")
                    and "by" not in event.detail
                ]
                # a move on a failing disk that meets with the walk after a reload may forget one
                assert 0 <= len(counted) - waiting.attempts <= 1, (
                    key,
                    waiting.attempts,
                    [(str(e.kind), {k: e.detail.get(k) for k in ("attempt", "reply", "by")}) for e in events],
                )


@pytest.mark.parametrize("seed", [*range(6), 102, 106])
@pytest.mark.parametrize("policy", OnUncertain)
async def test_every_recipient_ends_as_the_upstreams_saw_it(
    seed: int, policy: OnUncertain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "WRITE_AGAIN", 0.002)
    monkeypatch.setattr(rerouting, "AGAIN", 0.01)
    monkeypatch.setattr(lanes, "FEED_RETRY", 0.01)
    life = Life(World(tmp_path), random.Random(seed))
    life.world.on_uncertain = policy
    await life.world.open(life.plan())
    life.world.tricky.before = life.trouble_on_disk
    for _ in range(STEPS):
        await life.step()
    await life.end()
    await life.check()
    await life.world.close()
    life.check_empty()
