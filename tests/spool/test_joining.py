"""Big contents are put together by another way than small ones, with the same result."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.spool.joining import APART, Joiner, join

PIECES = st.lists(st.binary(max_size=64).map(lambda seed: seed * 4001), max_size=40)


@given(PIECES, st.lists(st.booleans(), min_size=40, max_size=40))
def test_it_is_what_bytes_join_makes(pieces: list[bytes], viewed: list[bool]) -> None:
    mixed = [memoryview(piece) if view else piece for piece, view in zip(pieces, viewed, strict=False)]
    assert join(list(mixed)) == b"".join(pieces)


def test_more_pieces_than_one_call_takes() -> None:
    pieces = [b"%04d" % n * 500 for n in range(2500)]
    assert sum(map(len, pieces)) > APART
    assert join(list(pieces)) == b"".join(pieces)


async def test_small_and_big_ones_are_awaited_alike() -> None:
    joiner = Joiner()
    for pieces in ([], [b"one"], [memoryview(b"one")], [b"a", b"b"], [b"x" * APART], [b"x" * APART, b"y"]):
        whole = await joiner.joined(list(pieces))
        assert type(whole) is bytes and whole == b"".join(pieces)


@pytest.mark.parametrize("broken", ["memfd_create", "writev"])
def test_without_descriptor_or_memory_it_is_joined_all_the_same(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> NoReturn:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, broken, fails)
    assert join([b"x" * APART, b"y"]) == b"x" * APART + b"y"


def test_a_short_write_or_read_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    write, read = os.writev, os.pread

    def half(fd: int, buffers: Sequence[bytes]) -> int:
        return write(fd, buffers[:1])

    def less(fd: int, size: int, at: int) -> bytes:
        return read(fd, size // 2 + 1, at)

    whole = b"x" * APART + b"y" * APART
    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", half)
        assert join([whole[:APART], whole[APART:]]) == whole
    monkeypatch.setattr(os, "pread", less)
    assert join([whole[:APART], whole[APART:]]) == whole
