"""How long a commit waits for others to share it: as long as the loop is busy, within a bound."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from relayd.spool.company import COMPANY, STILL, company

BUSY = COMPANY / 4


async def turns(clock: Callable[[], float]) -> int:
    """How many turns of the loop it waited."""
    count = 0

    def turn() -> None:
        nonlocal count, handle
        count += 1
        handle = loop.call_soon(turn)

    loop = asyncio.get_running_loop()
    handle = loop.call_soon(turn)
    try:
        await company(clock)
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
        ([COMPANY * 50], 1),
    ],
)
async def test_it_waits_while_turns_are_busy_and_not_longer_than_it_may(seconds: list[float], waited: int) -> None:
    moments = [100.0]
    for each in seconds:
        moments.append(moments[-1] + each)
    assert await turns(iter(moments).__next__) == waited
