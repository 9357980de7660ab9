"""Blocks in state.db, as verbs on a connection: workers run them by StateDB, commands on a connection of their own.

What a block is and when one comes about is core/blocking.py's. Lifted blocks stay, as history.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from relayd.core.blocking import Block
from relayd.core.ids import MessageId
from relayd.core.units import Millis

MOST = 500_000
"""Blocks that hold at a time: each worker keeps them in memory."""
MOST_STRIKES = 1_000_000
HISTORY: Millis = 400 * 86_400_000
"""How long lifted blocks are remembered."""
EXPIRED = "expired"
REPLACED = "replaced"

_COLUMNS = (
    "id, target, scope, class, reason, by, since, until, message, stopped, last_stopped, ended, ended_by, changed"
)


class TooManyBlocksError(Exception):
    """The list is full; what was asked was not kept."""


@dataclass(frozen=True, slots=True)
class NewBlock:
    """A block that is to be."""

    target: str
    scope: str
    cls: str
    reason: str
    by: str
    since: Millis
    until: Millis | None
    message: MessageId | None = None


def add(db: sqlite3.Connection, new: Iterable[NewBlock], *, keep_longer: bool) -> int:
    """Write blocks; how many are new. One that holds for the same target and scope is replaced.

    With `keep_longer` (what rules do) it stays where it holds at least as long. Raises TooManyBlocksError.
    """
    change = _next_change(db)
    (room,) = db.execute("SELECT ? - COUNT(*) FROM block WHERE ended IS NULL", (MOST,)).fetchone()
    added = 0
    for each in new:
        row = db.execute(
            "SELECT id, until FROM block WHERE target = ? AND scope = ? AND ended IS NULL", (each.target, each.scope)
        ).fetchone()
        if row is not None:
            number, until = row
            past = until is not None and until <= each.since
            if keep_longer and not past and (until is None or (each.until is not None and each.until <= until)):
                continue
            _end(db, number, until if past else each.since, EXPIRED if past else REPLACED, change)
        elif room <= 0:
            raise TooManyBlocksError(f"there are {MOST} blocks already")
        else:
            room -= 1
        db.execute(
            "INSERT INTO block (target, scope, class, reason, by, since, until, message, stopped, changed)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, ?)",
            (each.target, each.scope, each.cls, each.reason, each.by, each.since, each.until, each.message, change),
        )
        added += 1
    return added


def remove(db: sqlite3.Connection, target: str, scope: str | None, by: str, now: Millis) -> list[Block]:
    """Lift the blocks of a target (of one scope, or of all), and forget what counted towards one; what was lifted."""
    found = [block for block in of_target(db, target) if block.ended is None and scope in (None, block.scope)]
    change = _next_change(db)
    for block in found:
        past = block.until is not None and block.until <= now
        _end(db, block.id, block.until if past else now, EXPIRED if past else by, change)
    if scope is None:
        db.execute("DELETE FROM strike WHERE target = ?", (target,))
    else:
        db.execute("DELETE FROM strike WHERE target = ? AND scope = ?", (target, scope))
    return [block for block in found if block.holds(now)]


def expire(db: sqlite3.Connection, now: Millis) -> int:
    """End what is past its time, and forget what nobody needs any more; how many blocks ended."""
    due = db.execute(
        "SELECT id, until FROM block INDEXED BY block_until WHERE ended IS NULL AND until IS NOT NULL AND until <= ?",
        (now,),
    ).fetchall()
    change = _next_change(db)
    for number, until in due:
        _end(db, number, until, EXPIRED, change)
    # the newest change stays: workers remember its number
    db.execute("DELETE FROM block WHERE ended < ? AND changed < (SELECT MAX(changed) FROM block)", (now - HISTORY,))
    db.execute(
        "DELETE FROM strike WHERE at <= (SELECT at FROM strike ORDER BY at DESC LIMIT 1 OFFSET ?)", (MOST_STRIKES,)
    )
    return len(due)


@dataclass(frozen=True, slots=True)
class Strike:
    """A failure that counts towards a block."""

    target: str
    scope: str
    cls: str
    message: MessageId
    at: Millis


def strike(db: sqlite3.Connection, new: Strike, since: Millis) -> int:
    """Count a failure, once for each message; how many there are later than `since`. Older ones are forgotten."""
    place = (new.target, new.scope, new.cls)
    db.execute("INSERT OR IGNORE INTO strike VALUES (?, ?, ?, ?, ?)", (*place, new.message, new.at))
    db.execute("DELETE FROM strike WHERE target = ? AND scope = ? AND class = ? AND at <= ?", (*place, since))
    (count,) = db.execute("SELECT COUNT(*) FROM strike WHERE target = ? AND scope = ? AND class = ?", place).fetchone()
    return int(count)


def forget_strikes(db: sqlite3.Connection, past: Strike) -> None:
    """The failures have become a block."""
    db.execute("DELETE FROM strike WHERE target = ? AND scope = ? AND class = ?", (past.target, past.scope, past.cls))


def stopped(db: sqlite3.Connection, counts: Mapping[int, tuple[int, Millis]]) -> None:
    """Add how many mails each block stopped, and when the last."""
    db.executemany(
        "UPDATE block SET stopped = stopped + ?, last_stopped = MAX(COALESCE(last_stopped, 0), ?) WHERE id = ?",
        [(count, at, number) for number, (count, at) in counts.items()],
    )


def covered(db: sqlite3.Connection, new: NewBlock) -> bool:
    """Whether a block of this kind came about at that moment or later, be it lifted since."""
    found = db.execute(
        "SELECT 1 FROM block WHERE target = ? AND scope = ? AND class = ? AND since >= ? LIMIT 1",
        (new.target, new.scope, new.cls, new.since),
    )
    return found.fetchone() is not None


def judged(db: sqlite3.Connection) -> dict[str, int]:
    """Up to which event of each segment failures have been judged."""
    return dict(db.execute("SELECT segment, event FROM judged").fetchall())


def keep_judged(db: sqlite3.Connection, positions: Mapping[str, int], now: Millis) -> None:
    """Failures up to these events have been judged."""
    db.executemany("REPLACE INTO judged VALUES (?, ?, ?)", [(*each, now) for each in positions.items()])
    db.execute("DELETE FROM judged WHERE at < ?", (now - HISTORY,))


def data_version(db: sqlite3.Connection) -> int:
    """A number that changes when another connection has written to the file."""
    return int(db.execute("PRAGMA data_version").fetchone()[0])


def changes(db: sqlite3.Connection, after: int) -> tuple[list[Block], int]:
    """Blocks that were made or ended behind the change `after`, in order, and the number of the last change.

    Behind 0, which is the beginning, those that ended are left out.
    """
    rows = db.execute(
        f"SELECT {_COLUMNS} FROM block WHERE changed > ?1 AND (?1 > 0 OR ended IS NULL) ORDER BY changed, id",  # noqa: S608
        (after,),
    ).fetchall()
    last = rows[-1][-1] if rows else after
    return [Block(*row[:-1]) for row in rows], last


def of_target(db: sqlite3.Connection, target: str) -> list[Block]:
    """Every block of a target there ever was, oldest first."""
    rows = db.execute(f"SELECT {_COLUMNS} FROM block WHERE target = ? ORDER BY id", (target,))  # noqa: S608
    return [Block(*row[:-1]) for row in rows]


def listing(db: sqlite3.Connection, *, now: Millis, ended: bool, after: int = 0, limit: int = 1000) -> Sequence[Block]:
    """Blocks behind the id `after`, oldest first: those that hold at `now`, with `ended` the others too."""
    rows = db.execute(
        f"SELECT {_COLUMNS} FROM block WHERE id > ?"  # noqa: S608
        " AND (? OR (ended IS NULL AND (until IS NULL OR until > ?))) ORDER BY id LIMIT ?",
        (after, ended, now, limit),
    )
    return [Block(*row[:-1]) for row in rows]


def _end(db: sqlite3.Connection, number: int, at: Millis | None, by: str, change: int) -> None:
    db.execute("UPDATE block SET ended = ?, ended_by = ?, changed = ? WHERE id = ?", (at, by, change, number))


def _next_change(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT COALESCE(MAX(changed), 0) + 1 FROM block").fetchone()[0])
