"""Rows read from the pages of a broken database, without the trees that lead to them: what SQLite itself gives up on.

Form of the file: https://www.sqlite.org/fileformat2.html. Which table a row belongs to is for the caller to see: its
columns tell. Nothing here raises for what a page holds; a cell that makes no sense is counted and passed over.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from relayd.spool.schema import PAGE

_TABLE_LEAF, _INDEX_LEAF, _INDEX_INTERIOR = 13, 10, 2
_LOCAL_TABLE = PAGE - 35
_LOCAL_INDEX = (PAGE - 12) * 64 // 255 - 23
_LEAST = (PAGE - 12) * 32 // 255 - 23
_FIXED = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}
_MOST = 2**30
"""Octets of the largest row that can be: SQLite's own limit."""


class Pages(Protocol):
    """A database by its pages, the first is 1."""

    @property
    def count(self) -> int:
        """How many there are."""

    def page(self, number: int) -> bytes:
        """One of them; short or empty where it is not there."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row. `rowid` is None in trees of an index, which tables WITHOUT ROWID are, too."""

    rowid: int | None
    values: Sequence[Any]


class Damage:
    """Counts what could not be read."""

    def __init__(self) -> None:
        self.cells = 0


def rows(pages: Pages, damage: Damage) -> Iterator[Row]:
    """Every row of every tree, page by page. Pages of the free list are left out as far as it can be read."""
    free = _free(pages)
    for number in range(1, pages.count + 1):
        if number in free:
            continue
        octets = pages.page(number)
        start = 100 if number == 1 else 0
        if len(octets) == PAGE and octets[start] in (_TABLE_LEAF, _INDEX_LEAF, _INDEX_INTERIOR):
            yield from _rows_of(pages, octets, start, damage)


def _free(pages: Pages) -> set[int]:
    """Pages that hold nothing any more: stale rows lie there."""
    found: set[int] = set()
    first = pages.page(1)
    trunk = int.from_bytes(first[32:36], "big") if len(first) == PAGE else 0
    while trunk and trunk not in found and trunk <= pages.count:
        octets = pages.page(trunk)
        if len(octets) < PAGE:
            break
        found.add(trunk)
        following, count = struct.unpack_from(">II", octets)
        if count > PAGE // 4 - 2:
            break
        found.update(struct.unpack_from(f">{count}I", octets, 8))
        trunk = following
    return found


def _rows_of(pages: Pages, octets: bytes, start: int, damage: Damage) -> Iterator[Row]:
    kind = octets[start]
    count = int.from_bytes(octets[start + 3 : start + 5], "big")
    pointers = start + (12 if kind == _INDEX_INTERIOR else 8)
    if pointers + 2 * count > PAGE:
        damage.cells += 1
        return
    for at in struct.unpack_from(f">{count}H", octets, pointers):
        try:
            yield _cell(pages, octets, kind, at)
        except (ValueError, IndexError, struct.error):
            damage.cells += 1


def _cell(pages: Pages, octets: bytes, kind: int, at: int) -> Row:
    """One cell. Raises ValueError, IndexError, struct.error where it makes no sense."""
    if kind == _INDEX_INTERIOR:
        at += 4
    size, at = _varint(octets, at)
    rowid: int | None = None
    if kind == _TABLE_LEAF:
        rowid, at = _varint(octets, at)
        rowid = rowid - 2**64 if rowid >= 2**63 else rowid
    if not 0 < size <= _MOST:
        raise ValueError("no row is that large")
    return Row(rowid, _record(_payload(pages, octets, at, size, kind)))


def _payload(pages: Pages, octets: bytes, at: int, size: int, kind: int) -> bytes:
    most = _LOCAL_TABLE if kind == _TABLE_LEAF else _LOCAL_INDEX
    if size <= most:
        local = size
    else:
        local = _LEAST + (size - _LEAST) % (PAGE - 4)
        local = local if local <= most else _LEAST
    if at + local > PAGE:
        raise ValueError("the cell ends behind its page")
    if local == size:
        return octets[at : at + size]
    parts, left = [octets[at : at + local]], size - local
    [following] = struct.unpack_from(">I", octets, at + local)
    while left:
        page = pages.page(following) if 1 < following <= pages.count else b""
        if len(page) < PAGE:
            raise ValueError("an overflow page is missing")
        parts.append(page[4 : 4 + min(left, PAGE - 4)])
        left -= len(parts[-1])
        following = int.from_bytes(page[:4], "big")
    return b"".join(parts)


def _record(payload: bytes) -> list[Any]:
    end, at = _varint(payload, 0)
    if end > len(payload):
        raise ValueError("the row's head is longer than the row")
    kinds = []
    while at < end:
        kind, at = _varint(payload, at)
        kinds.append(kind)
    values: list[Any] = []
    for kind in kinds:
        value, end = _value(payload, kind, end)
        values.append(value)
    if end != len(payload):
        raise ValueError("the row has another length than its columns")
    return values


def _value(payload: bytes, kind: int, at: int) -> tuple[Any, int]:
    if kind in _FIXED:
        end = at + _FIXED[kind]
        return int.from_bytes(payload[at:end], "big", signed=True), end
    if kind >= 12:
        end = at + (kind - 12) // 2
        octets = payload[at:end]
        return octets.decode() if kind % 2 else octets, end  # a UnicodeDecodeError is a ValueError
    if kind in (8, 9):
        return kind - 8, at
    if kind == 0:
        return None, at
    raise ValueError("no such kind of value")  # 7 is a float, which no column of ours is; 10 and 11 are reserved


def _varint(octets: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place in range(at, at + 8):
        octet = octets[place]
        value = value << 7 | octet & 0x7F
        if octet < 0x80:
            return value, place + 1
    return value << 8 | octets[at + 8], at + 9
