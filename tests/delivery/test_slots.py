"""Connections to an upstream, shared by workers: together never more than its limit."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from relayd.delivery.slots import ConnectionSlots


@pytest.mark.parametrize(("limit", "workers"), [(10, 2), (3, 2), (7, 4), (4, 4), (1, 1), (20, 3)])
def test_fixed_shares_add_up_to_the_limit(tmp_path: Path, limit: int, workers: int) -> None:
    shares = [ConnectionSlots(tmp_path, "acme", limit, slot, workers).most for slot in range(workers)]
    assert sum(shares) == limit
    assert min(shares) >= 1


async def test_fewer_connections_than_workers_are_leased_in_turn(tmp_path: Path) -> None:
    first, second, third = (ConnectionSlots(tmp_path, "acme", 2, slot, 3) for slot in range(3))
    await first.acquire()
    await second.acquire()
    waiting = asyncio.create_task(third.acquire())
    done, _ = await asyncio.wait([waiting], timeout=0.2)
    assert not done
    first.release()
    await asyncio.wait_for(waiting, 10)
    second.release()
    third.release()


async def test_what_is_released_can_be_leased_again(tmp_path: Path) -> None:
    slots = ConnectionSlots(tmp_path, "acme", 1, 0, 2)
    for _ in range(5):
        await asyncio.wait_for(slots.acquire(), 10)
        slots.release()


async def test_who_gives_a_lease_up_lets_those_go_first_who_wait(tmp_path: Path) -> None:
    first, second = (ConnectionSlots(tmp_path, "acme", 1, slot, 2) for slot in range(2))
    await first.acquire()
    assert not first.wanted()
    waiting = asyncio.create_task(second.acquire())
    async with asyncio.timeout(10):
        while not first.wanted():  # noqa: ASYNC110 - a lock on a file rings no bell
            await asyncio.sleep(0.01)
    first.release(after_you=True)
    again = asyncio.create_task(first.acquire())
    assert await asyncio.wait_for(waiting, 10)
    assert not again.done()
    second.release()
    assert await asyncio.wait_for(again, 10)
    first.release()


async def test_waiting_for_a_lease_can_be_given_up(tmp_path: Path) -> None:
    first, second = (ConnectionSlots(tmp_path, "acme", 1, slot, 2) for slot in range(2))
    await first.acquire()
    stopping = False
    waiting = asyncio.create_task(second.acquire(lambda: stopping))
    await asyncio.wait([waiting], timeout=0.1)
    stopping = True
    assert not await asyncio.wait_for(waiting, 10)
    assert not first.wanted()
    first.release()


async def test_the_lane_of_an_account_leases_as_any_other(tmp_path: Path) -> None:
    slots = ConnectionSlots(tmp_path, "office365/team@example.com", 1, 0, 2)
    assert await asyncio.wait_for(slots.acquire(), 10)
    assert not slots.wanted()
    slots.release()
