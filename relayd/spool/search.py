"""Which recipients of one segment a filter means: a condition in SQL finds candidates, the filter has the last word.

Neither writes nor waits (reads.py says more). What a filter means is filter.py's.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from relayd.core.ids import MessageId
from relayd.core.mail import Message
from relayd.spool import codec, reads
from relayd.spool.filter import QueueFilter
from relayd.spool.schema import STATE_CODE
from relayd.spool.store import Delivery, Waiting


def matching(db: sqlite3.Connection, wanted: QueueFilter, after: MessageId, limit: int) -> list[Delivery]:
    """The first messages behind `after` with recipients that a filter means, with those recipients."""
    condition, values = _where(wanted)
    # ids that carry an earlier moment cannot be newer, nor later ones older; the filter itself has the last word
    lowest = after if wanted.newer_than is None else max(after, reads.first_id(wanted.newer_than - reads.SKEW) - 1)
    highest = reads.LAST if wanted.older_than is None else reads.first_id(wanted.older_than + reads.SKEW)
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
        if not reads.is_no_text(error):
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
            except reads.UNREADABLE:
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
