"""The stream of events of one worker, read again: how far it goes in each segment, and what stands behind a position.

Readers hear of events as they are committed (Store.subscribe). One that must miss none, not even by a crash, remembers
positions, and asks at its start for what it may not have heard.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Mapping, Sequence

from relayd.core.event import Event, EventKind
from relayd.core.units import Millis
from relayd.spool import codec
from relayd.spool.ledger import name_of
from relayd.spool.segment import Segment
from relayd.spool.shelf import Shelf
from relayd.spool.store import NoSuchMessageError, Page

PAGE = 500
"""Events read at once."""


async def positions(shelf: Shelf) -> dict[str, int]:
    """The last event of each segment that was written to since the start. All readers have heard of it.

    It is asked on the writer, between two commits: those before it have been told by the time the answer is here.
    """
    found: dict[str, int] = {}
    for segment in shelf.all():
        if not segment.commits or segment.gone is not None:
            continue
        commits = segment.commits
        if segment.told is None or segment.told[0] != commits:
            segment.told = (commits, await segment.work(_last))
        found[name_of(segment.path)] = segment.told[1]
    return found


async def behind(
    shelf: Shelf, known: Mapping[str, int], kinds: Sequence[EventKind], since: Millis
) -> AsyncIterator[Page]:
    """Events of these kinds behind the known positions, and not older than `since`: those there when it is asked."""
    for segment in shelf.all():
        if segment.gone is not None or (segment.newest is None and segment is shelf.current):
            continue
        try:
            async for page in _behind(segment, known.get(name_of(segment.path), 0), kinds, since):
                yield page
        except NoSuchMessageError:
            continue  # removed meanwhile
    await shelf.close_unused(0)


async def _behind(segment: Segment, after: int, kinds: Sequence[EventKind], since: Millis) -> AsyncIterator[Page]:
    last = await segment.survey(_last)
    name = name_of(segment.path)
    while after < last:
        events, after = await segment.survey(_events, kinds, since, after, last)
        yield Page(name, after, events)


def _last(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT COALESCE(MAX(id), 0) FROM event").fetchone()[0])


def _events(
    db: sqlite3.Connection, kinds: Sequence[EventKind], since: Millis, after: int, last: int
) -> tuple[list[Event], int]:
    """The next events behind `after`, and up to which event that is all. What one act wrote stays together."""
    marks = ", ".join("?" * len(kinds))
    rows = db.execute(
        "SELECT e.id, e.message, e.n, e.at, e.kind, e.detail, r.address, m.sender FROM event e"  # noqa: S608
        " CROSS JOIN recipient r ON r.message = e.message AND r.n = e.n CROSS JOIN message m ON m.id = e.message"
        f" WHERE e.id > ? AND e.id <= ? AND e.at >= ? AND e.kind IN ({marks}) ORDER BY e.id LIMIT ?",
        (after, last, since, *(kind.value for kind in kinds), PAGE),
    ).fetchall()
    if len(rows) == PAGE:
        whole = [row for row in rows if row[1] != rows[-1][1]]
        rows = whole or rows
        last = rows[-1][0]
    return [codec.event_of(row[1:6], row[6], row[7], {}) for row in rows], last
