"""Replies that say "too much": rules about them, those that presets bring, and how many connections there may be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.config.presets import PRESETS, find
from relayd.core.classify import dropped, outcome_of, timeout
from relayd.core.event import EventKind
from relayd.core.lifecycle import Outcome, OutcomeKind, Stage, State
from relayd.core.reply import parse_reply
from relayd.core.session import Outgoing
from relayd.core.throttle import ThrottleAction, ThrottleRule, ruled, throttle_rule
from relayd.delivery import moving
from relayd.delivery.pace import Pace, too_fast
from relayd.delivery.plan import preset_rule
from tests.support.dispatching import TAKEN, World, until


def answer(text: str, stage: Stage = Stage.RCPT) -> Outcome:
    return outcome_of(stage, parse_reply(int(text[:3]), text[4:]))


def rule(match: str, action: ThrottleAction = ThrottleAction.SLOW, duration: int = 600_000) -> ThrottleRule:
    return throttle_rule(match, action, duration)


@pytest.mark.parametrize(
    ("match", "reply", "fits"),
    [
        ("452 too many", "452 4.5.3 Error: Too many, really", True),
        ("452 too many", "452 too much", False),
        ("452 too many", "451 too many", False),
        ("45x", "454 4.7.0 whatever", True),
        ("4xx throttl-", "421 4.7.0 You are being THROTTLED.", True),
        ("432 4.3.2", "432 4.3.2 STOREDRV.ClientSubmit; sender thread limit exceeded", True),
        ("432 4.3.2", "432 4.3.20 something", False),
        ("550 5.7.x suspended|blocked", "550 5.7.708 tenant has been blocked", True),
        ("550 5.7.x suspended|blocked", "550 5.1.1 tenant has been blocked", False),
        ("5.4.5", "550 5.4.5 daily quota", True),
        ("daily * exceeded", "550 5.4.5 Daily SMTP relay limit exceeded for user", True),
        ("daily * exceeded", "250 2.0.0 daily limit exceeded", False),
    ],
)
def test_what_a_rule_fits(match: str, reply: str, fits: bool) -> None:
    assert rule(match).fits(answer(reply)) is fits


@pytest.mark.parametrize(
    "match", ["", "  ", "452 (a+)+$", "[45]..", "452 [tT]oo", "*", "452 * *", "552 4.2.2", "x" * 201, "a||b", "451 a;b"]
)
def test_what_is_no_rule_is_said(match: str) -> None:
    with pytest.raises(ValueError):
        rule(match)


@given(st.text("45x.0| *?-ab", max_size=40), st.text("ab 45.", max_size=300))
def test_no_pattern_is_slow_or_breaks(match: str, text: str) -> None:
    try:
        made = rule(match)
    except ValueError:
        return
    made.fits(Outcome(OutcomeKind.DEFERRED, Stage.RCPT, parse_reply(450, text)))


SHIPPED = {
    ("office365", "432 4.3.2"): "432 4.3.2 STOREDRV.ClientSubmit; sender thread limit exceeded",
    ("office365", "550 5.7.30"): "550 5.7.30 Basic authentication is not supported for Client Submission",
    ("workspace-relay", "550 5.4.5"): "550 5.4.5 Daily SMTP relay limit exceeded for customer",
    ("workspace-relay", "450 4.2.1"): "450 4.2.1 The user you are trying to contact is receiving mail too quickly",
    ("ses-REGION", "454 Throttling failure"): "454 Throttling failure: Maximum sending rate exceeded",
}


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.throttles])
def test_each_rule_that_a_preset_brings_fits_what_the_provider_says(name: str) -> None:
    preset = find("ses-eu-west-1") if name.startswith("ses") else PRESETS[name]
    assert preset is not None
    rules = [preset_rule(throttle) for throttle in preset.throttles]
    for made, throttle in zip(rules, preset.throttles, strict=True):
        outcome = answer(SHIPPED[name, throttle.match])
        found, by = ruled(rules, outcome)
        assert by is made
        assert found.kind is (OutcomeKind.TROUBLE if throttle.action == "pause" else OutcomeKind.DEFERRED)


def test_every_shipped_rule_has_a_reply_here() -> None:
    shipped = {(name, each.match) for name, preset in PRESETS.items() for each in preset.throttles}
    assert shipped == set(SHIPPED)


def test_what_rules_make_of_outcomes() -> None:
    refusal = answer("550 5.7.1 account suspended")
    assert ruled([rule("suspended", ThrottleAction.PAUSE)], refusal)[0].kind is OutcomeKind.TROUBLE
    assert ruled([rule("suspended", ThrottleAction.SLOW)], refusal)[0].kind is OutcomeKind.DEFERRED
    assert ruled([rule("suspended", ThrottleAction.DEFER)], refusal)[0].retry_after == 600_000
    login = answer("454 4.7.0 suspended", Stage.AUTH)
    assert ruled([rule("suspended", ThrottleAction.NEXT)], login)[0].kind is OutcomeKind.TROUBLE
    first, second = rule("452 too many"), rule("452")
    assert ruled([first, second], answer("452 too many"))[1] is first
    assert ruled([first, second], answer("452 full"))[1] is second
    for untouched in (timeout(Stage.DOT), TAKEN):
        assert ruled([rule("4xx"), rule("2"), rule("answer")], untouched) == (untouched, None)


# -- the pace


def test_it_doubles_from_a_low_start_and_reaches_the_limit_soon() -> None:
    pace, rounds = Pace(64, 2), 0
    while pace.allowed < 64:
        for _ in range(pace.allowed):
            pace.success(rounds)
        rounds += 1
    assert rounds == 5


def test_it_halves_once_a_round_and_then_grows_by_one() -> None:
    pace = Pace(64, 64)
    for began in range(20):
        pace.slower(began, 100)
    assert pace.allowed == 32
    pace.slower(150, 160)
    assert pace.allowed == 16
    for _ in range(16):
        pace.success(200)
    assert pace.allowed == 17


def test_while_it_is_held_it_does_not_grow() -> None:
    pace = Pace(8, 8)
    pace.slower(1, 2, 1000)
    assert [pace.success(at) for at in range(10, 900, 10)] == [False] * 89
    assert any(pace.success(1100) for _ in range(9))


@given(
    st.integers(1, 50),
    st.integers(0, 60),
    st.lists(st.tuples(st.sampled_from("sfhr"), st.integers(0, 10_000)), max_size=200),
)
def test_it_stays_between_one_and_the_limit(most: int, first: int, steps: Sequence[tuple[str, int]]) -> None:
    pace = Pace(most, first)
    for kind, number in steps:
        if kind == "s":
            pace.success(number)
        elif kind == "f":
            pace.slower(number - 5, number)
        elif kind == "h":
            pace.slower(number - 5, number, 100)
        else:
            pace.resize(number % 50)
        assert 1 <= pace.allowed <= pace.most


@pytest.mark.parametrize(
    ("outcome", "slower"),
    [
        (answer("421 4.7.0 Too busy"), True),
        (answer("450 4.2.1 later"), True),
        (answer("432 4.3.2 limit"), True),
        (timeout(Stage.RCPT), True),
        (dropped(Stage.DOT), True),
        (answer("452 4.2.2 mailbox full"), False),
        (answer("550 5.1.1 nobody"), False),
        (TAKEN, False),
    ],
)
def test_what_says_slower(outcome: Outcome, slower: bool) -> None:
    assert too_fast([outcome]) is slower


# -- the whole dispatcher


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(moving, "LOOK", 0.02)
    world = World(tmp_path)
    yield world
    await world.close()
    assert world.memory.used == 0


async def test_carriers_become_more_with_success_and_fewer_when_told(world: World) -> None:
    world.settings["acme"] = {"first": 1, "connections": 8}
    await world.open(world.plan("acme"))
    upstream = world.upstream("acme")

    async def slowly(mail: Outgoing) -> Sequence[Outcome]:
        await asyncio.sleep(0.002)
        return [TAKEN]

    upstream.answer = slowly
    await world.settled(*await asyncio.gather(*(world.accept(f"r{n}@example.org") for n in range(90))))
    assert upstream.most_open == 8
    upstream.answer = lambda mail: [answer("421 4.7.0 Too busy")]
    for n in range(20):
        await world.accept(f"s{n}@example.org")
        world.clock.advance(1)
        await until(lambda: world.dispatcher.in_hand() == 0)
    await until(lambda: world.dispatcher.standing()["acme"]["connections"] == 1)
    assert world.dispatcher.standing()["acme"]["allowed"] == 1


async def test_a_rule_sends_mail_by_the_next_upstream_and_lets_nothing_bounce(world: World) -> None:
    world.settings["one"] = {"rules": (rule("550 5.7.1 not for us", ThrottleAction.NEXT),)}
    await world.open(world.plan({"*": ["one", "two"]}))
    no = answer("550 5.7.1 Not for us")
    world.upstream("one").answer = lambda mail: [no if r.address.startswith("no") else TAKEN for r in mail.recipients]
    mail = await world.accept("no@example.org", "yes@example.org")
    await world.settled(mail)
    kinds = [event.kind for event in (await world.store.history(mail)).events if event.n == 0]
    assert kinds == [EventKind.ACCEPTED, EventKind.DEFERRED, EventKind.MOVED, EventKind.DELIVERED]
    assert len(world.upstreams["two"].accepted) == 1


async def test_a_rule_pauses_or_defers_for_as_long_as_it_says(world: World) -> None:
    world.settings["one"] = {
        "rules": (rule("not today", ThrottleAction.PAUSE, 7_200_000), rule("later", ThrottleAction.DEFER, 3_600_000))
    }
    await world.open(world.plan("one"))
    world.upstream("one").answer = lambda mail: [answer("550 5.0.0 later")]
    late = await world.accept("l@example.org")
    await world.settled(late, state=State.DEFERRED)
    [waiting] = (await world.store.history(late)).recipients
    assert waiting.due is not None and 3_600_000 <= waiting.due - world.clock() <= 3_700_000
    world.upstream("one").answer = lambda mail: [answer("550 5.0.0 Not today")]
    await world.accept("p@example.org")
    await until(lambda: world.watcher.paused_now.get("one", False))
    next_probe = int(world.dispatcher.standing()["one"]["next_probe"])
    assert next_probe - world.clock() >= 7_200_000
