"""Rates: in no window more than the rate allows, over several workers, crashes and restarts; permits are not wasted."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relayd.config.models import Config
from relayd.intake.rates import RateBook
from relayd.spool.state import StateDB, StateError
from tests.intake.conftest import CRM_HASH, make_config
from tests.support.clock import Clock


def rated(rate: str | None, workers: int = 2) -> Config:
    return make_config(workers=workers, credentials=[{"username": "crm", "password": CRM_HASH, "rate": rate}])


class QuickState(StateDB):
    """state.db without its fsyncs: for tests of many steps, none of which is about power cuts."""

    async def _transact(self, work: Callable[[sqlite3.Connection], Any], *, durable: bool = True) -> Any:
        return await super()._transact(work, durable=False)


async def drain(book: RateBook, most: int = 10_000) -> int:
    """How many permits there are right now."""
    taken = 0
    while taken < most and await book.take("crm"):
        taken += 1
    return taken


async def test_without_a_rate_all_goes(clock: Clock, state: StateDB) -> None:
    book = RateBook(rated(None), state, clock)
    assert book.take_now("crm") is True
    assert book.take_now("nobody") is True
    assert not book.exhausted("crm")


async def test_exactly_the_rate_then_no_more_until_the_window_has_moved_on(clock: Clock, state: StateDB) -> None:
    book = RateBook(rated("600/min"), state, clock)
    assert await drain(book) == 600
    assert book.exhausted("crm")
    assert book.take_now("crm") is False
    clock.advance(59.9)
    assert await drain(book) == 0
    clock.advance(0.2)
    assert await drain(book) == 600


async def test_workers_share_one_rate_to_the_last_permit(clock: Clock, state: StateDB) -> None:
    books = [RateBook(rated("100/min", 4), state, clock) for _ in range(4)]
    taken = 0
    for _ in range(60):
        for book in books:
            taken += await book.take("crm")
    assert taken == 100


async def test_permits_that_idle_workers_hold_come_back(clock: Clock, state: StateDB) -> None:
    books = [RateBook(rated("320/min", 2), state, clock) for _ in range(2)]
    assert await books[0].take("crm")
    clock.advance(10)
    await books[0].hand_back()
    assert await drain(books[1]) == 319


async def test_a_crash_never_widens_the_window(clock: Clock, state: StateDB) -> None:
    taken = 0
    for _ in range(100):
        book = RateBook(rated("64/min", 2), state, clock)  # the one before was killed with its slice in hand
        taken += await book.take("crm")
    assert 0 < taken <= 64
    clock.advance(70)
    assert await drain(RateBook(rated("64/min", 2), state, clock)) == 64


async def test_a_restart_does_not_reset_the_window(clock: Clock, tmp_path: Path) -> None:
    taken = []
    for _ in range(2):
        state = StateDB(tmp_path / "again.db")
        await state.open()
        book = RateBook(rated("64/min", 1), state, clock)
        await book.start()
        taken.append(await drain(book, 40))
        await book.stop()
        await state.close()
    assert taken == [40, 24]


async def test_most_messages_ask_nobody(clock: Clock, state: StateDB, monkeypatch: pytest.MonkeyPatch) -> None:
    book, asked = RateBook(rated("6400/min", 2), state, clock), []
    real = state.lease_rate

    async def lease(*args: Any, **named: Any) -> Any:
        asked.append(args)
        return await real(*args, **named)

    monkeypatch.setattr(state, "lease_rate", lease)
    for _ in range(2000):
        assert await book.take("crm")
    assert len(asked) <= 11


async def test_many_waiting_sessions_share_one_question_and_leaving_ones_lose_nothing(
    clock: Clock, state: StateDB
) -> None:
    book = RateBook(rated("160/min", 1), state, clock)
    leaving = [asyncio.create_task(book.take("crm")) for _ in range(20)]
    staying = [asyncio.create_task(book.take("crm")) for _ in range(200)]
    await asyncio.sleep(0)
    for task in leaving:
        task.cancel()
    assert sum(await asyncio.gather(*staying)) == 160
    await asyncio.gather(*leaving, return_exceptions=True)


async def test_a_changed_rate_counts_what_was_used_before(clock: Clock, state: StateDB) -> None:
    book = RateBook(rated("600/min"), state, clock)
    assert await drain(book, 100) == 100
    book.apply(rated("130/min"))
    assert await drain(book) == 30
    book.apply(rated(None))
    assert book.take_now("crm") is True
    book.apply(rated("140/min"))
    assert await drain(book) == 10


async def test_a_clock_that_steps_back_blocks_for_little_more_than_a_window(clock: Clock, state: StateDB) -> None:
    book = RateBook(rated("10/min"), state, clock)
    assert await drain(book) == 10
    clock.advance(-86_400)
    book = RateBook(rated("10/min"), state, clock)
    assert await drain(book) == 0
    clock.advance(60 + 65 + 60)
    assert await drain(book) == 10


async def test_a_disk_so_slow_that_slices_come_too_late_still_lets_mail_through(
    clock: Clock, state: StateDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = state.lease_rate

    async def lease(*args: Any, **named: Any) -> Any:
        slice_ = await real(*args, **named)
        clock.advance(2)
        return slice_

    monkeypatch.setattr(state, "lease_rate", lease)
    book = RateBook(rated("10/s"), state, clock)
    assert await book.take("crm")


async def test_a_failing_state_db_says_so_and_recovers(
    clock: Clock, state: StateDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = RateBook(rated("32/min", 1), state, clock)
    assert await drain(book, 5) == 5

    async def broken(*_: Any, **__: Any) -> None:
        raise StateError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(state, "lease_rate", broken)
        with pytest.raises(StateError):
            await drain(book)
        patch.setattr(state, "return_rates", broken)
        clock.advance(5)
        await book.hand_back()
    await book.hand_back()
    clock.advance(50)
    assert await drain(book) <= 27


async def test_rows_stay_few_however_many_messages(clock: Clock, state: StateDB) -> None:
    book = RateBook(rated("100000/day", 1), state, clock)
    for _ in range(3000):
        await book.take("crm")
        clock.advance(20)
    await book.stop()
    assert await state._transact(lambda db: db.execute("SELECT count(*) FROM rate_use").fetchone()[0]) <= 257


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.integers(0, 2)),
        st.tuples(st.just("wait"), st.sampled_from([10, 100, 900, 1000, 2500])),
        st.tuples(st.just("hand back"), st.integers(0, 2)),
        st.tuples(st.just("crash"), st.integers(0, 2)),
    ),
    max_size=120,
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, count=st.integers(1, 40))
def test_no_window_ever_holds_more_than_the_rate(
    steps: list[tuple[str, int]], count: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async def run(path: Path) -> list[int]:
        clock, state, used = Clock(), QuickState(path), []
        await state.open()
        make: Callable[[], RateBook] = lambda: RateBook(rated(f"{count}/s", 3), state, clock)  # noqa: E731
        books = [make() for _ in range(3)]
        for act, value in steps:
            if act == "wait":
                clock.now += value
            elif act == "crash":
                books[value] = make()
            elif act == "hand back":
                await books[value].hand_back()
            else:
                for _ in range(5):
                    if await books[value].take("crm"):
                        used.append(clock.now)
        await state.close()
        return used

    used = asyncio.run(run(tmp_path_factory.mktemp("rates") / "state.db"))
    for start in used:
        assert sum(start <= at < start + 1000 for at in used) <= count
