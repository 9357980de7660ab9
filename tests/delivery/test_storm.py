"""Bounce storms: nothing bounces for the upstream's fault, and what is true still bounces soon."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from relayd.core.classify import outcome_of
from relayd.core.event import EventKind
from relayd.core.ids import MessageId
from relayd.core.lifecycle import Outcome, Stage, State
from relayd.core.reply import parse_reply
from relayd.core.session import Outgoing
from relayd.delivery import moving
from relayd.delivery.storm import MOST_KEYS, StormGuard, StormRule, Verdict, about_recipient, key_of
from relayd.spool import standings as rows
from relayd.spool.standings import SuspensionKind
from relayd.spool.state import StateDB, open_state, transact
from tests.support.dispatching import PATIENCE, TAKEN, World, until


def refusal(text: str, stage: Stage = Stage.RCPT) -> Outcome:
    return outcome_of(stage, parse_reply(int(text[:3]), text[4:]))


SUSPENDED = refusal("550 5.7.1 account suspended")
NOBODY = refusal("550 5.1.1 <x@example.org>: user unknown")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (
            "550 5.7.1 <a@x.example>: account suspended (id 4711)",
            "550 5.7.1 <b@y.example>: account suspended (id 9)",
            True,
        ),
        ("550 5.1.1 ann: no such user, q1F3a", "550 5.1.1 bob: no such user, q2B77", True),
        ("550 5.1.1 no such user", "550 5.7.1 no such user", False),
        ("550 5.7.1 account suspended", "550 5.7.1 message looks like spam", False),
        ("554 Denied for a@x.example in session 0af3", "554 Denied for b@y.example in session 1bc4", True),
    ],
)
def test_what_refusals_have_in_common(one: str, other: str, same: bool) -> None:
    first = key_of(refusal(one), ["ann@x.example", "app@example.com"])
    second = key_of(refusal(other), ["bob@y.example", "app@example.com"])
    assert (first == second) is same


@pytest.mark.parametrize(
    ("text", "stage", "personal"),
    [
        ("550 5.1.1 user unknown", Stage.RCPT, True),
        ("550 5.2.1 mailbox disabled", Stage.DOT, True),
        ("550 user unknown", Stage.RCPT, True),
        ("550 user unknown", Stage.DOT, False),
        ("550 5.7.1 account suspended", Stage.RCPT, False),
        ("550 5.1.8 sender domain does not exist", Stage.RCPT, False),
        ("554 no", Stage.RCPT, False),
    ],
)
def test_which_refusals_speak_of_the_recipient(text: str, stage: Stage, personal: bool) -> None:
    assert about_recipient(refusal(text, stage)) is personal


def test_different_recipients_within_the_time_make_a_storm() -> None:
    guard = StormGuard(StormRule(3, 60_000))
    verdicts = [guard.refused("k", name, at, personal=False) for at, name in enumerate(["a", "a", "b", "b", "c"])]
    assert verdicts == [Verdict.HOLD] * 4 + [Verdict.STORM]
    guard = StormGuard(StormRule(3, 60_000))
    assert {guard.refused("k", str(at), at * 31_000, personal=False) for at in range(9)} == {Verdict.HOLD}


def test_a_delivery_proves_refusals_of_recipients_true_but_not_others() -> None:
    guard = StormGuard(StormRule(2, 60_000))
    guard.refused("of recipients", "a", 0, personal=True)
    guard.refused("of the account", "a", 0, personal=False)
    assert guard.delivered() and not guard.delivered()
    assert not guard.waits("of recipients", 0, 1) and guard.waits("of the account", 0, 1)
    assert guard.refused("of recipients", "b", 2, personal=True) is Verdict.HOLD
    assert guard.refused("of the account", "b", 2, personal=False) is Verdict.STORM


def test_a_clock_that_is_put_back_makes_no_storm_and_no_endless_wait() -> None:
    guard = StormGuard(StormRule(2, 60_000))
    guard.refused("k", "a", 1_000_000, personal=False)
    assert guard.refused("k", "b", 5, personal=False) is Verdict.HOLD
    assert not guard.waits("k", 1_000_000, 5)


def test_the_guard_remembers_only_so_much() -> None:
    guard = StormGuard(StormRule(20, 60_000))
    for number in range(MOST_KEYS * 2):
        guard.refused(str(number), "a", number, personal=number % 2 == 0)
    assert len(guard._runs) == MOST_KEYS and guard._personal <= guard._runs.keys()


# -- the whole dispatcher


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(moving, "LOOK", 0.02)
    world = World(tmp_path)
    world.state = StateDB(tmp_path / "state.db")
    await world.state.open()
    for name in ("acme", "spare"):
        world.settings[name] = {"storm": StormRule(20, 60_000)}
    yield world
    await world.close()
    await world.standings.stop()
    await world.state.close()
    assert world.memory.used == 0


async def outcomes(world: World, *messages: MessageId) -> set[EventKind]:
    return {event.kind for number in messages for event in (await world.store.history(number)).events}


@pytest.mark.parametrize("outcome", [SUSPENDED, NOBODY, refusal("554 Transaction failed", Stage.DOT)])
async def test_ten_thousand_refused_alike_yield_no_bounce(world: World, outcome: Outcome) -> None:
    await world.open(world.plan("acme", window=500))
    upstream = world.upstream("acme")
    upstream.answer = lambda mail: [outcome] * len(mail.recipients)
    mails: list[MessageId] = []
    many = 10_000 if outcome is SUSPENDED else 500
    for start in range(0, many, 50):
        mails += await asyncio.gather(*(world.accept(f"r{n}@example.org") for n in range(start, start + 50)))
    await until(lambda: world.watcher.suspended_now.get("acme", False))
    await until(lambda: world.dispatcher.in_hand() == 0)
    assert len(upstream.transactions) < 20 + 4 + 4
    assert world.watcher.upstream_events == [("acme", "storm")]
    assert {each.state for each in await world.waiting()} == {State.QUEUED}
    assert len(await world.waiting()) == many
    assert await outcomes(world, *mails[:60]) == {EventKind.ACCEPTED, EventKind.DEFERRED}
    assert {each.attempts for each in await world.waiting()} == {0}


async def test_after_a_storm_an_operator_tries_again_or_lets_bounce(world: World) -> None:
    assert world.state is not None
    path = world.directory / "state.db"
    await world.open(world.plan("acme"))
    world.upstream("acme").answer = lambda mail: [SUSPENDED] * len(mail.recipients)
    mails = [await world.accept(f"r{n}@example.org") for n in range(30)]
    await until(lambda: world.watcher.suspended_now.get("acme", False))
    await until(lambda: world.dispatcher.in_hand() == 0)
    await world.standings.stop()
    with closing(open_state(path)) as db:
        found = rows.read(db, world.clock())
        assert found.suspensions["acme"].kind is SuspensionKind.STORM
        [event] = rows.history(db, "acme", 10)
        assert event.kind == "upstream.storm" and event.detail["recipients"] == 20
        transact(db, lambda db: rows.resume(db, "acme", world.clock(), "ann", ""))
    # it refuses still: another storm, and still nothing bounces
    await world.standings.poll()
    await until(lambda: len(world.upstreams["acme"].transactions) >= 40)
    await until(lambda: world.watcher.suspended_now.get("acme", False))
    assert EventKind.BOUNCED not in await outcomes(world, *mails)
    await until(lambda: world.dispatcher.in_hand() == 0)
    await world.standings.stop()
    with closing(open_state(path)) as db:
        transact(db, lambda db: rows.pardon(db, "acme", str(event.detail["key"]), world.clock() + 1000))
        transact(db, lambda db: rows.resume(db, "acme", world.clock(), "ann", "let them bounce"))
    await world.standings.poll()
    await world.settled(*mails, state=State.BOUNCED)


async def test_mail_goes_by_another_upstream_in_a_storm(world: World) -> None:
    await world.open(world.plan({"*": ["acme", "spare"]}))
    world.upstream("acme").answer = lambda mail: [SUSPENDED] * len(mail.recipients)
    mails = [await world.accept(f"r{n}@example.org") for n in range(60)]
    await world.settled(*mails)
    assert len(world.upstreams["spare"].accepted) == 60


async def test_true_refusals_bounce_and_a_delivery_makes_them_bounce_at_once(world: World) -> None:
    await world.open(world.plan("acme"))

    def answer(mail: Outgoing) -> Sequence[Outcome]:
        return [NOBODY if r.address.startswith("no") else TAKEN for r in mail.recipients]

    world.upstream("acme").answer = answer
    lonely = await world.accept("no0@example.org")
    await until(lambda: len(world.dispatcher._writer.suspense) == 1)
    assert await world.states(lonely) == [State.QUEUED]
    await world.settled(await world.accept("yes@example.org"))
    await world.settled(lonely, state=State.BOUNCED)
    # a stale list among mail that arrives is no storm
    mixed = [await world.accept(f"no{n}@example.org", f"yes{n}@example.org") for n in range(60)]
    async with asyncio.timeout(PATIENCE):
        for message in mixed:
            while await world.states(message) != [State.BOUNCED, State.DELIVERED]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert not world.watcher.upstream_events
    history = await world.store.history(mixed[0])
    assert [attempt.recipients for attempt in history.attempts] == [(0, 1)]
    world.clock.advance(0.4)
    alone = await world.accept("no@example.org")
    await until(lambda: len(world.dispatcher._writer.suspense) == 1)
    world.clock.advance(0.4)
    await world.settled(alone, state=State.BOUNCED)


async def test_what_is_in_doubt_at_a_stop_is_tried_again(world: World) -> None:
    await world.open(world.plan("acme"))
    world.upstream("acme").answer = lambda mail: [SUSPENDED] * len(mail.recipients)
    message = await world.accept("r@example.org")
    await until(lambda: len(world.dispatcher._writer.suspense) == 1)
    await world.close()
    world.upstream("acme").answer = lambda mail: [TAKEN] * len(mail.recipients)
    await world.open(world.plan("acme"))
    await world.settled(message)
