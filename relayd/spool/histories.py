"""What one segment knows of its messages: history, content, who was written to; as functions on a connection.

They neither write nor wait (reads.py says more). Putting the answers of all segments together is sqlite.py's and
reader.py's.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any
from zlib import crc32

import orjson

from relayd.core.ids import MessageId
from relayd.core.units import Millis
from relayd.spool import codec, reads
from relayd.spool.joining import join
from relayd.spool.store import History, NoSuchMessageError, UnreadableError


def content(db: sqlite3.Connection, message: MessageId) -> bytes:
    """The kept octets, as they were written. Raises NoSuchMessageError, UnreadableError."""
    row = db.execute("SELECT * FROM body WHERE message = ?", (message,)).fetchone()
    if row is not None:
        return _checked(row[1:])
    if db.execute("SELECT 1 FROM message WHERE id = ?", (message,)).fetchone() is None:
        raise NoSuchMessageError("no such message")
    parts = [_checked(row[2:]) for row in db.execute("SELECT * FROM part WHERE message = ? ORDER BY part", (message,))]
    if not parts:
        raise NoSuchMessageError("the content is not kept any more")
    return join(parts)


def _checked(row: Sequence[Any]) -> bytes:
    """Octets that still have their CRC. Older files have none."""
    octets, crc = (*row, None)[:2]
    if crc is not None and crc32(octets) != crc:
        raise UnreadableError("its content was changed on the disk")
    return bytes(octets)


def bodies(db: sqlite3.Connection, after: MessageId, before: MessageId, limit: int) -> list[MessageId]:
    """Messages between two ids (both excluded) whose content is kept, in order."""
    return [
        row[0]
        for row in db.execute(
            "SELECT message FROM body WHERE message > ?1 AND message < ?2"
            " UNION SELECT message FROM part WHERE message > ?1 AND message < ?2 ORDER BY 1 LIMIT ?3",
            (after, before, limit),
        )
    ]


def history(db: sqlite3.Connection, message: MessageId) -> History:
    """Everything about a message. Raises NoSuchMessageError."""
    db.execute("BEGIN")
    try:
        row = db.execute(f"SELECT {codec.MESSAGE} FROM message WHERE id = ?", (message,)).fetchone()  # noqa: S608
        if row is None:
            raise NoSuchMessageError("no such message")
        value = codec.message_of(row)
        recipients = tuple(
            codec.waiting_of(row)
            for row in db.execute(
                f"SELECT {codec.RECIPIENT} FROM recipient WHERE message = ? ORDER BY n",  # noqa: S608
                (message,),
            )
        )
        attempts = tuple(
            codec.attempt_of(row)
            for row in db.execute(
                f"SELECT {codec.ATTEMPT} FROM attempt WHERE message = ? ORDER BY id",  # noqa: S608
                (message,),
            )
        )
        address = {waiting.n: waiting.recipient.address for waiting in recipients}
        accepted = codec.accepted_detail(value)
        events = tuple(
            codec.event_of(row, address[row[1]], value.envelope.sender, accepted)
            for row in db.execute(
                f"SELECT {codec.EVENT} FROM event WHERE message = ? ORDER BY id",  # noqa: S608
                (message,),
            )
        )
        return History(value, recipients, attempts, events, _has_content(db, message))
    finally:
        db.execute("COMMIT")


def put_by_hand(db: sqlite3.Connection, messages: Sequence[MessageId]) -> list[tuple[MessageId, int, str]]:
    """Recipients whose last move was an operator's: message, n and the lane that they were put into."""
    last: dict[tuple[MessageId, int], dict[str, Any]] = {}
    for some in reads.slices(messages):
        marks = ", ".join("?" * len(some))
        for message, n, detail in db.execute(
            f"SELECT message, n, detail FROM event WHERE message IN ({marks}) AND kind = 'moved' ORDER BY id",  # noqa: S608
            some,
        ):
            last[message, n] = orjson.loads(detail)
    return [(*place, detail["upstream"]) for place, detail in last.items() if detail.get("by")]


def released(db: sqlite3.Connection, messages: Sequence[MessageId], since: Millis) -> list[tuple[MessageId, int]]:
    """Recipients released since a moment, and neither attempted nor held again."""
    last: dict[tuple[MessageId, int], tuple[str, Millis]] = {}
    for some in reads.slices(messages):
        marks = ", ".join("?" * len(some))
        for message, n, kind, at in db.execute(
            f"SELECT message, n, kind, at FROM event WHERE message IN ({marks})"  # noqa: S608
            " AND kind IN ('released', 'deferred', 'uncertain', 'held') ORDER BY id",
            some,
        ):
            last[message, n] = kind, at
    return [place for place, (kind, at) in last.items() if kind == "released" and at >= since]


def _has_content(db: sqlite3.Connection, message: MessageId) -> bool:
    (found,) = db.execute(
        "SELECT EXISTS (SELECT 1 FROM body WHERE message = ?1) OR EXISTS (SELECT 1 FROM part WHERE message = ?1)",
        (message,),
    ).fetchone()
    return bool(found)


def by_message_id(
    db: sqlite3.Connection, wanted: Sequence[str], after: MessageId, messages: int
) -> tuple[list[tuple[str, MessageId]], MessageId | None]:
    """Which of the next `messages` behind `after` carry one of these Message-IDs; where to go on, None at the end.

    There is no index: it would cost every mail something, and is asked only by bounces that name nothing better.
    """
    last = db.execute(
        "SELECT max(id) FROM (SELECT id FROM message WHERE id > ? ORDER BY id LIMIT ?)", (after, messages)
    ).fetchone()[0]
    if last is None:
        return [], None
    rows = db.execute(
        "SELECT message_id, id FROM message"
        " WHERE id > ? AND id <= ? AND message_id IN (SELECT value FROM json_each(?))",
        (after, last, orjson.dumps(list(wanted)).decode()),
    )
    return rows.fetchall(), last


def addressed(db: sqlite3.Connection, addresses: Sequence[str], since: MessageId) -> list[tuple[MessageId, int]]:
    """Recipients with one of these addresses, in any case of letters, of messages from `since` on; newest first.

    A scan of the segment's recipients, some 0.4 s for a million: an index would cost each of them 20 µs when accepted.
    """
    marks = ", ".join("?" * len(addresses))
    return db.execute(
        f"SELECT message, n FROM recipient WHERE address COLLATE NOCASE IN ({marks}) AND message >= ?"  # noqa: S608
        " ORDER BY message DESC, n",
        (*addresses, since),
    ).fetchall()
