"""Questions to one segment, as plain functions on a connection: used by the store's read threads and by reader.py.

Nothing here writes, waits or knows more than one segment.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import orjson

from relayd.core.ids import EPOCH, MessageId
from relayd.core.mail import Message
from relayd.core.units import Millis
from relayd.spool import codec
from relayd.spool.filter import QueueFilter
from relayd.spool.joining import join
from relayd.spool.schema import STATE_CODE
from relayd.spool.store import Delivery, History, NoSuchMessageError, UnreadableError, Waiting

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
        if not _is_no_text(error):
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


def _is_no_text(error: sqlite3.OperationalError) -> bool:
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
        for some in _slices(messages):
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
    for some in _slices(messages):
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
    for some in _slices(messages):
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


def _slices(messages: Sequence[MessageId]) -> Iterator[Sequence[MessageId]]:
    for place in range(0, len(messages), _MANY):
        yield messages[place : place + _MANY]


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


def matching(db: sqlite3.Connection, wanted: QueueFilter, after: MessageId, limit: int) -> list[Delivery]:
    """The first messages behind `after` with recipients that a filter means, with those recipients."""
    condition, values = _where(wanted)
    # ids that carry an earlier moment cannot be newer, nor later ones older; the filter itself has the last word
    lowest = after if wanted.newer_than is None else max(after, first_id(wanted.newer_than - SKEW) - 1)
    highest = LAST if wanted.older_than is None else first_id(wanted.older_than + SKEW)
    if wanted.ids:
        found = []
        for number in sorted(number for number in wanted.ids if lowest < number < highest)[:limit]:
            found += _matching(db, wanted, f"{condition} AND r.message = ?", [*values, number], 1)
        return found
    return _matching(db, wanted, f"{condition} AND r.message > ? AND r.message < ?", [*values, lowest, highest], limit)


def _matching(
    db: sqlite3.Connection, wanted: QueueFilter, condition: str, values: Sequence[object], limit: int
) -> list[Delivery]:
    try:
        return _walk(db, wanted, condition, values, limit)
    except sqlite3.OperationalError as error:
        if not _is_no_text(error):
            raise
    db.text_factory = lambda octets: octets.decode("utf-8", "replace")
    try:
        return _walk(db, wanted, condition, values, limit)
    finally:
        db.text_factory = str


def _walk(
    db: sqlite3.Connection, wanted: QueueFilter, condition: str, values: Sequence[object], limit: int
) -> list[Delivery]:
    columns = ", ".join(f"r.{name}" for name in codec.RECIPIENT.split(", "))
    columns += ", " + ", ".join(f"m.{name}" for name in codec.MESSAGE.split(", "))
    cursor = db.execute(
        # CROSS JOIN keeps the order of recipient, which is that of ids, and so needs no sorting
        f"SELECT {columns} FROM recipient r CROSS JOIN message m ON m.id = r.message"  # noqa: S608
        f" WHERE {condition} ORDER BY r.message, r.n",
        values,
    )
    found: list[Delivery] = []
    message: Message | None = None
    recipients: list[Waiting] = []
    try:
        for row in cursor:
            if message is None or row[0] != message.id:
                if message is not None and recipients:
                    found.append(Delivery(message, tuple(recipients)))
                    if len(found) == limit:
                        return found
                message, recipients = None, []
            try:
                message = message or codec.message_of(row[11:])
                waiting = codec.waiting_of(row[:11])
            except UNREADABLE:
                continue  # due() sets it aside, and tells of it
            if wanted.matches(message, waiting):
                recipients.append(waiting)
        if message is not None and recipients:
            found.append(Delivery(message, tuple(recipients)))
        return found
    finally:
        # an unfinished statement would hold its snapshot, and so the WAL, for ever
        cursor.close()


def _where(wanted: QueueFilter) -> tuple[str, list[object]]:
    """An SQL condition over `recipient` r and `message` m that holds wherever the filter matches, and its values.

    It may hold for more (letters beyond ASCII have no case in SQL), so `matches` has the last word.
    """
    conditions = ["r.state < 10"]
    values: list[object] = []
    if wanted.states:
        conditions = [f"r.state IN ({', '.join(str(STATE_CODE[state]) for state in sorted(wanted.states))})"]
    if wanted.lane is not None:
        conditions.append("r.lane = ?")
        values.append(wanted.lane)
    if wanted.upstream is not None:
        accounts = f"{wanted.upstream}/"
        conditions.append("(r.lane = ? OR substr(r.lane, 1, length(?)) = ?)")
        values += [wanted.upstream, accounts, accounts]
    for column, pattern in (
        ("m.sender", "" if wanted.sender == "<>" else wanted.sender),
        ("m.sender", None if wanted.sender_domain is None else f"*{wanted.sender_domain}"),
        ("r.address", wanted.recipient),
    ):
        if pattern is not None and pattern.isascii():
            conditions.append(f"lower({column}) GLOB ?")
            values.append(pattern.lower().replace("[", "[[]"))
    return " AND ".join(conditions), values
