"""Somebody puts the clock back: what waits does not wait for the old time to come round again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relayd.config.models import Spool
from relayd.core.lifecycle import State
from relayd.core.units import Millis
from relayd.delivery.clockwatch import ClockWatch
from relayd.spool.sqlite import SqliteStore
from tests.support.clock import Clock
from tests.support.mail import CONTENT, make_message, make_settlement, make_waiting

DAY = 86_400.0


class Lanes:
    """A dispatcher with one lane, that notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def lanes(self) -> list[str]:
        return ["acme"]

    def try_now(self, lane: str) -> bool:
        self.told.append(f"try {lane}")
        return True

    def wake_all(self) -> None:
        self.told.append("wake")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(tmp_path / "spool", 0, 1, Spool(), Clock())
    await store.open()
    yield store
    await store.close()


async def due_of(store: SqliteStore, number: int) -> Millis | None:
    return (await store.history(number)).recipients[0].due


async def deferred(store: SqliteStore, clock: Clock, seconds: float) -> int:
    """A mail that is to be tried again in so many seconds."""
    message, waiting = make_message(store.mint()), make_waiting(due=clock())
    await store.accept(message, [waiting], CONTENT)
    await store.settle(make_settlement(message, [waiting], State.DEFERRED, due=clock() + round(seconds * 1000)))
    return message.id


@pytest.mark.parametrize("step", [3600.0, DAY])
async def test_retries_keep_their_distance(store: SqliteStore, step: float) -> None:
    clock, lanes, passed = Clock(), Lanes(), 100.0
    store._clock = clock
    watch = ClockWatch(store, lanes, clock, lambda: passed)
    await watch.look()
    soon, later = await deferred(store, clock, 5), await deferred(store, clock, 2 * step)
    passed += 10
    clock.advance(10 - step)
    await watch.look()
    # one was due by now, the other has lost the time that has passed
    assert await due_of(store, soon) == clock()
    assert await due_of(store, later) == clock() + round((2 * step - 10) * 1000)
    assert lanes.told == ["try acme", "wake"]
    for change in (1.0, 1.0 - 20, 1.0 + step, 30.0):  # small corrections, and any step forward
        passed += 1
        clock.advance(change)
        await watch.look()
    assert lanes.told == ["try acme", "wake"]


async def test_a_clock_that_is_behind_the_newest_mail_at_the_start_was_put_back_meanwhile(tmp_path: Path) -> None:
    clock, lanes = Clock(), Lanes()
    store = SqliteStore(tmp_path / "spool", 0, 1, Spool(), clock)
    await store.open()
    number = await deferred(store, clock, 60)
    await store.close()
    clock.advance(-DAY)
    store = SqliteStore(tmp_path / "spool", 0, 1, Spool(), clock)
    await store.open()
    await ClockWatch(store, lanes, clock, lambda: 5.0).look()
    due = await due_of(store, number)
    assert due is not None and clock() <= due <= clock() + 60_000
    await store.close()
