"""Nothing stays for ever: whatever a recipient waits for, it ends with its lifetime, and what is held with its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from relayd.core.event import EventKind
from relayd.core.lifecycle import WAITING, Act, OnUncertain, State
from relayd.core.permits import Kind, Share, Window
from relayd.spool.filter import QueueFilter
from relayd.spool.store import Notice
from tests.support.dispatching import LATER, NO_LINE, NOT_YOU, PATIENCE, SILENCE, TAKEN, World, until

DAY = 86_400


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    yield world
    await world.close()


async def _paused(world: World) -> None:
    world.upstream("acme").refuses = NO_LINE
    await world.accept("r@example.org")
    await until(lambda: world.watcher.paused_now.get("acme", False) and not world.dispatcher.in_hand())


async def _sender_refused(world: World) -> None:
    world.upstream("acme").answer = lambda mail: [
        NOT_YOU if mail.envelope.sender.startswith("bad") else TAKEN for _ in mail.recipients
    ]
    for place in range(2):
        await world.accept("r@example.org", sender=f"bad{place}@example.com")
    await until(lambda: world.watcher.paused_now.get("acme", False) and not world.dispatcher.in_hand())


async def _deferred(world: World) -> None:
    world.upstream("acme").answer = lambda mail: [LATER]
    await world.settled(await world.accept("r@example.org"), state=State.DEFERRED)


async def _uncertain(world: World) -> None:
    world.upstream("acme").answer = lambda mail: [SILENCE]
    await world.settled(await world.accept("r@example.org"), state=State.UNCERTAIN)


async def _suspended(world: World) -> None:
    world.dispatcher._lines["acme"].gate.shut = True
    await world.accept("r@example.org")


async def _without_upstream(world: World) -> None:
    await _paused(world)
    await world.reload(world.plan({"nowhere.example": "other"}))
    await until(lambda: not world.dispatcher._leaving)


async def _held(world: World) -> None:
    await _paused(world)
    await world.steering.act(Act.HOLD, QueueFilter(), by="ann")


async def _released_while_paused(world: World) -> None:
    await _held(world)
    await world.steering.act(Act.RELEASE, QueueFilter(), by="ann")


async def _without_budget(world: World) -> None:
    world.settings["acme"] = {"shares": (Share("acme", Kind.MESSAGES, (Window(1, 60 * DAY * 1000),)),)}
    await world.reload(world.plan("acme"))
    await world.settled(await world.accept("first@example.org"))
    await world.accept("r@example.org")


Waits = Callable[[World], Awaitable[None]]


@pytest.mark.parametrize(
    ("waits", "state", "policy"),
    [
        (_paused, State.QUEUED, OnUncertain.RETRY),
        (_sender_refused, State.QUEUED, OnUncertain.RETRY),
        (_suspended, State.QUEUED, OnUncertain.RETRY),
        (_without_upstream, State.QUEUED, OnUncertain.RETRY),
        (_without_budget, State.QUEUED, OnUncertain.RETRY),
        (_deferred, State.DEFERRED, OnUncertain.RETRY),
        (_uncertain, State.UNCERTAIN, OnUncertain.RETRY),
        (_uncertain, State.UNCERTAIN, OnUncertain.HOLD),
        (_released_while_paused, State.QUEUED, OnUncertain.RETRY),
        (_held, State.HELD, OnUncertain.RETRY),
    ],
)
async def test_whatever_it_waits_for_it_ends(world: World, waits: Waits, state: State, policy: OnUncertain) -> None:
    world.on_uncertain = policy
    await world.open(world.plan("acme"))
    await waits(world)
    assert {waiting.state for waiting in await world.waiting()} == {state}
    lifetime, held_lifetime = world.lifetime // 1000, world.current.policy.held_lifetime // 1000
    assert held_lifetime > lifetime
    world.clock.advance(lifetime - 60)
    assert await world.steering.expire() == 0
    if state is State.HELD:
        world.clock.advance(held_lifetime - lifetime)
        assert await world.steering.expire() == 0
    world.clock.advance(61)
    # what somebody has in hand at that moment, the next round meets
    async with asyncio.timeout(PATIENCE):
        while await world.waiting():
            await world.steering.expire()


def test_the_table_knows_every_state_that_waits() -> None:
    [mark] = [mark for mark in test_whatever_it_waits_for_it_ends.pytestmark if mark.name == "parametrize"]  # type: ignore[attr-defined]
    rows: list[Any] = mark.args[1]
    assert {state for _, state, _ in rows} == WAITING


async def test_the_sender_is_told_that_it_was_held(world: World) -> None:
    await world.open(world.plan("acme"))
    await _held(world)
    [held] = await world.store.select(QueueFilter(), 10)
    world.clock.advance(31 * DAY)
    assert await world.steering.expire() == 1
    history = await world.store.history(held.message.id)
    assert (history.recipients[0].state, history.recipients[0].notice) == (State.EXPIRED, Notice.FAILURE)
    assert history.events[-1].detail["reply"] == "554 4.4.7 Not delivered within 30d; it was held"
    assert world.owed


async def test_what_is_held_only_now_is_met_though_its_moment_was_passed_over(world: World) -> None:
    """Time's questions remember how far they came."""
    await world.open(world.plan("acme"))
    await _suspended(world)
    world.clock.advance(4 * DAY)
    await world.accept("young@example.org")
    world.clock.advance(40 * DAY)
    assert await world.store.held(world.clock(), 10) == []
    await world.steering.act(Act.HOLD, QueueFilter(), by="ann")
    assert await world.steering.expire() == 2


@pytest.mark.parametrize("works", [True, False])
async def test_what_is_released_after_its_lifetime_has_one_more_attempt(world: World, works: bool) -> None:
    await world.open(world.plan("acme"))
    await _held(world)
    [held] = await world.store.select(QueueFilter(), 10)
    world.clock.advance(10 * DAY)
    acme = world.upstream("acme")
    acme.refuses = None
    acme.answer = lambda mail: [TAKEN if works else LATER]
    await world.steering.act(Act.RELEASE, QueueFilter(), by="ann")
    assert await world.steering.expire() == 0
    world.look()
    await world.settled(held.message.id, state=State.DELIVERED if works else State.EXPIRED)
    assert len(acme.transactions) == 1
    kinds = [event.kind for event in (await world.store.history(held.message.id)).events]
    assert kinds[-2:] == [EventKind.RELEASED, EventKind.DELIVERED if works else EventKind.EXPIRED]


async def test_of_one_message_only_what_was_released_goes_on(world: World) -> None:
    await world.open(world.plan("acme"))
    world.upstream("acme").refuses = NO_LINE
    mail = await world.accept("a@example.org", "b@example.org")
    await until(lambda: world.watcher.paused_now.get("acme", False) and not world.dispatcher.in_hand())
    await world.steering.act(Act.HOLD, QueueFilter(recipient="a@example.org"), by="ann")
    world.clock.advance(10 * DAY)
    await world.steering.act(Act.RELEASE, QueueFilter(), by="ann")
    world.upstream("acme").refuses = None
    world.look()
    await until(lambda: len(world.upstream("acme").transactions) == 1)
    await until(lambda: not world.dispatcher.in_hand())
    assert await world.states(mail) == [State.DELIVERED, State.EXPIRED]
