"""Lanes on a real store: bounded windows, fresh and stored mail in turn, claims."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Container
from pathlib import Path
from typing import cast

import pytest

from relayd.config.models import Spool
from relayd.core.ids import MessageId
from relayd.core.lifecycle import State
from relayd.core.mail import Envelope, Message, Origin, Recipient
from relayd.delivery import lanes
from relayd.delivery.lanes import Lane
from relayd.delivery.settle import move
from relayd.intake.memory import MemoryBudget
from relayd.spool.sqlite import SqliteStore
from relayd.spool.store import Delivery, Due, Store, StoreError, Waiting
from tests.support.dispatching import until
from tests.support.mail import make_message, make_settlement, make_waiting

NOW = 1_800_000_000_000


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(tmp_path / "spool", 0, 1, Spool(), lambda: NOW)
    await store.open()
    yield store
    await store.close()


async def accept(store: SqliteStore, count: int, lane: str = "acme", due: int = NOW) -> list[Delivery]:
    out = []
    kept = []
    for number in range(count):
        message = Message(
            store.mint(),
            NOW,
            Envelope("a@example.com"),
            Origin("local", "127.0.0.1"),
            size=12,
            message_id=f"<{number}@x>",
        )
        waiting = Waiting(0, Recipient(f"r{number}@example.org"), lane, due=due)
        kept.append(store.accept(message, [waiting], b"A: b\r\n\r\nhi\r\n"))
        out.append(Delivery(message, (waiting,), b"A: b\r\n\r\nhi\r\n"))
    await asyncio.gather(*kept)
    return out


class Bell:
    """Rings when a lane says that it has mail."""

    def __init__(self) -> None:
        self.event = asyncio.Event()

    def __call__(self, lane: Lane) -> None:
        self.event.set()

    async def wait(self) -> None:
        await asyncio.wait_for(self.event.wait(), 10)
        self.event.clear()


def lane_over(store: SqliteStore, bell: Bell, *, window: int = 100, memory: int = 1 << 20) -> Lane:
    return Lane("acme", store, MemoryBudget(memory), lambda: NOW, window=window, ready=bell)


async def test_what_waits_on_disk_is_fed_in_order_of_due_time(store: SqliteStore) -> None:
    accepted = await accept(store, 5)
    bell = Bell()
    lane = lane_over(store, bell)
    lane.start()
    await bell.wait()
    taken = [lane.take() for _ in range(5)]
    assert [d.message.id for d in taken if d] == [d.message.id for d in accepted]
    assert lane.take() is None
    await lane.stop()


async def test_fresh_and_stored_mail_take_turns(store: SqliteStore) -> None:
    stored = await accept(store, 4)
    bell = Bell()
    lane = lane_over(store, bell)
    lane.start()
    await bell.wait()
    fresh = await accept(store, 4)
    for delivery in fresh:
        lane.push(delivery)
    order = [delivery.message.id for _ in range(8) if (delivery := lane.take())]
    stored_ids = {d.message.id for d in stored}
    kinds = [message in stored_ids for message in order]
    assert kinds in ([True, False] * 4, [False, True] * 4)
    await lane.stop()


async def test_a_full_window_leaves_mail_on_disk_and_reads_it_back_later(store: SqliteStore) -> None:
    bell = Bell()
    lane = lane_over(store, bell, window=4)
    lane.start()
    everything = await accept(store, 20)
    for delivery in everything:
        lane.push(delivery)
    assert len(lane) <= 6
    seen: list[int] = []
    while len(seen) < 20:
        delivery = lane.take()
        if delivery is None:
            await bell.wait()
            continue
        seen.append(delivery.message.id)
        assert len(lane) <= 6
        await store.relane(lambda message, _: "elsewhere" if message.id in seen else "acme", ())
        lane.done(delivery.message.id)
    assert sorted(seen) == sorted(d.message.id for d in everything)
    await lane.stop()


async def test_memory_is_given_back_whatever_becomes_of_a_delivery(store: SqliteStore) -> None:
    memory = MemoryBudget(1 << 20)
    lane = Lane("acme", store, memory, lambda: NOW, window=100, ready=Bell())
    for delivery in await accept(store, 10):
        lane.push(delivery)
    assert memory.used == 10 * 12
    first, second = lane.take(), lane.take()
    assert first is not None
    assert second is not None
    lane.done(first.message.id)
    assert lane.claim(next(iter(d for d in lane._held if not lane.has_in_hand(d))))
    await lane.stop()
    lane.done(second.message.id)
    assert memory.used == 0


async def test_mail_for_an_upstream_that_is_down_leaves_half_of_the_memory_to_clients(store: SqliteStore) -> None:
    memory = MemoryBudget(200)
    lane = Lane("acme", store, memory, lambda: NOW, window=100, ready=Bell())
    lane.gate.trouble(NOW, "down", 0.0)
    for delivery in await accept(store, 20):
        lane.push(delivery)
    assert lane.take() is None
    assert memory.used == 8 * 12
    assert memory.welcomes(100)
    await lane.stop()
    assert memory.used == memory.lent == 0


async def test_where_memory_is_short_content_is_left_on_disk(store: SqliteStore) -> None:
    bell = Bell()
    lane = lane_over(store, bell, memory=20)
    lane.start()
    [delivery] = await accept(store, 1)
    lane.push(delivery)
    await bell.wait()
    taken = lane.take()
    assert taken is not None
    assert taken.content is None
    await lane.stop()


async def test_a_message_in_hand_cannot_be_claimed_and_a_claimed_one_cannot_be_taken(store: SqliteStore) -> None:
    bell = Bell()
    lane = lane_over(store, bell)
    first, second = await accept(store, 2)
    lane.push(first)
    lane.push(second)
    taken = lane.take()
    assert taken is first
    assert not lane.claim(first.message.id)
    assert lane.claim(second.message.id)
    assert lane.take() is None
    lane.unclaim(second.message.id)
    bell.event.clear()
    lane.start()
    await bell.wait()
    again = lane.take()
    assert again is not None
    assert again.message.id == second.message.id
    await lane.stop()


async def test_a_paused_or_blocked_lane_hands_out_nothing(store: SqliteStore) -> None:
    lane = lane_over(store, Bell())
    for delivery in await accept(store, 3):
        lane.push(delivery)
    lane.gate.trouble(NOW, "down", 0.0)
    assert lane.take() is None
    lane.gate.success()
    lane.blocked = 1
    assert lane.take() is None
    lane.blocked = 0
    assert lane.take() is not None
    await lane.stop()


class SlowStore:
    """The real store, whose answers to `due` tests hold back, change, or replace by a failure."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self.asked = 0
        self.answered = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.faults: list[Exception | Due] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    async def due(self, lane: str, now: int, limit: int, skip: Container[MessageId], urgency: int) -> Due:
        if urgency:
            return await self._store.due(lane, now, limit, skip, urgency)
        self.asked += 1
        if self.faults:
            fault = self.faults.pop(0)
            if isinstance(fault, Exception):
                raise fault
            return fault
        due = await self._store.due(lane, now, limit, skip)
        self.answered.set()
        await self.may_answer.wait()
        return due


def slow_lane(store: SlowStore, bell: Bell, *, window: int = 100) -> Lane:
    return Lane("acme", cast("Store", store), MemoryBudget(1 << 20), lambda: NOW, window=window, ready=bell)


async def test_a_lane_that_is_emptied_amid_a_backlog_reads_it_again(store: SqliteStore) -> None:
    await accept(store, 20)
    bell = Bell()
    lane = lane_over(store, bell, window=4)
    lane.start()
    await bell.wait()
    lane.clear()
    await bell.wait()
    assert lane.take() is not None
    await lane.stop()


async def test_carriers_are_called_for_each_message_that_is_read(store: SqliteStore) -> None:
    await accept(store, 5)
    calls: list[Lane] = []
    done = asyncio.Event()

    def ready(lane: Lane) -> None:
        calls.append(lane)
        if len(calls) == 5:
            done.set()

    lane = Lane("acme", store, MemoryBudget(1 << 20), lambda: NOW, window=100, ready=ready)
    lane.start()
    await asyncio.wait_for(done.wait(), 10)
    await lane.stop()


@pytest.mark.parametrize("fault", [StoreError("busy"), ValueError("a row that nobody understands")])
async def test_a_lane_looks_again_whatever_its_store_ran_into(
    store: SqliteStore, fault: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "FEED_RETRY", 0.01)
    await accept(store, 1)
    bell = Bell()
    slow = SlowStore(store)
    slow.faults = [fault]
    lane = slow_lane(slow, bell)
    lane.start()
    await bell.wait()
    assert lane.take() is not None
    await lane.stop()


async def test_a_lane_asks_again_where_the_store_has_more_but_gave_nothing(store: SqliteStore) -> None:
    await accept(store, 1)
    bell = Bell()
    slow = SlowStore(store)
    slow.faults = [Due([], NOW)]
    lane = slow_lane(slow, bell)
    lane.start()
    await bell.wait()
    assert lane.take() is not None
    await lane.stop()


@pytest.mark.parametrize("how", ["claim", "clear"])
async def test_what_changes_while_the_store_is_asked_is_not_taken_as_it_was(store: SqliteStore, how: str) -> None:
    [delivery] = await accept(store, 1)
    bell = Bell()
    slow = SlowStore(store)
    slow.may_answer.clear()
    lane = slow_lane(slow, bell)
    lane.start()
    await asyncio.wait_for(slow.answered.wait(), 10)
    if how == "claim":
        assert lane.claim(delivery.message.id)
    await store.relane(lambda *_: "elsewhere", ())
    if how == "claim":
        lane.unclaim(delivery.message.id)
    else:
        lane.clear()
    asked = slow.asked
    slow.may_answer.set()
    await until(lambda: slow.asked > asked and not len(lane))
    assert lane.take() is None
    await lane.stop()


@pytest.mark.parametrize("fresh", [False, True])
async def test_a_recipient_that_came_due_while_another_was_in_hand_is_looked_for(
    store: SqliteStore, fresh: bool
) -> None:
    message = make_message(store.mint(), accepted_at=NOW)
    now, later = make_waiting(0, due=NOW), make_waiting(1, due=NOW + 10_000, lane="other")
    await store.accept(message, [now, later], b"A: b\r\n\r\nhi\r\n")
    bell = Bell()
    slow = SlowStore(store)
    lane = slow_lane(slow, bell)
    if fresh:
        lane.push(Delivery(message, (now,), b"A: b\r\n\r\nhi\r\n"))
    lane.start()
    await bell.wait()
    taken = lane.take()
    assert taken is not None
    assert [w.n for w in taken.recipients] == [0]
    # the routes bring the other recipient here, while the first one is being sent
    await store.settle(move(message, [(later, "acme")], NOW))
    asked = slow.asked
    lane.due_at(NOW, message.id)
    await until(lambda: slow.asked > asked)
    await store.settle(make_settlement(message, [now], State.DELIVERED, at=NOW))
    bell.event.clear()
    lane.done(message.id)
    await bell.wait()
    again = lane.take()
    assert again is not None
    assert [w.n for w in again.recipients] == [1]
    await lane.stop()


async def test_a_clock_that_is_put_forward_makes_mail_due_that_nobody_told_of(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "LOOK", 0.02)
    await accept(store, 1, due=NOW + 3_600_000)
    now = NOW
    bell = Bell()
    lane = Lane("acme", store, MemoryBudget(1 << 20), lambda: now, window=100, ready=bell)
    lane.start()
    await until(lambda: bool(lane.turns.of(0).looked))
    now += 3_600_000
    await bell.wait()
    assert lane.take() is not None
    await lane.stop()


async def test_another_window_holds_from_a_reload_on(store: SqliteStore) -> None:
    await accept(store, 40)
    bell = Bell()
    lane = lane_over(store, bell, window=4)
    lane.start()
    await bell.wait()
    lane.resize(40)
    lane.clear()
    await bell.wait()
    assert len(lane) == 20
    await lane.stop()
