"""Questions to one segment, as plain functions on a connection: used by the store's read threads and by reader.py.

Here: what it holds, and what waits in it. What is known of messages is in histories.py, whom a filter means in
search.py. Nothing in the three writes, waits or knows more than one segment.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from relayd.core.ids import EPOCH, MessageId
from relayd.core.units import Millis
from relayd.spool import codec
from relayd.spool.store import Delivery, Waiting

_MANY = 200
"""Ids in one IN (...)."""
LAST = 2**63 - 1
"""Greater than every id."""
SKEW: Millis = 86_400_000
"""How far an id's moment may lie from `accepted_at` where a clock stepped back."""

WAITING = "state < 3"
"""To be tried: queued, deferred, uncertain."""
UNDELAYED = "state < 3 AND delayed = 0"
HELD = "due IS NULL AND state < 10 AND state = 3"
"""As the index of what is parked has it, and of that the held."""
UNFINISHED = "state < 10"
"""Waiting, held or parked."""


@dataclass(frozen=True, slots=True)
class Head:
    """A message with something due."""

    due: Millis
    message: MessageId
    recipients: int


@dataclass(frozen=True, slots=True)
class Standing:
    """What a segment holds, as far as opening and keeping it is concerned."""

    waiting: bool
    owed: bool
    newest: MessageId | None


def first_id(at: Millis) -> MessageId:
    """The smallest id of a moment: earlier messages have smaller ids."""
    return max(at - EPOCH, 0) << 22


def standing(db: sqlite3.Connection) -> Standing:
    """Whether anything waits or is owed, and the newest id."""
    waiting, owed, newest = db.execute(
        "SELECT EXISTS (SELECT 1 FROM recipient INDEXED BY recipient_due WHERE due IS NOT NULL)"
        " OR EXISTS (SELECT 1 FROM recipient INDEXED BY recipient_parked WHERE due IS NULL AND state < 10),"
        " EXISTS (SELECT 1 FROM recipient INDEXED BY recipient_owed WHERE notice IS NOT NULL),"
        " (SELECT MAX(id) FROM message)"
    ).fetchone()
    return Standing(bool(waiting), bool(owed), newest)


def used_octets(db: sqlite3.Connection) -> int:
    """Octets in use, free pages not counted."""
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    (free,) = db.execute("PRAGMA freelist_count").fetchone()
    (size,) = db.execute("PRAGMA page_size").fetchone()
    return int((pages - free) * size)


def due_heads(
    db: sqlite3.Connection, turn: tuple[str, int], now: Millis, after: tuple[Millis, MessageId], limit: int
) -> list[Head]:
    """Messages of a lane and priority due by `now`, oldest due first, behind the place `after`: index only."""
    return [
        Head(*row)
        for row in db.execute(
            "SELECT due, message, COUNT(*) FROM recipient INDEXED BY recipient_due"
            " WHERE lane = ?1 AND priority = ?2 AND due IS NOT NULL AND due <= ?3 AND (due, message) > (?4, ?5)"
            " GROUP BY due, message ORDER BY due, message LIMIT ?6",
            (*turn, now, *after, limit),
        )
    ]


def next_due(db: sqlite3.Connection, lane: str, urgency: int, now: Millis) -> Millis | None:
    """The earliest due of a lane and priority later than `now`."""
    row = db.execute(
        "SELECT due FROM recipient INDEXED BY recipient_due"
        " WHERE lane = ? AND priority = ? AND due IS NOT NULL AND due > ? ORDER BY due LIMIT 1",
        (lane, urgency, now),
    ).fetchone()
    return None if row is None else row[0]


def due_later(db: sqlite3.Connection, now: Millis, after: MessageId, limit: int) -> list[MessageId]:
    """Messages behind `after` with recipients that are due later than `now`, in order."""
    return [
        row[0]
        for row in db.execute(
            "SELECT message FROM recipient WHERE message > ? AND due > ? GROUP BY message ORDER BY message LIMIT ?",
            (after, now, limit),
        )
    ]


UNREADABLE = (KeyError, ValueError, TypeError, AttributeError, IndexError)
"""What decoding a damaged row raises."""


def due_deliveries(
    db: sqlite3.Connection, lane: str, now: Millis, messages: Sequence[MessageId]
) -> tuple[list[Delivery], list[MessageId]]:
    """These messages with their recipients of the lane that are due by `now`, and those that cannot be read."""
    # the + keeps SQLite from walking the lane's index, which may hold a million others, instead of these messages
    return _readable(db, messages, "+lane = ? AND +due <= ?", (lane, now))


def deliveries(
    db: sqlite3.Connection, messages: Sequence[MessageId], condition: str, values: Sequence[object] = ()
) -> list[Delivery]:
    """Messages in the given order, with their recipients that fulfil an SQL condition of ours, if there are any.

    What cannot be read is left out: `due_deliveries` finds it.
    """
    return _readable(db, messages, condition, values)[0]


def _readable(
    db: sqlite3.Connection, messages: Sequence[MessageId], condition: str, values: Sequence[object]
) -> tuple[list[Delivery], list[MessageId]]:
    """One damaged row must not keep the others from being read: where there is one, they are read one by one."""
    try:
        return _deliveries(db, messages, condition, values), []
    except UNREADABLE:
        pass
    except sqlite3.OperationalError as error:
        if not is_no_text(error):
            raise
    if len(messages) == 1:
        return [], list(messages)
    found: list[Delivery] = []
    unreadable: list[MessageId] = []
    for message in messages:
        some, bad = _readable(db, [message], condition, values)
        found += some
        unreadable += bad
    return found, unreadable


def is_no_text(error: sqlite3.OperationalError) -> bool:
    """A column holds octets that are no UTF-8."""
    return "decode to utf-8" in str(error).lower()


def _deliveries(
    db: sqlite3.Connection, messages: Sequence[MessageId], condition: str, values: Sequence[object]
) -> list[Delivery]:
    if not messages:
        return []
    groups: dict[MessageId, list[Waiting]] = {}
    facts = {}
    # one snapshot for both tables
    db.execute("BEGIN")
    try:
        for some in slices(messages):
            marks = ", ".join("?" * len(some))
            for row in db.execute(
                f"SELECT {codec.RECIPIENT} FROM recipient WHERE message IN ({marks}) AND {condition}"  # noqa: S608
                " ORDER BY message, n",
                (*some, *values),
            ):
                groups.setdefault(row[0], []).append(codec.waiting_of(row))
            for row in db.execute(f"SELECT {codec.MESSAGE} FROM message WHERE id IN ({marks})", some):  # noqa: S608
                facts[row[0]] = codec.message_of(row)
    finally:
        db.execute("COMMIT")
    return [Delivery(facts[number], tuple(groups[number])) for number in messages if number in groups]


def lanes(db: sqlite3.Connection) -> list[tuple[str, int, MessageId]]:
    """Lane, waiting recipients and oldest message of each lane."""
    return db.execute(
        "SELECT lane, COUNT(*), MIN(message) FROM recipient INDEXED BY recipient_due"
        " WHERE due IS NOT NULL GROUP BY lane"
    ).fetchall()


def messages_with(
    db: sqlite3.Connection, condition: str, after: MessageId, before: MessageId, limit: int
) -> list[MessageId]:
    """Ids between two others (both excluded) that have a recipient which fulfils a condition of ours, in order."""
    return [
        row[0]
        for row in db.execute(
            "SELECT message FROM recipient WHERE message > ? AND message < ?"  # noqa: S608
            f" AND {condition} GROUP BY message ORDER BY message LIMIT ?",
            (after, before, limit),
        )
    ]


def after_messages(
    db: sqlite3.Connection, condition: str, after: MessageId, before: MessageId, limit: int
) -> list[Delivery]:
    """As `messages_with`, loaded."""
    return deliveries(db, messages_with(db, condition, after, before, limit), condition)


def owing(db: sqlite3.Connection, limit: int) -> list[MessageId]:
    """Messages with a report owed, oldest first."""
    return [
        row[0]
        for row in db.execute(
            "SELECT message FROM recipient INDEXED BY recipient_owed WHERE notice IS NOT NULL"
            " GROUP BY message ORDER BY message LIMIT ?",
            (limit,),
        )
    ]


def slices(messages: Sequence[MessageId]) -> Iterator[Sequence[MessageId]]:
    """Few enough at once for one IN (...)."""
    for place in range(0, len(messages), _MANY):
        yield messages[place : place + _MANY]


def figures(db: sqlite3.Connection) -> tuple[list[tuple[str, int, int, MessageId]], int, int]:
    """Unfinished recipients as (lane, state code, count, oldest message); messages kept; messages owing a report."""
    counts = db.execute(
        "SELECT lane, state, COUNT(*), MIN(message) FROM recipient WHERE state < 10 GROUP BY lane, state"
    ).fetchall()
    (kept,) = db.execute("SELECT COUNT(*) FROM message").fetchone()
    (owed,) = db.execute(
        "SELECT COUNT(DISTINCT message) FROM recipient INDEXED BY recipient_owed WHERE notice IS NOT NULL"
    ).fetchone()
    return counts, kept, owed
