"""One commit: a batch of accepted and settled mail written to a segment in one transaction, on the writer's thread.

The batch is written in few large statements, because each statement gives up the interpreter lock and must win it
back from a busy loop. Should one item be at fault, the batch is written again item by item to find which.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import orjson

from relayd.core.event import Event
from relayd.core.ids import MessageId, format_id
from relayd.core.units import Millis
from relayd.spool import codec, schema
from relayd.spool.store import Amended, NoSuchMessageError, StoreError, UnwritableError

CHUNK = 32
"""Rows of one statement."""
OCTETS = 4 * 1024**2
"""Bodies of one commit: a larger one is slow enough for others to notice."""
VALUES = 20_000
"""Values of recipients in one commit: some 2,000 of them, however many messages they belong to."""
PART = 1024**2
"""Octets of one part of a large body."""
LARGE = 2 * PART
"""Bodies over this are written in parts, over several commits."""


@dataclass(slots=True)
class Accept:
    """A message to keep."""

    future: asyncio.Future[None]
    message: MessageId
    row: codec.Row
    content: bytes
    recipients: list[Any]
    """Rows, one after the other."""
    event_rows: list[Any]
    events: Sequence[Event]
    part: int = 0
    """The next part to write of a large body."""

    @property
    def large(self) -> bool:
        return len(self.content) > LARGE


@dataclass(slots=True)
class Settle:
    """The changes of one settlement, or `noticed`, as rows."""

    future: asyncio.Future[None]
    message: MessageId
    updates: list[Any]
    """Rows of UPDATE, one after the other."""
    event_rows: list[Any]
    events: Sequence[Event]
    attempt: codec.Row | None
    final: bool
    """Some recipient becomes final by it."""
    waits: bool
    """Some recipient goes on waiting."""
    undelayed: bool
    """Some recipient goes on waiting, and no delay notice was considered for it."""
    held: bool
    """Some recipient is held."""


@dataclass(slots=True)
class Noticed:
    """Reports that are made."""

    future: asyncio.Future[None]
    message: MessageId
    ns: Sequence[int]


@dataclass(slots=True)
class Amend:
    """What a fact changes about one recipient."""

    future: asyncio.Future[Amended]
    message: MessageId
    n: int
    key: str
    before: int
    """State code it was decided on."""
    after: int
    notice: str | None
    event_row: codec.Row
    event: Event


Item = Accept | Settle | Noticed | Amend


@dataclass(slots=True)
class Batch:
    """What one commit writes, in order of arrival."""

    items: list[Item] = field(default_factory=list)
    parts: list[tuple[MessageId, int, memoryview]] = field(default_factory=list)
    orphans: list[MessageId] = field(default_factory=list)
    """Messages given up half-way, whose parts are to go."""
    drop_bodies: bool = False
    """Drop bodies as soon as all recipients are final (keep_body: 0s)."""
    octets: int = 0


@dataclass(slots=True)
class Result:
    """What came of one item: the events that were written, or why nothing was."""

    events: Sequence[Event] = ()
    error: StoreError | None = None
    value: Any = None
    """What the item's future tells."""


class Rows:
    """One statement over any number of rows: its texts for 1 to CHUNK rows are made once, so their plans are cached."""

    def __init__(self, head: str, width: int, tail: str = "") -> None:
        one = "(" + ", ".join("?" * width) + ")"
        self._sql = ("", *(head + ", ".join([one] * count) + tail for count in range(1, CHUNK + 1)))
        self._width = width

    def run(self, db: sqlite3.Connection, values: Sequence[Any]) -> int:
        """Run it over rows that stand one after the other in `values`; how many rows changed."""
        step = self._width * CHUNK
        if len(values) <= step:
            return db.execute(self._sql[len(values) // self._width], values).rowcount if values else 0
        changed = 0
        for place in range(0, len(values), step):
            some = values[place : place + step]
            changed += db.execute(self._sql[len(some) // self._width], some).rowcount
        return changed


_MESSAGES = Rows("INSERT INTO message VALUES ", 10)
_BODIES = Rows("INSERT INTO body VALUES ", 3)
_RECIPIENTS = Rows("INSERT INTO recipient VALUES ", 12)
_EVENTS = Rows("INSERT INTO event (message, n, at, kind, detail) VALUES ", 5)
_ATTEMPTS = Rows(
    "INSERT INTO attempt (message, at, took, upstream, endpoint, tls, stage, reply, transcript, recipients) VALUES ", 10
)
UPDATE_WIDTH = 8
# Final recipients stay as they are: the first final outcome stands.
_UPDATES = Rows(
    "UPDATE recipient SET lane = v.column3, state = v.column4, attempts = v.column5, due = v.column6,"
    " delayed = v.column7, notice = COALESCE(v.column8, notice) FROM (VALUES ",
    UPDATE_WIDTH,
    ") AS v WHERE recipient.message = v.column1 AND recipient.n = v.column2 AND recipient.state < 10",
)
_DROP_BODIES = tuple(
    f"DELETE FROM {table} WHERE message = ?1 AND NOT EXISTS"  # noqa: S608 - both names are ours
    " (SELECT 1 FROM recipient WHERE message = ?1 AND (state < 10 OR notice IS NOT NULL))"
    for table in ("body", "part")
)


_ITEM_FAULTS = (
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.ProgrammingError,
    sqlite3.InterfaceError,
    UnicodeError,
    OverflowError,
)
"""Errors that lie with an item, not with the disk."""


class _AtFaultError(Exception):
    """Not every row changed as the batch expected."""


def commit(db: sqlite3.Connection, batch: Batch) -> list[Result]:
    """Write a batch durably; one result per item. Raises sqlite3.Error, and then nothing of it was written."""
    try:
        return _together(db, batch)
    except (_AtFaultError, StoreError, *_ITEM_FAULTS):
        return _one_by_one(db, batch)


def _together(db: sqlite3.Connection, batch: Batch) -> list[Result]:
    messages: list[Any] = []
    bodies: list[Any] = []
    recipients: list[Any] = []
    events: list[Any] = []
    updates: list[Any] = []
    attempts: list[Any] = []
    finished: list[MessageId] = []
    others: list[tuple[int, Item]] = []
    results = []
    for item in batch.items:
        if type(item) is Accept:
            messages += item.row
            if not item.large:
                bodies += (item.message, item.content, crc32(item.content))
            recipients += item.recipients
            events += item.event_rows
            results.append(Result(item.events))
        elif type(item) is Settle and item.updates:
            updates += item.updates
            events += item.event_rows
            if item.attempt is not None:
                attempts += item.attempt
            if item.final:
                finished.append(item.message)
            results.append(Result(item.events))
        else:
            others.append((len(results), item))
            results.append(Result())
    with _Transaction(db):
        _write_parts(db, batch)
        _MESSAGES.run(db, messages)
        _BODIES.run(db, bodies)
        _RECIPIENTS.run(db, recipients)
        if _UPDATES.run(db, updates) != len(updates) // UPDATE_WIDTH:
            raise _AtFaultError
        _EVENTS.run(db, events)
        _ATTEMPTS.run(db, attempts)
        for place, item in others:
            results[place] = _alone(db, item, batch)
        if batch.drop_bodies:
            _drop_bodies(db, finished)
    return results


def _one_by_one(db: sqlite3.Connection, batch: Batch) -> list[Result]:
    results = []
    with _Transaction(db):
        _write_parts(db, batch)
        for item in batch.items:
            db.execute("SAVEPOINT item")
            try:
                result = _alone(db, item, batch)
            except StoreError as error:
                db.execute("ROLLBACK TO item")
                result = Result(error=error)
            except _ITEM_FAULTS as error:
                db.execute("ROLLBACK TO item")
                result = Result(error=UnwritableError(f"cannot be written: {error}"))
            db.execute("RELEASE item")
            results.append(result)
    return results


def _alone(db: sqlite3.Connection, item: Item, batch: Batch) -> Result:
    if isinstance(item, Noticed):
        _must_exist(db, item.message)
        db.executemany(
            "UPDATE recipient SET notice = NULL WHERE message = ? AND n = ?", [(item.message, n) for n in item.ns]
        )
        if batch.drop_bodies:
            _drop_bodies(db, [item.message])
        return Result()
    if isinstance(item, Amend):
        return _amend(db, item)
    if isinstance(item, Accept):
        _MESSAGES.run(db, item.row)
        if not item.large:
            _BODIES.run(db, (item.message, item.content, crc32(item.content)))
        _RECIPIENTS.run(db, item.recipients)
        _EVENTS.run(db, item.event_rows)
        return Result(item.events)
    _must_exist(db, item.message)
    written = []
    for place, event in enumerate(item.events):
        row = item.updates[place * UPDATE_WIDTH : (place + 1) * UPDATE_WIDTH]
        if _UPDATES.run(db, row):
            _EVENTS.run(db, item.event_rows[place * 5 : (place + 1) * 5])
            written.append(event)
        elif db.execute("SELECT 1 FROM recipient WHERE message = ? AND n = ?", row[:2]).fetchone() is None:
            raise UnwritableError(f"message {format_id(item.message)} has no recipient {row[1]}")
    if item.attempt is not None:
        _ATTEMPTS.run(db, item.attempt)
    if batch.drop_bodies and item.final:
        _drop_bodies(db, [item.message])
    return Result(written)


def _amend(db: sqlite3.Connection, item: Amend) -> Result:
    _must_exist(db, item.message)
    place = (item.message, item.n)
    row = db.execute("SELECT state FROM recipient WHERE message = ? AND n = ?", place).fetchone()
    if row is None:
        raise NoSuchMessageError(f"message {format_id(item.message)} has no recipient {item.n}")
    if db.execute("SELECT 1 FROM fact WHERE message = ? AND n = ? AND key = ?", (*place, item.key)).fetchone():
        return Result(value=Amended.KNOWN)
    if row[0] != item.before:
        return Result(value=Amended.OVERTAKEN)
    db.execute("INSERT INTO fact VALUES (?, ?, ?, ?)", (*place, item.key, item.event.at))
    if item.after != item.before:
        db.execute(
            "UPDATE recipient SET state = ?3, due = NULL, notice = COALESCE(?4, notice) WHERE message = ?1 AND n = ?2",
            (*place, item.after, item.notice),
        )
    _EVENTS.run(db, item.event_row)
    return Result([item.event], value=Amended.WRITTEN)


def _must_exist(db: sqlite3.Connection, message: MessageId) -> None:
    if db.execute("SELECT 1 FROM message WHERE id = ?", (message,)).fetchone() is None:
        raise NoSuchMessageError(f"no message {format_id(message)}")


def _write_parts(db: sqlite3.Connection, batch: Batch) -> None:
    for message in batch.orphans:
        db.execute("DELETE FROM part WHERE message = ?", (message,))
    for message, place, octets in batch.parts:
        db.execute("INSERT INTO part VALUES (?, ?, ?, ?)", (message, place, octets, crc32(octets)))


def _drop_bodies(db: sqlite3.Connection, messages: Iterable[MessageId]) -> None:
    for message in messages:
        for statement in _DROP_BODIES:
            db.execute(statement, (message,))


class _Transaction:
    """BEGIN, then COMMIT or ROLLBACK: afterwards no transaction is open, whatever failed."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if kind is None:
                self._db.execute("COMMIT")
        finally:
            # SQLite itself rolls back after some errors (disk full), not after others
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")


def relane(db: sqlite3.Connection, moved: Sequence[Event]) -> list[Event]:
    """Move recipients that are not final to other lanes, as these events tell; those that could be moved.

    What waited for its next turn at the old upstream is due at the new one at once.
    """
    done: list[Event] = []
    with _Transaction(db):
        for event in moved:
            there = db.execute(
                "UPDATE recipient SET lane = ?2, due = MIN(due, ?1)"
                " WHERE message = ?3 AND n = ?4 AND lane = ?5 AND state < 10",
                (event.at, event.detail["upstream"], event.message, event.n, event.detail["from"]),
            )
            if there.rowcount:
                done.append(event)
        _EVENTS.run(db, [value for event in done for value in codec.event_row(event)])
    return done


def pull_in(db: sqlite3.Connection, messages: Sequence[MessageId], now: Millis, by: Millis) -> int:
    """What is due later than `now` is due earlier by so much, at `now` at the earliest; how many recipients."""
    with _Transaction(db):
        return sum(
            db.execute(
                "UPDATE recipient SET due = MAX(due - ?1, ?2) WHERE message = ?3 AND due > ?2", (by, now, message)
            ).rowcount
            for message in messages
        )


def set_aside(db: sqlite3.Connection, messages: Sequence[MessageId], lane: str, reason: str, now: Millis) -> int:
    """Hold the recipients of a lane in messages that cannot be read, so that others go on; how many."""
    held = 0
    with _Transaction(db):
        for message in messages:
            rows = db.execute(
                "UPDATE recipient SET state = 3, due = NULL WHERE message = ? AND lane = ? AND due IS NOT NULL"
                " RETURNING n",
                (message, lane),
            ).fetchall()
            held += len(rows)
            detail = orjson.dumps({"by": "relayd", "reason": reason, "upstream": lane}).decode()
            _EVENTS.run(db, [value for (n,) in rows for value in (message, n, now, "held", detail)])
    return held


def drop_unfinished_parts(db: sqlite3.Connection) -> None:
    """Forget parts of large bodies whose message was never accepted, because a crash came between."""
    db.execute("DELETE FROM part WHERE message NOT IN (SELECT id FROM message)")


def drop_bodies(db: sqlite3.Connection, messages: Sequence[MessageId], before: Millis) -> int:
    """Drop the bodies of those messages that ended before a moment; how many."""
    dropped = 0
    with _Transaction(db):
        for message in messages:
            ended = db.execute(
                "SELECT NOT EXISTS (SELECT 1 FROM recipient WHERE message = ?1 AND (state < 10 OR notice IS NOT NULL))"
                " AND (SELECT MAX(at) FROM event WHERE message = ?1"
                " AND kind IN ('delivered', 'bounced', 'expired', 'suppressed', 'deleted')) < ?2",
                (message, before),
            ).fetchone()[0]
            if ended:
                dropped += 1
                db.execute("DELETE FROM body WHERE message = ?", (message,))
                db.execute("DELETE FROM part WHERE message = ?", (message,))
    return dropped


def checkpoint(db: sqlite3.Connection) -> None:
    """Copy what is committed from the WAL into the file, without waiting for anybody."""
    db.execute("PRAGMA wal_checkpoint(PASSIVE)")


def mark(db: sqlite3.Connection, mark: int) -> None:
    """Write into the file itself whether its WAL is needed (schema.OPEN) or not (0)."""
    db.execute(f"PRAGMA application_id = {mark}")
    checkpoint(db)


def retire(db: sqlite3.Connection, held: ExitStack) -> None:
    """Say in the file that no WAL is needed any more; to be called before the last connection closes and removes it.

    Where that cannot be written (a full disk), `held` gets a connection that keeps the WAL from being removed.
    """
    if db.execute("PRAGMA application_id").fetchone()[0] == 0:
        return
    try:
        mark(db, 0)
    except sqlite3.Error:
        path = Path(db.execute("PRAGMA database_list").fetchone()[2])
        keeper = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, check_same_thread=False)
        held.callback(keeper.close)
        keeper.execute("PRAGMA schema_version").fetchone()
        raise


def compact(db: sqlite3.Connection) -> bool:
    """Give room back to the disk where over half of a file is free pages; whether it was worth it."""
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    (free,) = db.execute("PRAGMA freelist_count").fetchone()
    if free * 2 <= pages:
        return False
    db.execute("VACUUM")
    # an empty WAL is as good as none
    mark(db, 0)
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    mark(db, schema.OPEN)
    return True
