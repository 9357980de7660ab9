"""Lanes on a real store: bounded windows, fresh and stored mail in turn, claims."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relayd.config.models import Spool
from relayd.core.mail import Envelope, Message, Origin, Recipient
from relayd.delivery.lanes import Lane
from relayd.intake.memory import MemoryBudget
from relayd.spool.sqlite import SqliteStore
from relayd.spool.store import Delivery, Waiting

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
    assert lane.claim(next(iter(d for d in lane._held if d not in lane.in_hand)))
    await lane.stop()
    lane.done(second.message.id)
    assert memory.used == 0


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
