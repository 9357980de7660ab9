"""Priorities in a lane: urgent mail first, wherever it waits and whatever else does; nothing starves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from relayd.core.ids import parse_id
from relayd.delivery.turns import SHARE, Turns
from relayd.spool.store import Delivery
from tests.support.dispatching import NO_LINE, World, until
from tests.support.mail import CONTENT, make_message, make_waiting


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    world.settings["acme"] = {"connections": 1}
    yield world
    await world.close()


def delivery(urgency: int, *, fresh: bool = False) -> Delivery:
    return Delivery(make_message(priority=urgency), (make_waiting(),), CONTENT if fresh else None)


def filled(*counts: tuple[int, int]) -> Turns:
    turns = Turns()
    for urgency, count in counts:
        turns.of(urgency).stored.extend(delivery(urgency) for _ in range(count))
    return turns


def drained(turns: Turns) -> list[int]:
    order = []
    while (turn := turns.next()) is not None:
        order.append(turn.pop().message.priority)
        turns.took(turn)
    return order


def test_the_urgent_ones_go_first_and_each_gets_its_turn() -> None:
    order = drained(filled((1, 100), (0, 100), (-1, 100)))
    assert len(order) == 300
    assert order[:SHARE] == [1] * SHARE
    for urgency, urgent in ((0, 100), (-1, 120)):
        some = order[: order.index(urgency) + 1]
        assert len(some) <= urgent
    first_half = order[:110]
    assert 8 <= first_half.count(0) <= 12
    assert 8 <= first_half.count(-1) <= 12
    # once nothing urgent is left
    assert drained(filled((-1, 5))) == [-1] * 5
    assert drained(filled((0, 30), (-1, 3)))[: SHARE + 1] == [0] * SHARE + [-1]


def test_a_turn_is_not_saved_up_while_there_is_nothing() -> None:
    turns = filled((1, 50))
    for _ in range(30):
        turn = turns.next()
        assert turn is not None
        turn.pop()
        turns.took(turn)
    turns.of(-1).stored.append(delivery(-1))
    assert turns.next() is turns.of(1)


def test_what_is_put_in_front_is_next_whatever_its_priority() -> None:
    turns = filled((1, 5), (-1, 5))
    chosen = turns.of(-1).stored[3]
    turns.put_in_front(chosen)
    turn = turns.next()
    assert turn is not None
    assert turn.pop() is chosen
    assert turns.urgency == 1


def test_of_two_that_are_equal_the_very_one_is_moved() -> None:
    # a message that was claimed and read again stands there twice: the first of the two is nobody's any more
    turns, stale = Turns(), delivery(0)
    held = replace(stale)
    assert stale == held
    queue = turns.of(0).stored
    queue.extend([stale, delivery(0), held])
    turns.put_in_front(held)
    assert [each for each in queue if each is held] == [queue[0]]
    assert queue[1] is stale
    turns.of(0).remove(held)
    assert len(queue) == 2
    assert not any(each is held for each in queue)


async def test_an_urgent_mail_overtakes_a_backlog_on_disk(world: World) -> None:
    acme = world.upstream("acme")
    acme.refuses = NO_LINE
    await world.open(world.plan("acme", window=10))
    for _ in range(120):
        await world.accept("r@example.org", urgency=-1)
    await until(lambda: world.watcher.paused_now.get("acme", False))
    # the window is full: it waits on disk like the others
    urgent = await world.accept("boss@example.org", urgency=1, push=False)
    world.dispatcher.wake("acme", world.clock())
    lane = world.dispatcher._lines["acme"].lane
    await until(lambda: len(lane.turns.of(1).stored) == 1)
    acme.refuses = None
    world.clock.advance(30)
    world.look()
    await until(lambda: len(acme.transactions) > 20)
    assert parse_id(acme.transactions[0].id) == urgent
