"""Saves what can be read of state.db and the other small databases into a new file, table by table.

Their rows do not depend on each other as those of a segment do, so each is copied as it is. Segments: salvage.py.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from relayd.spool import files
from relayd.spool.faults import store_error
from relayd.spool.store import StoreError


@dataclass(slots=True)
class Rescue:
    """What became of a damaged database."""

    path: str
    rows: int = 0
    incomplete: list[str] = field(default_factory=list)
    """Tables that could not be read to the end."""


def rescue(path: Path) -> Rescue:
    """Replace a database that nobody has open by one that holds what can be read; the old file is kept beside it.

    Raises StoreError where not even its tables can be seen: then only a backup helps.
    """
    found = Rescue(str(path))
    draft = path.with_name(path.name + ".recovering")
    try:
        files.remove(draft)
        os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        with (
            closing(sqlite3.connect(path, timeout=10, isolation_level=None)) as old,
            closing(sqlite3.connect(draft, isolation_level=None)) as new,
        ):
            _copy(old, new, found)
        kept = path.with_name(path.name + files.RECOVERED)
        files.remove(kept)
        files.rename(path, kept)
        files.put_in_place(draft, path)
    except sqlite3.DatabaseError as error:
        raise StoreError(f"nothing can be read of {path} ({error}): put a backup in its place") from error
    except OSError as error:
        raise store_error(error) from error
    finally:
        files.remove(draft)
    return found


def _copy(old: sqlite3.Connection, new: sqlite3.Connection, found: Rescue) -> None:
    [version] = old.execute("PRAGMA user_version").fetchone()
    parts = old.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    new.execute("BEGIN")
    tables = [name for kind, name, _ in parts if kind == "table" and name != "sqlite_sequence"]
    for kind, name, sql in sorted(parts, key=lambda part: part[0] != "table"):
        if name == "sqlite_sequence":
            continue
        if kind == "table":
            new.execute(sql)
    for table in [*tables, *(["sqlite_sequence"] if len(tables) < sum(part[0] == "table" for part in parts) else [])]:
        columns = old.execute(f"PRAGMA table_info({table})").fetchall()
        key = [name for _, name, *_, place in sorted(columns, key=lambda column: column[-1]) if place]
        marks = ", ".join("?" * len(columns))
        for row in _rows(old, table, ", ".join(f"{name} DESC" for name in key or ["rowid"]), found):
            found.rows += new.execute(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", row).rowcount  # noqa: S608
    for kind, _, sql in parts:
        if kind == "index":
            new.execute(sql)
    new.execute(f"PRAGMA user_version = {version}")
    new.execute("COMMIT")


def _rows(db: sqlite3.Connection, table: str, backwards: str, found: Rescue) -> Iterator[tuple[object, ...]]:
    """From the beginning up to the damage, and from the end back to it."""
    try:
        yield from db.execute(f"SELECT * FROM {table}")  # noqa: S608
    except (sqlite3.Error, UnicodeError):
        found.incomplete.append(table)
        try:
            yield from db.execute(f"SELECT * FROM {table} ORDER BY {backwards}")  # noqa: S608
        except (sqlite3.Error, UnicodeError):
            return
