"""Budgets in the whole dispatcher: never above, used well, kept through crashes, and all mail arrives."""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest

from relayd.config.models import Config, SMTPUpstream
from relayd.core.event import EventKind
from relayd.core.ids import MessageId, parse_id
from relayd.core.lifecycle import Act, Outcome, State
from relayd.core.permits import Kind, Share, Window
from relayd.core.session import Outgoing
from relayd.delivery import budget as budgets
from relayd.delivery.allowance import shares_of
from relayd.spool.filter import QueueFilter
from tests.support.clock import START
from tests.support.dispatching import LATER, NEVER, NO_LINE, PATIENCE, TAKEN, World, until
from tests.support.limited import Provider

MINUTE, DAY = 60_000, 86_400_000


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """In memory where possible: these tests commit a lot, and crash no machine."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="relayd-test-", dir=memory) as place:
        yield Path(place)


@pytest.fixture
async def world(directory: Path) -> AsyncIterator[World]:
    world = World(directory)
    yield world
    await world.close()
    assert world.memory.used == 0
    assert not +world.watcher.connections_now


def messages(count: int, span: int = MINUTE, name: str = "acme") -> Share:
    return Share(name, Kind.MESSAGES, (Window(count, span),))


def recipients(count: int, span: int = MINUTE, name: str = "acme") -> Share:
    return Share(name, Kind.RECIPIENTS, (Window(count, span),))


def preset_shares(preset: str, **limits: object) -> tuple[Share, ...]:
    upstream = SMTPUpstream.model_validate({"preset": preset, "username": "u@example.jp", "limits": limits})
    return shares_of(Config.model_construct(upstreams={"acme": upstream}))["acme"]


def limited(world: World, *shares: Share, preset: str = "office365", **facts: object) -> Provider:
    """The upstream acme with these budgets, and a provider behind it that enforces them."""
    provider = Provider.of(shares, world.clock, preset)
    world.settings["acme"] = {"shares": shares, **facts}
    world.upstream("acme").answer = provider.answer
    return provider


async def live(world: World, seconds: float) -> None:
    """Move the clock, stopping where a budget asks to, and let everything happen that then can."""
    end = world.clock.now + round(seconds * 1000)
    while world.clock.now < end:
        lanes = [line.lane for line in world.dispatcher._lines.values()]
        alarms = [lane.budget._refused_until for lane in lanes if lane.budget is not None and lane.has_mail]
        world.clock.now = min([end, *(alarm for alarm in alarms if alarm > world.clock.now)])
        if world.clock.now == end:
            world.look()
        for line in world.dispatcher._lines.values():
            line.crew.all_ready()
        await until(world.calm)


async def accept_many(world: World, count: int) -> list[MessageId]:
    return list(await asyncio.gather(*(world.accept(f"r{n}@example.org") for n in range(count))))


async def events_of(world: World, message: MessageId) -> list[EventKind]:
    return [event.kind for event in (await world.store.history(message)).events]


# -- the figures of the presets


@pytest.mark.timeout(400)
async def test_office365_at_twice_its_budget_for_two_hours(world: World) -> None:
    provider = limited(world, *preset_shares("office365"))
    chance = random.Random(365)
    await world.open(world.plan("acme", window=5000))
    mails: list[MessageId] = []
    for minute in range(120):
        for _ in range(2):
            mails += await accept_many(world, chance.randint(20, 40))
            await live(world, 30)
        assert len(provider.taken[Kind.MESSAGES]) >= 0.95 * 30 * minute
    while await world.waiting():
        await live(world, 300)
    assert len(mails) >= 2 * 30 * 120 * 0.95
    assert provider.refused == 0
    assert len(provider.taken[Kind.MESSAGES]) == len(mails) == len(world.upstreams["acme"].accepted)
    assert provider.most(Kind.MESSAGES, MINUTE) == 30
    assert world.clock.now - START <= (len(mails) / 30 / 0.95 + 5) * MINUTE
    history = await world.store.history(mails[-1])
    assert [event.kind for event in history.events] == [EventKind.ACCEPTED, EventKind.DELIVERED]
    assert len(history.attempts) == 1


@pytest.mark.parametrize(
    ("preset", "limits", "size"),
    # the daily figure of the relay takes long to reach with single recipients: the same in large mails
    [("gmail", {}, 1), ("workspace-relay", {"recipients": "10000/day", "messages": []}, 500)],
)
async def test_two_days_at_twice_a_daily_budget(
    world: World, preset: str, limits: dict[str, object], size: int
) -> None:
    shares = preset_shares(preset, **limits)
    provider = limited(world, *shares, preset=preset, recipients=100)
    kind, window = shares[0].kind, shares[0].windows[0]
    await world.open(world.plan("acme", window=2000))
    mails = 0
    for _ in range(24):
        for _ in range(window.count * 4 // size // 24):
            await world.accept(*(f"r{mails}-{n}@example.org" for n in range(size)))
            mails += 1
        await live(world, 7200)
    assert provider.most(kind, DAY) <= window.count
    assert len(provider.taken[kind]) >= 0.95 * 2 * window.count
    while await world.waiting():
        await live(world, 7200)
    assert provider.refused == 0
    assert sum(world.upstreams["acme"].accepted.values()) == mails * size


# -- what counts


async def test_mail_over_the_budget_waits_untouched_and_survives_a_restart(world: World) -> None:
    limited(world, messages(3, DAY))
    await world.open(world.plan("acme"))
    mails = await accept_many(world, 5)
    await until(world.calm)
    states = [(await world.states(mail))[0] for mail in mails]
    assert states.count(State.DELIVERED) == 3
    waiting = mails[states.index(State.QUEUED)]
    budget = world.dispatcher._lines["acme"].lane.budget
    assert budget is not None
    assert budget.refusal is not None
    assert budget.refusal.free_at == START + DAY + 1
    await world.close()
    await world.open(world.plan("acme"))
    world.look()
    await until(world.calm)
    history = await world.store.history(waiting)
    assert (await world.states(waiting), history.attempts) == ([State.QUEUED], ())
    assert await events_of(world, waiting) == [EventKind.ACCEPTED]
    await live(world, DAY / 1000 + 1)
    await world.settled(*mails)


async def test_kill_9_gives_nothing_back_and_costs_a_slice_at_most(world: World) -> None:
    provider = limited(world, messages(100))
    await world.open(world.plan("acme"))
    mails = await accept_many(world, 150)
    for _ in range(3):
        await until(lambda: bool(provider.taken[Kind.MESSAGES]))
        await world.die()
        await world.open(world.plan("acme"))
    world.look()
    await until(world.calm)
    taken = len(provider.taken[Kind.MESSAGES])
    assert 100 - 3 * 5 <= taken <= 100
    await live(world, 100)
    await world.settled(*mails)
    assert (provider.refused, provider.most(Kind.MESSAGES, MINUTE)) == (0, taken)


async def test_refused_recipients_and_lost_connections_cost_nothing(world: World) -> None:
    limited(world, messages(2), recipients(4))
    acme = world.upstream("acme")
    acme.answer = lambda mail: [NEVER] * len(mail.recipients)
    acme.refuses = NO_LINE
    await world.open(world.plan("acme"))
    refused = [await world.accept("lost@example.org")]
    await until(lambda: world.watcher.paused_now.get("acme", False))
    acme.refuses = None
    world.clock.advance(30)
    world.look()
    refused += [await world.accept(f"r{n}@example.org") for n in range(7)]
    await world.settled(*refused, state=State.BOUNCED)
    acme.answer = lambda mail: [TAKEN] * len(mail.recipients)
    await world.settled(await world.accept("a@example.org"), await world.accept("b@example.org"))
    third = await world.accept("c@example.org")
    await until(world.calm)
    assert await world.states(third) == [State.QUEUED]


async def test_what_is_refused_behind_the_content_counts(world: World) -> None:
    limited(world, messages(2))

    def refuse(mail: Outgoing) -> Sequence[Outcome]:
        return [Outcome(LATER.kind, budgets.Stage.DOT, LATER.reply)] * len(mail.recipients)

    world.upstream("acme").answer = refuse
    await world.open(world.plan("acme"))
    await accept_many(world, 3)
    await until(world.calm)
    assert len(world.upstreams["acme"].transactions) == 2


async def test_a_mail_to_many_goes_to_as_many_as_may_have_it_now(world: World) -> None:
    provider = limited(world, recipients(10), recipients=100)
    await world.open(world.plan("acme"))
    mail = await world.accept(*(f"r{n}@example.org" for n in range(25)))
    await until(world.calm)
    assert [len(sent.recipients) for sent in world.upstreams["acme"].transactions] == [10]
    await live(world, 61)
    await live(world, 61)
    await world.settled(mail)
    assert (provider.refused, provider.most(Kind.RECIPIENTS, MINUTE)) == (0, 10)
    assert (await events_of(world, mail)).count(EventKind.DELIVERED) == 25


async def test_transactions_of_one_mail_count_one_by_one(world: World) -> None:
    provider = limited(world, messages(2), recipients=2)
    await world.open(world.plan("acme"))
    mail = await world.accept(*(f"r{n}@example.org" for n in range(9)))
    for _ in range(3):
        await until(world.calm)
        await live(world, 61)
    await world.settled(mail)
    assert (provider.refused, len(provider.taken[Kind.MESSAGES])) == (0, 5)


async def test_accounts_have_their_own_budgets_inside_the_upstreams(world: World) -> None:
    whole = messages(5, name="team")
    for lane in ("team/a", "team/b"):
        world.settings[lane] = {"shares": (messages(3, name=lane), whole)}
    await world.open(world.plan({"a.example": "team/a", "*": "team/b"}))
    for n in range(6):
        await world.accept(f"r{n}@a.example")
        await world.accept(f"r{n}@b.example")
    await until(world.calm)
    counts = {lane: len(world.upstreams[lane].transactions) for lane in ("team/a", "team/b")}
    assert sorted(counts.values()) == [2, 3]
    for _ in range(3):
        await live(world, 61)
    assert not await world.waiting()


async def test_urgent_mail_gets_the_scarce_permits_and_bulk_its_turn(world: World) -> None:
    limited(world, messages(10))
    await world.open(world.plan("acme"))
    for _ in range(30):
        await world.accept("r@example.org", urgency=-1)
    await until(world.calm)
    urgent = [await world.accept("r@example.org", urgency=1) for _ in range(30)]
    await live(world, 61)
    sent = [parse_id(mail.id) in urgent for mail in world.upstreams["acme"].transactions]
    assert (sent[:10], sent[10:].count(True)) == ([False] * 10, 10)
    for _ in range(4):
        await live(world, 61)
    sent = [parse_id(mail.id) in urgent for mail in world.upstreams["acme"].transactions]
    assert sent[10:43].count(False) == 3
    assert not await world.waiting()


async def test_what_trouble_put_off_can_be_hurried(world: World) -> None:
    acme = world.upstream("acme")
    acme.refuses = NO_LINE
    await world.open(world.plan("acme"))
    mail = await world.accept("r@example.org")
    await until(lambda: world.watcher.paused_now.get("acme", False))
    acme.refuses = None
    await until(lambda: not world.dispatcher.in_hand())
    # what `relayd upstream test` has the daemon do
    assert world.dispatcher.try_now("acme")
    waiting = world.dispatcher.put_off("acme")
    assert waiting == {mail}
    await world.steering.act(Act.RETRY, QueueFilter(ids=waiting, lane="acme"), by="test")
    await world.settled(mail)
    standing = world.dispatcher.standing()["acme"]
    # open sessions, not carriers
    assert (standing["connections"], standing["endpoint"]) == (acme.open_now, "here:25")


# -- settings change, disks fail


async def test_a_changed_budget_holds_at_once_and_knows_what_was_used(world: World) -> None:
    limited(world, messages(3))
    await world.open(world.plan("acme"))
    mails = await accept_many(world, 12)
    await until(world.calm)
    limited(world, messages(5))
    await world.reload(world.plan("acme"))
    world.look()
    await until(world.calm)
    assert len(world.upstreams["acme"].transactions) == 5
    world.settings["acme"] = {"shares": ()}
    world.upstream("acme").answer = lambda mail: [TAKEN] * len(mail.recipients)
    await world.reload(world.plan("acme"))
    world.look()
    await world.settled(*mails)


async def test_without_state_db_nothing_goes_out_that_might_be_too_much(world: World) -> None:
    limited(world, messages(3))
    await world.open(world.plan("acme"))
    await world.permits.close()
    mail = await world.accept("r@example.org")
    await until(world.calm)
    assert await world.states(mail) == [State.QUEUED]
    await world.permits.open()
    await live(world, 2)
    await world.settled(mail)


async def test_an_idle_lane_hands_back_what_it_leased(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budgets, "SWEEP", 0.01)
    limited(world, messages(1000))
    await world.open(world.plan("acme"))
    await world.settled(await world.accept("r@example.org"))

    async def held() -> tuple[int, int]:
        [usage] = await world.budgets.store.usages([messages(1000)])
        return usage.held, sum(count for _, count in usage.marks)

    async with asyncio.timeout(PATIENCE):
        while await held() != (0, 1):  # noqa: ASYNC110 - the sweep rings no bell
            await asyncio.sleep(0.01)


async def test_a_lane_without_limits_has_no_budget(world: World) -> None:
    await world.open(world.plan("acme"))
    await world.settled(await world.accept("r@example.org"))
    assert world.dispatcher._lines["acme"].lane.budget is None
    assert world.budgets._task is None


async def test_past_a_budget_of_a_day_mail_overflows_and_comes_back_the_next_day(world: World) -> None:
    limited(world, messages(5, DAY))
    world.overflows = {"acme": "over"}
    await world.open(world.plan("acme", "over"))
    mails = await accept_many(world, 12)
    await world.settled(*mails)
    assert len(world.upstream("acme").transactions) == 5
    assert len(world.upstream("over").transactions) == 7
    await live(world, DAY / 1000 + 60)
    more = await accept_many(world, 3)
    await world.settled(*more)
    assert len(world.upstream("acme").transactions) == 8
    assert len(world.upstream("over").transactions) == 7
