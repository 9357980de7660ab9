"""Mail whose upstream cannot be used goes by another, and nothing is lost, sent twice or counted for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relayd.core.event import EventKind
from relayd.core.ids import MessageId
from relayd.core.lifecycle import State
from relayd.core.mail import Message
from relayd.delivery import moving, rerouting, writing
from relayd.spool.filter import QueueFilter
from tests.support.dispatching import LATER, NO_LINE, PATIENCE, SILENCE, World, until


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(writing, "WRITE_AGAIN", 0.01)
    monkeypatch.setattr(rerouting, "AGAIN", 0.01)
    monkeypatch.setattr(moving, "LOOK", 0.02)
    world = World(tmp_path)
    yield world
    await world.close()
    assert world.memory.used == 0
    assert not +world.watcher.connections_now


async def kinds(world: World, message: MessageId) -> list[EventKind]:
    return [event.kind for event in (await world.store.history(message)).events]


async def test_all_mail_arrives_by_the_second_when_the_first_is_dead(world: World) -> None:
    await world.open(world.plan({"*": ["one", "two"]}))
    world.upstream("one").refuses = NO_LINE
    mails = [await world.accept(f"r{n}@example.org", push=n % 2 == 0) for n in range(60)]
    world.dispatcher.wake_all()
    await world.settled(*mails)
    assert not world.upstreams["one"].transactions
    assert set(world.upstreams["two"].accepted.values()) == {1}
    for message in mails:
        history = await world.store.history(message)
        assert [waiting.attempts for waiting in history.recipients] == [1]
    moved = [event for event in (await world.store.history(mails[0])).events if event.kind is EventKind.MOVED]
    assert [(event.detail["from"], event.detail["upstream"]) for event in moved] == [("one", "two")]
    assert "Connection refused" in str(moved[0].detail["reason"])


async def test_while_the_first_is_paused_new_mail_goes_to_the_second_and_back_once_it_works(world: World) -> None:
    await world.open(world.plan({"*": ["one", "two"]}))
    world.upstream("one").refuses = NO_LINE
    await world.settled(await world.accept("first@example.org"))
    direct = await world.accept("direct@example.org")
    await world.settled(direct)
    assert await kinds(world, direct) == [EventKind.ACCEPTED, EventKind.DELIVERED]
    world.upstream("one").refuses = None
    world.clock.advance(400)
    probe = await world.accept("probe@example.org")
    await world.settled(probe)
    assert not world.watcher.paused_now["one"]
    await world.settled(await world.accept("after@example.org"))
    assert [mail.recipients[0].address for mail in world.upstreams["one"].transactions] == [
        "probe@example.org",
        "after@example.org",
    ]


async def test_a_window_that_is_smaller_than_the_backlog_moves_all_of_it(world: World) -> None:
    world.upstream("one").refuses = NO_LINE
    world.upstream("two").refuses = NO_LINE
    await world.open(world.plan({"*": ["one", "two"]}, window=6))
    for n in range(80):
        await world.accept(f"r{n}@example.org", push=False)
    world.dispatcher.wake_all()
    await until(lambda: world.watcher.paused_now.get("one", False) and world.watcher.paused_now.get("two", False))
    world.upstream("two").refuses = None
    async with asyncio.timeout(PATIENCE):
        while await world.waiting():
            world.clock.advance(10)
            world.dispatcher.wake_all()
            for line in world.dispatcher._lines.values():
                line.crew.all_ready()
            await asyncio.sleep(0.01)
    assert not world.upstreams["one"].transactions
    assert set(world.upstreams["two"].accepted.values()) == {1}


async def test_what_may_have_arrived_waits_for_its_own_upstream(world: World) -> None:
    await world.open(world.plan({"*": ["one", "two"]}))
    world.upstream("one").answer = lambda mail: [SILENCE] * len(mail.recipients)
    unsure = await world.accept("u@example.org")
    await world.settled(unsure, state=State.UNCERTAIN)
    world.upstream("one").refuses = NO_LINE
    for line in world.dispatcher._lines.values():
        line.crew.renew()
    await world.settled(await world.accept("r@example.org"))
    world.clock.advance(70)
    world.dispatcher.wake_all()
    await asyncio.sleep(0.2)
    assert await world.states(unsure) == [State.UNCERTAIN]
    assert EventKind.MOVED not in await kinds(world, unsure)
    world.upstream("one").refuses = None
    world.upstream("one").answer = lambda mail: [LATER]
    assert world.dispatcher.try_now("one")
    world.clock.advance(30)
    world.dispatcher.wake_all()
    await until(lambda: len(world.upstreams["one"].transactions) == 2)


async def test_weights_are_kept_and_one_stands_in_for_the_other(world: World) -> None:
    await world.open(world.plan({"*": {"one": 3, "two": 1}}))
    await world.settled(*[await world.accept(f"r{n}@example.org") for n in range(120)])
    assert 70 <= len(world.upstreams["one"].transactions) <= 108
    world.upstream("one").refuses = NO_LINE
    for line in world.dispatcher._lines.values():
        line.crew.renew()
    await world.settled(*[await world.accept(f"s{n}@example.org") for n in range(40)])
    assert sum(len(upstream.accepted) for upstream in world.upstreams.values()) == 160


async def test_what_is_moved_by_hand_stays_there_whatever_routes_and_pauses_say(world: World) -> None:
    await world.open(world.plan({"*": ["one", "two"]}, "three"))
    world.upstream("one").refuses = NO_LINE
    world.upstream("two").refuses = NO_LINE
    world.upstream("three").refuses = NO_LINE
    mails = [await world.accept(f"r{n}@example.org", sender=f"s{n % 2}@example.com") for n in range(10)]
    await until(lambda: world.watcher.paused_now.get("one", False) and world.watcher.paused_now.get("two", False))
    await until(lambda: world.dispatcher.in_hand() == 0)
    wanted = QueueFilter(sender="s1@example.com")

    def lane_of(message: Message) -> str | None:
        return None if message.id == mails[1] else "three"

    done = await world.steering.move(wanted, lane_of, by="ann", reason="one and two are down")
    assert (done.recipients, done.refused) == (4, 1)
    again = await world.steering.move(wanted, lane_of, by="ann")
    assert again.recipients == 0
    await until(lambda: world.watcher.paused_now.get("three", False))
    [waiting] = (await world.store.history(mails[3])).recipients
    assert waiting.lane == "three"
    moved = [e for e in (await world.store.history(mails[3])).events if e.kind is EventKind.MOVED][-1]
    assert (moved.detail["by"], moved.detail["reason"]) == ("ann", "one and two are down")
    # neither other routes nor a restart take it away, as long as that upstream is there
    await world.reload(world.plan({"*": ["two"]}, "one", "three"))
    await asyncio.sleep(0.1)
    await world.close()
    for upstream in world.upstreams.values():
        upstream.refuses = None
    world.clock.advance(600)
    await world.open(world.plan({"*": ["two"]}, "one", "three"))
    await world.settled(*mails)
    assert {mail.envelope.sender for mail in world.upstreams["three"].transactions} == {"s1@example.com"}
    assert len(world.upstreams["three"].transactions) == 4


async def test_what_was_put_by_hand_into_an_upstream_that_goes_takes_its_route(world: World) -> None:
    await world.open(world.plan("one", "three"))
    world.upstream("one").refuses = NO_LINE
    world.upstream("three").refuses = NO_LINE
    mail = await world.accept("r@example.org")
    await until(lambda: world.watcher.paused_now.get("one", False))
    await until(lambda: world.dispatcher.in_hand() == 0)
    await world.steering.move(QueueFilter(), lambda message: "three", by="ann")
    await until(lambda: world.watcher.paused_now.get("three", False))
    world.upstream("one").refuses = None
    world.dispatcher.try_now("one")
    world.clock.advance(30)
    await world.reload(world.plan("one"))
    await world.settled(mail)
    assert len(world.upstreams["one"].accepted) == 1


async def test_overflow_stands_in_once_a_day_is_used_up(world: World) -> None:
    spent: set[str] = set()
    world.overflows = {"one": "over"}
    await world.open(world.plan("one", "over"))
    world.standings.exhausted = lambda lane: "the budget is used up" if lane in spent else None
    await world.settled(await world.accept("first@example.org"))
    spent.add("one")
    late = [await world.accept(f"r{n}@example.org") for n in range(5)]
    await world.settled(*late)
    assert len(world.upstreams["one"].transactions) == 1 and len(world.upstreams["over"].transactions) == 5
    spent.clear()
    await world.settled(await world.accept("next@example.org"))
    assert len(world.upstreams["one"].transactions) == 2
    # a pause is no exhausted day: such mail waits
    world.upstream("one").refuses = NO_LINE
    for line in world.dispatcher._lines.values():
        line.crew.renew()
    waits = await world.accept("waits@example.org")
    await until(lambda: world.watcher.paused_now.get("one", False))
    await asyncio.sleep(0.1)
    assert await world.states(waits) == [State.QUEUED]
    assert len(world.upstreams["over"].transactions) == 5
