"""Makes a whole segment of a damaged one: every row that can still be read, and a history that tells the truth.

Rows come from pages.py and wal.py; what does not fit together any more is put right by mend.py.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any
from zlib import crc32

from relayd.core.ids import MessageId, slot_of
from relayd.core.units import Millis
from relayd.spool import audit, codec, files, mend, pages, reads, schema, wal
from relayd.spool.faults import store_error
from relayd.spool.store import StoreError

_MANY = 500
"""Rows in one go."""
_COLUMNS = {"message": 10, "body": 3, "part": 4, "recipient": 12, "attempt": 11, "event": 6, "fact": 4}
_SHAPES = {
    # i number, T text, t text or nothing, j number or nothing, N nothing (the rowid stands for it), B octets
    "message": (True, "NiiTTTTttT"),
    "body": (True, "NBj"),
    "part": (True, "iiBj"),
    "event": (True, "NiiiTt"),
    "attempt": (True, "NiiiTTtTTtT"),
    "recipient": (False, "iiTttTiijiti"),
    "fact": (False, "iiTi"),
}
"""Whether a table has rowids, and its columns. Older files lack the last ones of some."""
_OPTIONAL = {"body": 2, "part": 3, "recipient": 11}
"""Columns that older files have."""
_TYPES = {"i": (int,), "j": (int, type(None)), "T": (str,), "t": (str, type(None)), "N": (type(None),), "B": (bytes,)}


@dataclass(slots=True)
class Salvage:
    """What became of a damaged segment."""

    segment: str
    messages: int = 0
    waiting: int = 0
    """Recipients that go on waiting."""
    held: int = 0
    """Of these: held, because some may have been delivered already."""
    unreadable: int = 0
    """Rows that could not be read."""
    lost: list[str] = field(default_factory=list)
    """Recipients that were in it and cannot be sent, in words."""
    faults: list[str] = field(default_factory=list)
    """What is still wrong with the result; never, as far as we know."""


class _File:
    """The pages of a segment, those in its WAL in place of older ones."""

    def __init__(self, path: Path, saved: wal.Saved, stack: contextlib.ExitStack) -> None:
        self._main = stack.enter_context(path.open("rb"))
        self._saved = saved.pages
        self._log = stack.enter_context(wal.path_of(path).open("rb")) if self._saved else None
        self.count = max([path.stat().st_size // schema.PAGE, *self._saved])

    def page(self, number: int) -> bytes:
        at = self._saved.get(number)
        if at is None or self._log is None:
            self._main.seek((number - 1) * schema.PAGE)
            return self._main.read(schema.PAGE)
        self._log.seek(at)
        return self._log.read(schema.PAGE)


def salvage(damaged: Path, now: Millis, *, notify: bool, hold: bool | None = None) -> Salvage:
    """Put a whole segment in the place that a damaged one was set aside from, and rename what was damaged.

    `notify`: senders are told of mail whose content is lost. `hold`: what waits is held; None: where it cannot be
    excluded that some of it was delivered already. Raises StoreError, and the damaged file is as it was then.
    """
    if not damaged.name.endswith(files.DAMAGED):
        raise StoreError(f"{damaged} was not set aside")
    target = damaged.with_name(damaged.name.removesuffix(files.DAMAGED))
    found = Salvage(str(target))
    draft = target.with_suffix(".recovering")
    try:
        if target.exists():
            raise StoreError(f"{target} is there: was {damaged.name} recovered before? Then remove it")
        files.remove(draft)
        os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        newest = _fill(draft, damaged, found, now, notify=notify, hold=hold)
        later = [path for path in files.segments_in(target.parent) if files.start_of(path) > files.start_of(target)]
        if later and newest >= reads.first_id(files.start_of(later[0])):
            # the clock stepped back by over a day at the very time of the damage
            raise StoreError(f"ids in {damaged.name} and in {later[0].name} overlap: it cannot be put back")
        files.put_in_place(draft, target)
        files.rename(damaged, target.with_name(target.name + files.RECOVERED))
    except (sqlite3.Error, OSError) as error:
        raise store_error(error) from error
    finally:
        files.remove(draft)
    return found


def _fill(draft: Path, damaged: Path, found: Salvage, now: Millis, *, notify: bool, hold: bool | None) -> MessageId:
    """Write the draft; its newest id."""
    with contextlib.ExitStack() as stack:
        saved = wal.saved(wal.path_of(damaged))
        db = stack.enter_context(closing(schema.connect(draft, create=True)))
        schema.create_tables(db)
        # nobody sees the draft before it is whole
        db.execute("PRAGMA journal_mode = MEMORY")
        db.execute("PRAGMA synchronous = OFF")
        db.execute("BEGIN")
        _copy(db, _File(damaged, saved, stack), int(damaged.parent.name), found)
        stale = _stale(damaged, saved) if hold is None else hold
        mended = mend.mend(db, now, notify=notify, hold=stale)
        db.execute("COMMIT")
        found.lost, found.held = mended.lost, mended.held
        found.messages, newest = db.execute("SELECT COUNT(*), COALESCE(MAX(id), 0) FROM message").fetchone()
        found.waiting = db.execute("SELECT COUNT(*) FROM recipient WHERE state < 10").fetchone()[0]
        report = audit.AuditReport()
        audit.audit_segment(db, draft.name, report)
        found.faults = [str(each) for each in report.discrepancies]
        db.execute("PRAGMA journal_mode = WAL")
        return int(newest)


def _stale(damaged: Path, saved: wal.Saved) -> bool:
    """Commits may be missing: what the rest says of a recipient may not be the last word."""
    header = files.header_of(damaged)
    there = wal.path_of(damaged).exists() and wal.path_of(damaged).stat().st_size >= wal.HEADER
    return bool(saved.broken) or (not there and (header is None or header.mark == schema.OPEN))


def _copy(db: sqlite3.Connection, file: _File, slot: int, found: Salvage) -> None:
    damage = pages.Damage()
    batch: dict[str, list[Sequence[Any]]] = {table: [] for table in _COLUMNS}
    for some in _batches(pages.rows(file, damage)):
        for row in some:
            table = _table_of(row)
            if table is None:
                continue  # of an index, or of SQLite's own
            values = _values_of(table, row)
            if _sound(table, values, slot):
                batch[table].append(values)
            else:
                found.unreadable += 1
        for table, values in batch.items():
            db.executemany(_INSERT[table], values)
            values.clear()
    found.unreadable += damage.cells


def _batches(rows: Iterable[pages.Row]) -> Iterator[list[pages.Row]]:
    source = iter(rows)
    while some := list(islice(source, _MANY)):
        yield some


def _table_of(row: pages.Row) -> str | None:
    for table, (rowid, shape) in _SHAPES.items():
        count = len(row.values)
        fits = (row.rowid is not None) is rowid and _OPTIONAL.get(table, len(shape)) <= count <= len(shape)
        if fits and all(isinstance(v, _TYPES[kind]) for v, kind in zip(row.values, shape, strict=False)):
            return table
    return None


def _values_of(table: str, row: pages.Row) -> list[Any]:
    values = list(row.values)
    if values[0] is None:
        values[0] = row.rowid
    missing = _COLUMNS[table] - len(values)
    return values + [0 if table == "recipient" else None] * missing


def _sound(table: str, values: Sequence[Any], slot: int) -> bool:
    """A flipped bit may have left a row that can be read, and means nothing."""
    number = values[1] if table in ("event", "attempt") else values[0]
    if number < 0 or slot_of(number) != slot:
        return False
    if table in ("body", "part"):
        return values[-1] is None or crc32(values[-2]) == values[-1]
    decode = _DECODE.get(table)
    try:
        if decode is not None:
            decode(values)
    except reads.UNREADABLE:
        return False
    return True


_DECODE: dict[str, Callable[[Any], object]] = {
    "message": codec.message_of,
    "recipient": lambda values: codec.waiting_of(values[:11]),
    "attempt": lambda values: codec.attempt_of(values[1:]),
    "event": lambda values: codec.event_of(values[1:], "", "", {}),
}
_INSERT = {
    table: f"INSERT OR IGNORE INTO {table} VALUES ({', '.join('?' * columns)})"  # noqa: S608 - all names are ours
    for table, columns in _COLUMNS.items()
}
# a page that was given up may still hold an older copy of a recipient: the one that has come further is the newer one
_INSERT["recipient"] = _INSERT["recipient"].replace("OR IGNORE ", "") + (
    " ON CONFLICT DO UPDATE SET lane = excluded.lane, state = excluded.state, attempts = excluded.attempts,"
    " due = excluded.due, delayed = excluded.delayed, notice = excluded.notice"
    " WHERE (excluded.state, excluded.attempts) > (state, attempts)"
)
