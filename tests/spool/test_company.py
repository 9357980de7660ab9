"""How long a commit waits for others to share it: as long as the loop is busy, within a bound that knows the load."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from relayd.spool.company import LONG, SHORT, STILL, Company

BUSY = SHORT / 4


class Clock:
    """Moments of a loop whose turns take the given seconds, one after the other; then `BUSY` each."""

    def __init__(self, *seconds: float) -> None:
        self._seconds: Iterator[float] = iter(seconds)
        self._now = 100.0
        self._first = True

    def __call__(self) -> float:
        if self._first:
            self._first = False
        else:
            self._now += next(self._seconds, BUSY)
        return self._now

    def next_wait(self) -> None:
        """What is asked next is the beginning of a wait, not the end of a turn."""
        self._first = True


async def turns(company: Company) -> int:
    """How many turns of the loop it waited."""
    count = 0

    def turn() -> None:
        nonlocal count, handle
        count += 1
        handle = loop.call_soon(turn)

    loop = asyncio.get_running_loop()
    handle = loop.call_soon(turn)
    try:
        await company.wait()
    finally:
        handle.cancel()
    return count


@pytest.mark.parametrize(
    ("seconds", "waited"),
    [
        ([0.0], 1),
        ([BUSY, 0.0], 2),
        ([BUSY, BUSY, STILL / 2], 3),
        ([BUSY] * 100, 4),
        ([SHORT * 50], 1),
    ],
)
async def test_it_waits_while_turns_are_busy_and_not_longer_than_it_may(seconds: list[float], waited: int) -> None:
    assert await turns(Company(Clock(*seconds))) == waited


async def test_where_the_loop_never_rests_each_wait_may_be_longer_up_to_a_bound() -> None:
    clock = Clock()
    company = Company(clock)
    waited = []
    for _ in range(5):
        clock.next_wait()
        waited.append(await turns(company))
    most = round(LONG / BUSY)
    assert waited == [4, 8, most, most, most]


async def test_where_it_rests_again_waits_become_short_again() -> None:
    company = Company()
    company.patience = LONG
    patience = []
    for _ in range(4):
        company._clock = Clock(0.0)
        await company.wait()
        patience.append(company.patience)
    assert patience == [LONG / 2, SHORT, SHORT, SHORT]
