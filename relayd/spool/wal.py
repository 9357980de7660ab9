"""What SQLite does not say of a segment's WAL: whether it lacks commits that were on disk, and what of it can be saved.

SQLite reads a WAL up to the first frame that does not fit, and takes the rest for a write that a crash cut short.
Where a later commit follows, that is no crash but damage: each commit is on disk before the next one is begun
(`synchronous=FULL`). Form of the file: https://www.sqlite.org/walformat.html.
"""

from __future__ import annotations

import sqlite3
import struct
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from relayd.spool import files
from relayd.spool.schema import OPEN, PAGE

HEADER = 32
FRAME = 24 + PAGE
_HEADER = struct.Struct(">8I")
_FRAME = struct.Struct(">6I")
_ACCEPTED_AT = 16
"""Where the -shm keeps the number of frames that hold (mxFrame), in the machine's own byte order."""
_MASK = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Frame:
    """The head of one frame."""

    page: int
    commit: int
    """Pages in the database behind this commit; 0 in frames that end none."""
    salts: tuple[int, int]
    checksum: tuple[int, int]


def path_of(segment: Path) -> Path:
    """Its WAL."""
    return segment.with_name(segment.name + "-wal")


def fault(segment: Path) -> str:
    """Why a segment that nobody has open lacks commits that were on disk; "" where it does not. Changes nothing.

    Raises OSError, sqlite3.Error.
    """
    wal = path_of(segment)
    size = wal.stat().st_size if wal.exists() else 0
    header = files.header_of(segment)
    if header is None:
        return ""  # which SQLite says better
    if size < HEADER:
        if header.mark == OPEN:
            return "its WAL is missing: what was committed last is lost"
        if segment.stat().st_size < header.pages * PAGE:
            return f"it is truncated: {header.pages} pages of it should be there"
        return ""
    with wal.open("rb") as file:
        return _fault_of(file, _accepted(segment), size)


def _fault_of(file: BinaryIO, accepted: int, size: int) -> str:
    salts = _salts(file, size)
    commit: Frame | None = None
    for place in range(accepted, (size - HEADER) // FRAME):
        frame = _head(file, place)
        if frame.salts != salts:
            commit = None  # of an earlier life of the WAL, or its head is damaged
            continue
        # chance is one in 2^64: what an earlier, failed commit left behind this one has other checksums
        if commit is not None and _follows(file, place, commit.checksum):
            return f"its WAL is damaged at frame {accepted + 1}: commits behind that are lost"
        commit = frame if frame.commit else None
    return ""


def _accepted(segment: Path) -> int:
    """How many frames SQLite takes for good."""
    with closing(sqlite3.connect(f"{segment.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)) as db:
        db.execute("PRAGMA schema_version").fetchone()
        index = segment.with_name(segment.name + "-shm")
        with index.open("rb") as file:
            return int(struct.unpack_from("=I", file.read(_ACCEPTED_AT + 4), _ACCEPTED_AT)[0])


def _salts(file: BinaryIO, size: int) -> tuple[int, int]:
    """Those of the header, or of the first frame where the header is damaged."""
    file.seek(0)
    octets = file.read(HEADER)
    *_, first, second, one, two = _HEADER.unpack(octets)
    if any(_sum(octets[:24], (0, 0), order) == (one, two) for order in "<>"):
        return first, second
    return _head(file, 0).salts if size >= HEADER + FRAME else (0, 0)


def _head(file: BinaryIO, place: int) -> Frame:
    file.seek(HEADER + place * FRAME)
    page, commit, *rest = _FRAME.unpack(file.read(_FRAME.size))
    return Frame(page, commit, (rest[0], rest[1]), (rest[2], rest[3]))


def _follows(file: BinaryIO, place: int, before: tuple[int, int]) -> bool:
    """The frame is whole, and was written behind one with that checksum."""
    file.seek(HEADER + place * FRAME)
    octets = file.read(FRAME)
    if len(octets) < FRAME:
        return False
    expected = _FRAME.unpack_from(octets)[4:]
    content = octets[:8] + octets[24:]
    return any(_sum(content, before, order) == expected for order in "<>")


def _sum(content: bytes, seed: tuple[int, int], order: str) -> tuple[int, int]:
    words = iter(struct.unpack(f"{order}{len(content) // 4}I", content))
    first, second = seed
    for one, two in zip(words, words, strict=True):
        first = (first + one + second) & _MASK
        second = (second + two + first) & _MASK
    return first, second


@dataclass(frozen=True, slots=True)
class Saved:
    """What can be read of a WAL."""

    pages: dict[int, int]
    """Page → where in the WAL its newest whole copy lies, damage before it or not."""
    broken: int
    """Frames before the last commit that are not whole."""


def saved(wal: Path) -> Saved:
    """The pages of the WAL's last life, up to its last commit. Half a millisecond for each. Raises OSError."""
    pages: dict[int, int] = {}
    size = wal.stat().st_size if wal.exists() else 0
    if size < HEADER + FRAME:
        return Saved(pages, 0)
    broken = 0
    with wal.open("rb") as file:
        salts = _salts(file, size)
        heads = [_head(file, place) for place in range((size - HEADER) // FRAME)]
        commits = [place for place, head in enumerate(heads) if head.salts == salts and head.commit]
        for place in range(commits[-1] + 1 if commits else 0):
            head = heads[place]
            before = heads[place - 1].checksum if place else _header_checksum(file)
            if head.salts == salts and head.page and _follows(file, place, before):
                pages[head.page] = HEADER + place * FRAME + 24
            else:
                broken += 1
    return Saved(pages, broken)


def _header_checksum(file: BinaryIO) -> tuple[int, int]:
    file.seek(0)
    found = _HEADER.unpack(file.read(HEADER))
    return found[6], found[7]
