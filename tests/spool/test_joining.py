"""Big contents are put together by another way than small ones, with the same result."""

from __future__ import annotations

import asyncio
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.spool.joining import APART, STEP, Joiner, join

PIECES = st.lists(st.binary(max_size=64).map(lambda seed: seed * 4001), max_size=40)


@given(PIECES, st.lists(st.booleans(), min_size=40, max_size=40))
def test_it_is_what_bytes_join_makes(pieces: list[bytes], viewed: list[bool]) -> None:
    mixed = [memoryview(piece) if view else piece for piece, view in zip(pieces, viewed, strict=False)]
    assert join(list(mixed)) == b"".join(pieces)


@pytest.mark.parametrize("place", [0, 1, 2])
async def test_an_empty_piece_among_big_ones_is_nothing(place: int) -> None:
    pieces = [b"x" * APART, b"y" * APART]
    pieces.insert(place, b"")
    assert join(list(pieces)) == await Joiner().joined(list(pieces)) == b"x" * APART + b"y" * APART


async def test_small_and_big_ones_are_awaited_alike() -> None:
    joiner = Joiner()
    for pieces in ([], [b"one"], [memoryview(b"one")], [b"a", b"b"], [b"x" * APART], [b"x" * APART, b"y"]):
        whole = await joiner.joined(list(pieces))
        assert type(whole) is bytes and whole == b"".join(pieces)


@given(PIECES, st.lists(st.booleans(), min_size=40, max_size=40))
def test_in_steps_it_is_the_same(pieces: list[bytes], viewed: list[bool]) -> None:
    async def joined() -> bytes:
        mixed = [memoryview(piece) if view else piece for piece, view in zip(pieces, viewed, strict=False)]
        return await Joiner().joined(mixed)

    assert asyncio.run(joined()) == b"".join(pieces)


async def test_others_run_between_the_steps_and_pieces_are_let_go_one_by_one() -> None:
    pieces = [bytes([n]) * STEP for n in range(20)]
    whole, left = b"".join(pieces), []
    joining = asyncio.create_task(Joiner().joined(pieces))
    while not joining.done():
        left.append(len(pieces))
        await asyncio.sleep(0)
    assert joining.result() == whole
    assert set(range(20)) <= set(left)


async def test_two_at_once_take_turns() -> None:
    joiner, first, second = Joiner(), [b"a" * STEP] * 9, [b"b" * STEP] * 9
    results = await asyncio.gather(joiner.joined(first), joiner.joined(second))
    assert results == [b"a" * STEP * 9, b"b" * STEP * 9]


@pytest.mark.parametrize("broken", ["memfd_create", "pwrite", "preadv"])
def test_without_descriptor_or_memory_it_is_joined_all_the_same(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> NoReturn:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, broken, fails)
    assert join([b"x" * APART, b"y"]) == b"x" * APART + b"y"


def test_a_short_write_or_read_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    write, read = os.pwrite, os.preadv

    def half(fd: int, octets: memoryview, at: int) -> int:
        return write(fd, octets[: len(octets) // 2], at)

    def less(fd: int, buffers: Sequence[memoryview], at: int) -> int:
        return read(fd, [buffers[0][:1000]], at)

    whole = b"x" * APART + b"y" * APART
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", half)
        assert join([whole[:APART], whole[APART:]]) == whole
    monkeypatch.setattr(os, "preadv", less)
    assert join([whole[:APART], whole[APART:]]) == whole


async def test_small_pieces_of_a_big_one_take_no_turn_of_the_loop_each() -> None:
    pieces, turns = [b"x" * 4096] * 1024, 0
    joining = asyncio.create_task(Joiner().joined(pieces))
    while not joining.done():
        turns += 1
        await asyncio.sleep(0)
    assert len(joining.result()) == 4096 * 1024
    assert turns <= 4096 * 1024 // STEP + 4


_TWO_SIDE_BY_SIDE = """
import asyncio, os
from pathlib import Path
from relayd.spool.joining import Joiner

def held():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

before = held()
ours, others = [], []
for _ in range(1000):
    ours.append(b"x" * 60_000)
    others.append(b"y" * 60_000)
whole = asyncio.run(Joiner().joined(ours))
print((held() - before) // 1_000_000, len(whole), len(others))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have other ways")
def test_what_the_pieces_of_a_big_content_took_is_given_back_while_others_are_still_there() -> None:
    """120 MB of pieces, half of them joined: 180 MB where what was freed stays with us."""
    done = subprocess.run([sys.executable, "-c", _TWO_SIDE_BY_SIDE], capture_output=True, text=True, check=True)
    held, whole, others = map(int, done.stdout.split())
    assert (whole, others) == (60_000_000, 1000)
    assert held < 150
