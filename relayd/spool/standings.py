"""Pauses, suspensions and the history of upstreams in state.db, as verbs on a connection, shared by all workers.

Workers run them by StateDB, commands on a connection of their own. What they mean is delivery/standings.py's.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import orjson

from relayd.core.units import Millis

KEPT = 1000
"""Events of one lane that are remembered."""
PARDON: Millis = 86_400_000
"""So long a reply that an operator let bounce is no storm."""
Detail = Mapping[str, str | int | float | None]


class UpstreamEventKind(StrEnum):
    """What happened to an upstream or one of its accounts."""

    PAUSED = "upstream.paused"
    RESUMED = "upstream.resumed"
    SUSPENDED = "upstream.suspended"
    STORM = "upstream.storm"


class SuspensionKind(StrEnum):
    """Who suspended it."""

    HAND = "hand"
    STORM = "storm"


@dataclass(frozen=True, slots=True)
class Pause:
    """A lane in trouble: no worker tries it before `until`, then one message probes."""

    lane: str
    since: Millis
    until: Millis
    troubles: int
    """Pauses in a row."""
    reason: str


@dataclass(frozen=True, slots=True)
class Suspension:
    """A lane, or an upstream with all its accounts, that is not used until somebody resumes it, or `until`."""

    lane: str
    kind: SuspensionKind
    since: Millis
    until: Millis | None
    reason: str
    by: str


@dataclass(frozen=True, slots=True)
class UpstreamEvent:
    """One fact in the history of a lane."""

    lane: str
    at: Millis
    kind: UpstreamEventKind
    detail: Detail


@dataclass(frozen=True, slots=True)
class Standings:
    """All that holds now."""

    pauses: Mapping[str, Pause] = field(default_factory=dict)
    suspensions: Mapping[str, Suspension] = field(default_factory=dict)
    pardons: frozenset[tuple[str, str]] = frozenset()
    """Lane and reply that the storm guard is not to take for a storm."""


def read(db: sqlite3.Connection, now: Millis) -> Standings:
    """Everything that holds at this moment."""
    pauses = db.execute("SELECT lane, since, until, troubles, reason FROM upstream_pause").fetchall()
    found = db.execute(
        "SELECT lane, kind, since, until, reason, by FROM upstream_suspension WHERE until IS NULL OR until > ?", (now,)
    ).fetchall()
    pardons = db.execute("SELECT lane, key FROM upstream_pardon WHERE until > ?", (now,)).fetchall()
    return Standings(
        {row[0]: Pause(*row) for row in pauses},
        {row[0]: Suspension(row[0], SuspensionKind(row[1]), *row[2:]) for row in found},
        frozenset(pardons),
    )


def pause(db: sqlite3.Connection, new: Pause, detail: Detail) -> bool:
    """A worker met with trouble; True when that is news. A pause that is known already only grows."""
    row = db.execute("SELECT until, troubles FROM upstream_pause WHERE lane = ?", (new.lane,)).fetchone()
    if row is not None:
        db.execute(
            "UPDATE upstream_pause SET until = max(until, ?2), troubles = max(troubles, ?3), reason = ?4"
            " WHERE lane = ?1",
            (new.lane, new.until, new.troubles, new.reason),
        )
        return False
    db.execute(
        "INSERT INTO upstream_pause VALUES (?, ?, ?, ?, ?)", (new.lane, new.since, new.until, new.troubles, new.reason)
    )
    tell(db, UpstreamEvent(new.lane, new.since, UpstreamEventKind.PAUSED, detail))
    return True


def unpause(db: sqlite3.Connection, lane: str, now: Millis, by: str) -> Pause | None:
    """It works again, or is to be tried at once; the pause that this ended."""
    row = db.execute(
        "SELECT lane, since, until, troubles, reason FROM upstream_pause WHERE lane = ?", (lane,)
    ).fetchone()
    if row is None:
        return None
    ended = Pause(*row)
    db.execute("DELETE FROM upstream_pause WHERE lane = ?", (lane,))
    detail: Detail = {"after": "pause", "since": ended.since, "reason": ended.reason, "by": by}
    tell(db, UpstreamEvent(lane, now, UpstreamEventKind.RESUMED, detail))
    return ended


def suspend(db: sqlite3.Connection, new: Suspension, detail: Detail) -> bool:
    """Use it no more; a suspension by hand replaces any other. False where a storm finds it suspended already."""
    known = db.execute(
        "SELECT 1 FROM upstream_suspension WHERE lane = ? AND (until IS NULL OR until > ?)", (new.lane, new.since)
    ).fetchone()
    if known is not None and new.kind is SuspensionKind.STORM:
        return False
    db.execute(
        "REPLACE INTO upstream_suspension VALUES (?, ?, ?, ?, ?, ?)",
        (new.lane, new.kind.value, new.since, new.until, new.reason, new.by),
    )
    storm = new.kind is SuspensionKind.STORM
    kind = UpstreamEventKind.STORM if storm else UpstreamEventKind.SUSPENDED
    facts: Detail = {"reason": new.reason, "by": new.by, "until": new.until, **detail}
    tell(db, UpstreamEvent(new.lane, new.since, kind, facts))
    return True


def resume(db: sqlite3.Connection, lane: str, now: Millis, by: str, reason: str) -> Suspension | None:
    """Use it again; the suspension that this ended."""
    row = db.execute(
        "SELECT lane, kind, since, until, reason, by FROM upstream_suspension WHERE lane = ?", (lane,)
    ).fetchone()
    if row is None:
        return None
    ended = Suspension(row[0], SuspensionKind(row[1]), *row[2:])
    db.execute("DELETE FROM upstream_suspension WHERE lane = ?", (lane,))
    detail: Detail = {"after": ended.kind.value, "since": ended.since, "reason": reason, "by": by}
    tell(db, UpstreamEvent(lane, now, UpstreamEventKind.RESUMED, detail))
    return ended


def lapse(db: sqlite3.Connection, now: Millis) -> list[str]:
    """End the suspensions whose time is over; the lanes."""
    rows = db.execute("SELECT lane FROM upstream_suspension WHERE until <= ?", (now,)).fetchall()
    for (lane,) in rows:
        resume(db, lane, now, "relayd", "its time was over")
    db.execute("DELETE FROM upstream_pardon WHERE until <= ?", (now,))
    return [lane for (lane,) in rows]


def pardon(db: sqlite3.Connection, lane: str, key: str, until: Millis) -> None:
    """This reply of this lane is no storm until then: its recipients may bounce."""
    db.execute("REPLACE INTO upstream_pardon VALUES (?, ?, ?)", (lane, key, until))


def tell(db: sqlite3.Connection, event: UpstreamEvent) -> None:
    """Add to the history; what is older than the last KEPT events of a lane is forgotten."""
    number = db.execute(
        "INSERT INTO upstream_event (lane, at, kind, detail) VALUES (?, ?, ?, ?)",
        (event.lane, event.at, event.kind.value, orjson.dumps(dict(event.detail)).decode()),
    ).lastrowid
    if number is not None and number % 64 == 0:
        db.execute(
            "DELETE FROM upstream_event WHERE lane = ?1 AND id <="
            " (SELECT id FROM upstream_event WHERE lane = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
            (event.lane, KEPT),
        )


def history(db: sqlite3.Connection, upstream: str, limit: int) -> list[UpstreamEvent]:
    """The last events of an upstream and of its accounts, newest first."""
    rows = db.execute(
        "SELECT lane, at, kind, detail FROM upstream_event"
        " WHERE lane = ?1 OR (lane >= ?1 || '/' AND lane < ?1 || '0') ORDER BY id DESC LIMIT ?2",
        (upstream, limit),
    )
    return [UpstreamEvent(lane, at, UpstreamEventKind(kind), orjson.loads(text)) for lane, at, kind, text in rows]
