"""What one worker finds out about an upstream, the others know: two books on one state.db, with real gates."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from relayd.delivery.failover import Why
from relayd.delivery.gate import Gate
from relayd.delivery.standings import PROBE, StandingBook
from relayd.spool import standings as rows
from relayd.spool.standings import Suspension, SuspensionKind, UpstreamEventKind
from relayd.spool.state import StateDB, open_state, transact
from tests.support.clock import Clock
from tests.support.dispatching import NO_LINE, Watcher


@dataclass
class Lane:
    gate: Gate = field(default_factory=Gate)
    opened_times: int = 0

    def opened(self) -> None:
        self.opened_times += 1


class Worker:
    """One worker's book with one lane, as its dispatcher would hold it."""

    def __init__(self, path: Path, clock: Clock, slot: int) -> None:
        self.state = StateDB(path)
        self.clock = clock
        self.watcher = Watcher()
        self.book = StandingBook(self.state, self.watcher, clock, owner=f"w{slot}", slot=slot, slots=2)
        self.lane = Lane()

    async def start(self) -> None:
        await self.state.open()
        await self.book.start()
        self.book.know("acme", self.lane)

    async def trouble(self) -> None:
        first = not self.lane.gate.paused
        self.lane.gate.trouble(self.clock(), "451 no line", 0)
        self.book.trouble("acme", self.lane.gate, NO_LINE, first=first)
        await self.book.stop()

    async def works(self) -> None:
        since = self.lane.gate.since
        assert self.lane.gate.success()
        self.book.works("acme", since)
        await self.book.stop()


@pytest.fixture
async def workers(tmp_path: Path) -> AsyncIterator[tuple[Worker, Worker]]:
    clock = Clock()
    one, two = (Worker(tmp_path / "state.db", clock, slot) for slot in range(2))
    await one.start()
    await two.start()
    yield one, two
    for worker in (one, two):
        await worker.book.stop()
        await worker.state.close()


def history(path: Path) -> list[UpstreamEventKind]:
    with closing(open_state(path)) as db:
        return [event.kind for event in reversed(rows.history(db, "acme", 100))]


async def test_a_pause_found_by_one_holds_for_all_and_ends_for_all(
    workers: tuple[Worker, Worker], tmp_path: Path
) -> None:
    one, two = workers
    await one.trouble()
    await two.book.poll()
    assert two.lane.gate.paused and two.watcher.paused_now == {"acme": True}
    found = two.book.unavailable("acme")
    assert found is not None and found.why is Why.PAUSED and found.reason == "451 no line"
    one.clock.advance(6)
    assert two.book.unavailable("acme") is None
    assert await one.book.may_probe("acme")
    assert not await two.book.may_probe("acme")
    assert two.lane.gate.left(two.clock()) > 0
    await one.trouble()
    await two.book.poll()
    assert two.lane.gate.paused_until == one.lane.gate.paused_until
    one.clock.advance(20)
    assert await two.book.may_probe("acme")
    await two.works()
    await one.book.poll()
    assert not one.lane.gate.paused and one.lane.opened_times == 1
    assert history(tmp_path / "state.db") == [UpstreamEventKind.PAUSED, UpstreamEventKind.RESUMED]
    assert one.watcher.upstream_events == [("acme", "paused")]
    assert two.watcher.upstream_events == [("acme", "resumed")]


async def test_a_worker_that_dies_while_it_probes_keeps_no_one_waiting_for_long(
    workers: tuple[Worker, Worker],
) -> None:
    one, two = workers
    await one.trouble()
    await two.book.poll()
    one.clock.advance(6)
    assert await one.book.may_probe("acme")
    one.clock.advance(PROBE / 1000 + 3)
    assert await two.book.may_probe("acme")


async def test_a_suspension_by_hand_lasts_over_restarts_until_its_time_is_over(
    workers: tuple[Worker, Worker], tmp_path: Path
) -> None:
    one, two = workers
    now = one.clock()
    new = Suspension("acme", SuspensionKind.HAND, now, now + 7_200_000, "maintenance", "ann")
    with closing(open_state(tmp_path / "state.db")) as db:
        transact(db, lambda db: rows.suspend(db, new, {}))
    for worker in workers:
        await worker.book.poll()
        assert worker.lane.gate.shut and not worker.lane.gate.may_take(now)
        found = worker.book.unavailable("acme/info@example.com")
        assert found is not None and found.why is Why.SUSPENDED
    assert one.watcher.upstream_events == [("acme", "suspended")] and not two.watcher.upstream_events
    again = Worker(tmp_path / "state.db", one.clock, 0)
    await again.start()
    assert again.lane.gate.shut
    await again.state.close()
    one.clock.advance(7201)
    await two.book.poll()
    await one.book.poll()
    assert not one.lane.gate.shut and not two.lane.gate.shut
    assert history(tmp_path / "state.db") == [UpstreamEventKind.SUSPENDED, UpstreamEventKind.RESUMED]


async def test_what_was_changed_is_tried_at_once_whatever_stands_in_the_file(workers: tuple[Worker, Worker]) -> None:
    one, _ = workers
    await one.trouble()
    one.lane.gate.end_pause()
    one.book.try_now("acme")
    await one.book.stop()
    await one.book.poll()
    assert one.lane.gate.may_take(one.clock())


async def test_history_is_kept_within_bounds_and_told_by_upstream(tmp_path: Path) -> None:
    with closing(open_state(tmp_path / "state.db")) as db:

        def fill(db: sqlite3.Connection) -> None:
            for at in range(rows.KEPT + 300):
                rows.tell(db, rows.UpstreamEvent("acme/a@b.example", at, UpstreamEventKind.PAUSED, {"reason": "x"}))
            rows.tell(db, rows.UpstreamEvent("acme2", 1, UpstreamEventKind.PAUSED, {}))

        transact(db, fill)
        found = rows.history(db, "acme", 10_000)
        assert rows.KEPT <= len(found) <= rows.KEPT + 64
        assert found[0].at == rows.KEPT + 299
        assert rows.history(db, "acme/a@b.example", 1) == found[:1]
