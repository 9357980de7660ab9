"""Looks for damage in every database of a data directory: segments, those set aside, state.db and the rest. Read only.

Whether mail is accounted for is audit.py's; what can be saved of what is damaged, salvage.py's and rescue.py's.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from relayd.core.ids import format_id
from relayd.spool import files, wal
from relayd.spool.reader import SpoolReader, open_readonly
from relayd.spool.store import StoreError

DATABASES = ("state.db", "inbound.db", "sandbox.db")
_FAULTS = 20
"""Told of one file."""


@dataclass(frozen=True, slots=True)
class Checked:
    """One file."""

    path: Path
    faults: tuple[str, ...]
    aside: bool = False
    """It was set aside: nothing in it is sent."""


def check(data_dir: Path, *, live: bool) -> list[Checked]:
    """Every file, whole or not. `live`: a daemon runs, so that what is in a WAL may change while it is read."""
    spool = data_dir / "spool"
    found = [_segment(path, live=live) for path in SpoolReader(spool).segments()]
    found += [Checked(path, ("was set aside as damaged",), aside=True) for path in files.damaged_in(spool)]
    for name in DATABASES:
        path = data_dir / name
        if path.exists():
            found.append(Checked(path, _database(path)))
        aside = path.with_name(path.name + files.DAMAGED)
        if aside.exists():
            found.append(Checked(aside, ("was set aside as damaged",), aside=True))
    return found


def _segment(path: Path, *, live: bool) -> Checked:
    try:
        if not live and (fault := wal.fault(path)):
            return Checked(path, (fault,))
        with closing(open_readonly(path)) as db:
            return Checked(path, (*_integrity(db), *_contents(db))[:_FAULTS])
    except FileNotFoundError:
        return Checked(path, ())  # removed by retention meanwhile
    except (sqlite3.Error, StoreError, OSError) as error:
        return Checked(path, (str(error),))


def _database(path: Path) -> tuple[str, ...]:
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=10)) as db:
            return _integrity(db)
    except sqlite3.Error as error:
        return (str(error),)


def _integrity(db: sqlite3.Connection) -> tuple[str, ...]:
    return tuple(text for (text,) in db.execute(f"PRAGMA integrity_check({_FAULTS})") if text != "ok")


def _contents(db: sqlite3.Connection) -> tuple[str, ...]:
    """Contents that are not what was written. Files of older versions have no checksums."""
    faults = []
    for table in ("body", "part"):
        if not any(column == "crc" for _, column, *_ in db.execute(f"PRAGMA table_info({table})")):
            continue
        for message, octets, crc in db.execute(f"SELECT message, octets, crc FROM {table}"):  # noqa: S608
            if crc is not None and crc32(octets) != crc:
                faults.append(f"{format_id(message)}: its content was changed on the disk")
                if len(faults) == _FAULTS:
                    return tuple(faults)
    return tuple(faults)
