"""Where segments lie and how their files are made, set aside and removed. What is in them is schema.py's."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from relayd.core.units import Millis
from relayd.spool import schema
from relayd.spool.store import StoreError

_NAME = re.compile(r"(\d{8}T\d{6})(\d{3})Z\.db")
_MAGIC = b"SQLite format 3\x00"
SUFFIXES = ("", "-wal", "-shm")
DAMAGED = ".damaged"
RECOVERED = ".recovered"
"""What could be read of it is in a whole segment again: kept for experts, in nobody's way."""


def slot_directory(directory: Path, slot: int) -> Path:
    """The folder of one worker slot."""
    return directory / f"{slot:03d}"


def slots_on_disk(directory: Path) -> list[int]:
    """Every slot that has a folder, in order."""
    if not directory.is_dir():
        return []
    return sorted(int(child.name) for child in directory.iterdir() if child.name.isdigit() and child.is_dir())


def name_of(start: Millis) -> str:
    """The file name of the segment that begins at `start`."""
    moment = datetime.fromtimestamp(start // 1000, UTC)
    return f"{moment:%Y%m%dT%H%M%S}{start % 1000:03d}Z.db"


def start_of(path: Path) -> Millis:
    """The moment in a segment's file name. Raises ValueError."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"{path.name!r} is not the name of a segment")
    moment = datetime.strptime(match[1], "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
    return round(moment.timestamp()) * 1000 + int(match[2])


def segments_in(folder: Path) -> list[Path]:
    """The segments of one slot, oldest first."""
    if not folder.is_dir():
        return []
    return sorted((child for child in folder.iterdir() if _NAME.fullmatch(child.name)), key=start_of)


def damaged_in(directory: Path) -> Iterator[Path]:
    """Segments that were set aside, of all slots."""
    for slot in slots_on_disk(directory):
        yield from sorted(slot_directory(directory, slot).glob(f"*.db{DAMAGED}"))


@dataclass(frozen=True, slots=True)
class Header:
    """What the first octets of a database say (https://www.sqlite.org/fileformat.html)."""

    version: int
    """Of the schema."""
    mark: int
    """schema.OPEN while commits may lie in the WAL."""
    pages: int
    """How many the file should have; 0 where that is not known."""


def header_of(path: Path) -> Header | None:
    """The header, without opening it as a database; None when it is no database. Raises OSError."""
    with path.open("rb") as file:
        octets = file.read(100)
    if len(octets) < 100 or not octets.startswith(_MAGIC):
        return None
    changes, pages, valid_for = (int.from_bytes(octets[at : at + 4], "big") for at in (24, 28, 92))
    version, mark = (int.from_bytes(octets[at : at + 4], "big") for at in (60, 68))
    return Header(version, mark, pages if changes == valid_for else 0)


def version_of(path: Path) -> int | None:
    """The schema version in the header; None when it is no database. Raises OSError."""
    header = header_of(path)
    return None if header is None else header.version


def refuse_newer(path: Path, known: int) -> None:
    """Raises StoreError where a newer relayd has written a file, OSError. Changes nothing."""
    version = version_of(path)
    if version is not None and version > known:
        raise StoreError(
            f"{path} was written by a newer relayd (schema {version}, this one knows {known}); nothing was changed"
        )


def make_folder(folder: Path) -> None:
    """Make a folder that only we can read, durably. Raises OSError."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    sync_folder(folder.parent)


def make_segment(path: Path) -> None:
    """Make an empty segment: whole or not at all, whatever crashes. Raises OSError, sqlite3.Error."""
    make_folder(path.parent)
    new = path.with_suffix(".new")
    remove(new)
    # SQLite gives -wal and -shm the mode of the database, so it must be right from the start
    os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    try:
        with closing(schema.connect(new, create=True)) as db:
            schema.create_tables(db)
        put_in_place(new, path)
    except (sqlite3.Error, OSError):
        remove(new)
        raise


def put_in_place(new: Path, path: Path) -> None:
    """Give a file that is whole, and closed (which has checkpointed: it alone is the segment), its name, durably.

    Raises OSError.
    """
    _sync(new)
    new.rename(path)
    sync_folder(path.parent)


def set_aside(path: Path) -> Path:
    """Rename a damaged segment so that nobody opens it again; its new name. Raises OSError."""
    aside = path.with_name(path.name + DAMAGED)
    if aside.exists():
        raise StoreError(f"{aside} is there already")
    rename(path, aside)
    return aside


def rename(path: Path, name: Path) -> None:
    """Rename a segment with its -wal and -shm, durably. Raises OSError."""
    for suffix in SUFFIXES:
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(name.with_name(name.name + suffix))
    sync_folder(path.parent)


def remove(path: Path) -> None:
    """Unlink a segment with its -wal and -shm. Raises OSError."""
    for suffix in SUFFIXES:
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make names in a folder durable. Raises OSError."""
    _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
