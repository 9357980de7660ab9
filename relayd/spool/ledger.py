"""Figures of finished segments in state.db: spared a second count while they stand, and kept when their segment goes.

Each segment's figures stand under its name with the id of its last event, and are replaced whole: so counting again,
after a crash or a late bounce, counts nothing twice. What is counted is statistics.py's.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from relayd.core.lifecycle import State
from relayd.core.units import Millis
from relayd.spool.state import StateDB, StateError
from relayd.spool.store import StoreError

KEPT = 400
"""Days for which figures are kept."""
_DAY: Millis = 86_400_000


class Figure(NamedTuple):
    """What is counted together."""

    day: int
    """Of acceptance, in days since the epoch, UTC."""
    domain: str
    """The envelope sender's, the From header's where that is null; A-labels."""
    upstream: str
    """The lane that carried the mail last, or would."""
    state: State
    cls: str
    """Why it failed or was not sent; "complaint" of delivered mail that was complained of; else ""."""


@dataclass(frozen=True, slots=True)
class Counted:
    """What a segment holds."""

    mark: int
    """Id of its last event."""
    figures: Mapping[Figure, int]


def name_of(segment: Path) -> str:
    """By which a segment's figures are kept: slot and file."""
    return f"{segment.parent.name}/{segment.name}"


def keep(db: sqlite3.Connection, segment: str, counted: Counted, today: int) -> None:
    """Replace what is kept of a segment, and forget what is too old."""
    db.execute("DELETE FROM figure WHERE segment = ?", (segment,))
    db.executemany(
        "INSERT INTO figure VALUES (?, ?, ?, ?, ?, ?, ?)",
        [(segment, *figure, recipients) for figure, recipients in counted.figures.items()],
    )
    last = max((figure.day for figure in counted.figures), default=today)
    db.execute("REPLACE INTO counted VALUES (?, ?, ?)", (segment, counted.mark, last))
    db.execute("DELETE FROM figure WHERE day < ?", (today - KEPT,))
    db.execute("DELETE FROM counted WHERE last_day < ?", (today - KEPT,))


def marks(db: sqlite3.Connection) -> Mapping[str, int]:
    """The last event that was counted of each segment."""
    return dict(db.execute("SELECT segment, event FROM counted").fetchall())


def figures(db: sqlite3.Connection, first: int, last: int) -> Iterator[tuple[str, Figure, int]]:
    """What is kept of these days (both included), with the name of its segment."""
    for segment, day, domain, upstream, state, cls, recipients in db.execute(
        "SELECT segment, day, domain, upstream, state, class, recipients FROM figure WHERE day >= ? AND day <= ?",
        (first, last),
    ):
        yield segment, Figure(day, domain, upstream, State(state), cls), recipients


class Ledger:
    """The verbs above for the store of a worker. They raise StoreError."""

    def __init__(self, state: StateDB, clock: Callable[[], Millis]) -> None:
        self._state = state
        self._clock = clock

    async def marks(self) -> Mapping[str, int]:
        """The last event that was counted of each segment."""
        try:
            return await self._state.read(marks)
        except StateError as error:
            raise StoreError(str(error)) from error

    async def keep(self, segment: str, counted: Counted) -> None:
        """Replace what is kept of a segment."""
        today = self._clock() // _DAY
        try:
            await self._state.write(lambda db: keep(db, segment, counted, today))
        except StateError as error:
            raise StoreError(str(error)) from error
