"""The disk's reserve of space and inodes, and the budget of memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.intake.disk import DiskWatch
from relayd.intake.memory import SMALL, SPARE, MemoryBudget
from tests.intake.conftest import make_config


@dataclass(frozen=True)
class Figures:
    f_bavail: int
    f_favail: int
    f_frsize: int = 4096
    f_blocks: int = 1000
    f_files: int = 1000


@pytest.mark.parametrize(
    ("figures", "low"),
    [
        (Figures(50, 50), False),
        (Figures(49, 1000), True),
        (Figures(1000, 49), True),
        (Figures(0, 0), True),
        (Figures(1000, 0, f_files=0), False),
    ],
)
def test_space_and_inodes_both_count(tmp_path: Path, figures: Figures, low: bool) -> None:
    watch = DiskWatch(tmp_path, 0.05)
    watch.read(figures)
    assert watch.low == low
    assert (watch.free_octets, watch.free_inodes) == (figures.f_bavail * 4096, figures.f_favail)


async def test_it_looks_at_the_start_and_after_a_reload(tmp_path: Path) -> None:
    watch = DiskWatch(tmp_path, 0.0)
    await watch.start()
    assert not watch.low
    assert watch.free_octets > 0
    await watch.stop()
    watch.apply(make_config(spool={"min_free": "60%"}))
    watch.read(Figures(599, 1000))
    assert watch.low
    watch.apply(make_config(spool={"min_free": "50%"}))
    watch.read(Figures(599, 1000))
    assert not watch.low


async def test_a_disk_that_does_not_answer_takes_no_mail(tmp_path: Path) -> None:
    watch = DiskWatch(tmp_path / "absent", 0.0)
    await watch.refresh()
    assert watch.low
    (tmp_path / "absent").mkdir()
    await watch.refresh()
    assert not watch.low


@given(st.lists(st.integers(0, 60), max_size=30))
def test_the_budget_is_never_passed_by_reserving(amounts: list[int]) -> None:
    budget, held = MemoryBudget(100), []
    for amount in amounts:
        room = budget.room(amount)
        assert budget.reserve(amount) == room
        if room:
            held.append(amount)
        elif held:
            budget.release(held.pop())
        assert budget.used == sum(held) <= 100
    assert budget.peak <= 100


def test_what_is_held_already_is_counted_beyond_the_limit() -> None:
    budget = MemoryBudget(100)
    budget.take(150)
    assert not budget.room(0)
    budget.release(150)
    assert (budget.used, budget.peak) == (0, 150)
    with pytest.raises(ValueError, match="only 0"):
        budget.release(1)


def test_who_sends_big_mails_leaves_room_for_small_ones() -> None:
    budget = MemoryBudget(1 << 20)
    budget.take(2 << 20)
    assert not budget.welcomes(SMALL + 1) and not budget.reserve(SMALL + 1)
    mails = 0
    while budget.reserve(1000):
        mails += 1
    assert mails == (1 << 20) // SPARE // 1000
    assert budget.welcomes(0) and not budget.welcomes(1000)
    assert not budget.reserve(SMALL, held=1000)
    budget.forget(1000)
    assert budget.welcomes(1000)


def test_mail_that_waits_for_an_upstream_keeps_no_client_out() -> None:
    budget = MemoryBudget(100)
    lent = 0
    while budget.lend(10):
        lent += 10
    assert lent == budget.used == budget.lent == 50
    assert budget.reserve(45)
    budget.returned(10)
    assert not budget.lend(10)  # twice that is not free
    budget.release(45)
    assert budget.lend(10)
    for _ in range(5):
        budget.returned(10)
    assert budget.used == budget.lent == 0


@given(st.lists(st.lists(st.integers(0, SMALL), max_size=6), max_size=8))
def test_what_mails_in_reception_hold_is_given_back_whatever_they_grew_to(mails: list[list[int]]) -> None:
    budget, sizes = MemoryBudget(4 * SMALL), []
    for pieces in mails:
        size = 0
        for piece in pieces:
            if not budget.reserve(piece, size):
                break
            size += piece
        sizes.append(size)
        assert budget.used == sum(sizes)
        assert budget.small == sum(size for size in sizes if size <= SMALL)
        assert budget.used <= budget.limit + budget.limit // SPARE
    for size in sizes:
        budget.forget(size)
    assert budget.used == budget.small == 0
