"""Proves from what is on disk that every recipient ever accepted waits, or has exactly one final outcome.

It trusts no state column: states are held against the history of events, and what waits against its body. Delivered
and then bounced by a fact that came back is one outcome: the later one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from relayd.core.ids import MessageId, format_id
from relayd.core.lifecycle import State
from relayd.spool import files
from relayd.spool.reader import SpoolReader, open_readonly
from relayd.spool.schema import FINAL_EVENT, FROM_FACT, STATE_CODE, STATE_OF
from relayd.spool.store import StoreError

LIMIT = 1000
"""Discrepancies listed; all are counted."""


@dataclass(frozen=True, slots=True)
class Discrepancy:
    """Something that should not be."""

    segment: str
    message: MessageId | None
    n: int | None
    problem: str

    def __str__(self) -> str:
        where = self.segment if self.message is None else format_id(self.message)
        return f"{where}{'' if self.n is None else f' recipient {self.n}'}: {self.problem}"


@dataclass(slots=True)
class AuditReport:
    """What was counted, and what is wrong."""

    segments: int = 0
    messages: int = 0
    accepted: int = 0
    """Recipients ever accepted, as far as they are still kept."""
    waiting: dict[State, int] = field(default_factory=dict)
    """Recipients that are not final, by state."""
    final: dict[State, int] = field(default_factory=dict)
    owed: int = 0
    """Recipients about which a report is owed."""
    discrepancies: list[Discrepancy] = field(default_factory=list)
    """The first of them."""
    discrepancy_count: int = 0

    @property
    def clean(self) -> bool:
        """Nothing is lost and nothing contradicts itself."""
        return self.discrepancy_count == 0

    def add(self, discrepancy: Discrepancy) -> None:
        self.discrepancy_count += 1
        if len(self.discrepancies) < LIMIT:
            self.discrepancies.append(discrepancy)


_BY_FACT = f"json_extract(COALESCE(e.detail, '{{}}'), '$.{FROM_FACT}') IS NOT NULL"
"""The event e tells of a fact that came back after the mail had left."""
_FINAL_KINDS = ", ".join(f"'{kind.value}'" for kind in FINAL_EVENT)


def _codes(*states: State) -> str:
    return ", ".join(str(STATE_CODE[state]) for state in states)


TRIED = (State.QUEUED, State.DEFERRED, State.UNCERTAIN)
ALLOWED = {
    "accepted": (*TRIED, State.HELD),
    # an upstream's own trouble leaves the state as it was
    "deferred": TRIED,
    "uncertain": (State.UNCERTAIN,),
    "held": (State.HELD,),
    "released": TRIED,
    **{kind.value: (state,) for kind, state in FINAL_EVENT.items()},
}
"""The states that may follow each event that bears on the state; the others (delayed, retried) change none."""
CONTENT_LOST = "content_lost"
"""Detail of the event by which mail ended, or that was added to it, when damage to the disk had taken its content."""

_CHECKS = (
    (
        "was accepted, but no `accepted` event is kept",
        "SELECT r.message, r.n FROM recipient r WHERE NOT EXISTS"
        " (SELECT 1 FROM event e WHERE e.message = r.message AND e.n = r.n AND e.kind = 'accepted')",
    ),
    (
        "an event tells of a recipient that is not there",
        "SELECT DISTINCT e.message, e.n FROM event e WHERE NOT EXISTS"
        " (SELECT 1 FROM recipient r WHERE r.message = e.message AND r.n = e.n)",
    ),
    (
        "belongs to no message",
        "SELECT r.message, r.n FROM recipient r WHERE NOT EXISTS (SELECT 1 FROM message m WHERE m.id = r.message)",
    ),
    (
        "has no recipients",
        "SELECT m.id, NULL FROM message m WHERE NOT EXISTS (SELECT 1 FROM recipient r WHERE r.message = m.id)",
    ),
    (
        # the upstream took it, and later it came back: only a fact may end twice, and only that way
        "has more than one final outcome",
        f"SELECT e.message, e.n FROM event e WHERE e.kind IN ({_FINAL_KINDS})"  # noqa: S608
        f" AND NOT (e.kind = 'bounced' AND {_BY_FACT} AND EXISTS"
        " (SELECT 1 FROM event d WHERE d.message = e.message AND d.n = e.n AND d.kind = 'delivered' AND d.id < e.id))"
        " GROUP BY e.message, e.n HAVING COUNT(*) > 1",
    ),
    (
        "came back after delivery more than once",
        f"SELECT e.message, e.n FROM event e WHERE e.kind = 'bounced' AND {_BY_FACT}"  # noqa: S608
        " GROUP BY e.message, e.n HAVING COUNT(*) > 1",
    ),
    (
        "an event tells of a fact that is not kept",
        f"SELECT e.message, e.n FROM event e WHERE {_BY_FACT} AND NOT EXISTS"  # noqa: S608
        " (SELECT 1 FROM fact f WHERE f.message = e.message AND f.n = e.n)",
    ),
    (
        "is final, but no event tells how it ended",
        "SELECT r.message, r.n FROM recipient r WHERE r.state >= 10 AND NOT EXISTS"  # noqa: S608
        f" (SELECT 1 FROM event e WHERE e.message = r.message AND e.n = r.n AND e.kind IN ({_FINAL_KINDS}))",
    ),
    (
        "has a final outcome, yet still waits",
        "SELECT r.message, r.n FROM recipient r WHERE r.state < 10 AND EXISTS"  # noqa: S608
        f" (SELECT 1 FROM event e WHERE e.message = r.message AND e.n = r.n AND e.kind IN ({_FINAL_KINDS}))",
    ),
    (
        "waits for an attempt, but no time is set for it",
        f"SELECT message, n FROM recipient WHERE state IN ({_codes(*TRIED[:2])}) AND due IS NULL",  # noqa: S608
    ),
    (
        "has a time for an attempt, but does not wait for one",
        f"SELECT message, n FROM recipient WHERE state NOT IN ({_codes(*TRIED)}) AND due IS NOT NULL",  # noqa: S608
    ),
    (
        "still needs its content, which is not whole",
        "SELECT r.message, r.n FROM recipient r JOIN message m ON m.id = r.message"  # noqa: S608
        " WHERE (r.state < 10 OR r.notice IS NOT NULL) AND m.size != COALESCE("
        "(SELECT LENGTH(b.octets) FROM body b WHERE b.message = r.message),"
        " (SELECT SUM(LENGTH(p.octets)) FROM part p WHERE p.message = r.message), -1)"
        " AND NOT (r.state >= 10 AND EXISTS (SELECT 1 FROM event e WHERE e.message = r.message AND e.n = r.n"
        f" AND json_extract(COALESCE(e.detail, '{{}}'), '$.{CONTENT_LOST}') IS NOT NULL))",
    ),
)


def audit(directory: Path) -> AuditReport:
    """Check data_dir/spool, whether a daemon runs or not. What is wrong there is reported, not raised."""
    report = AuditReport()
    for path in SpoolReader(directory).segments():
        try:
            db = open_readonly(path)
        except FileNotFoundError:
            continue  # removed by retention meanwhile
        except StoreError as error:
            report.add(Discrepancy(str(path), None, None, str(error)))
            continue
        report.segments += 1
        with closing(db):
            try:
                audit_segment(db, str(path), report)
            except sqlite3.Error as error:
                report.add(Discrepancy(str(path), None, None, f"cannot be read: {error}"))
    for path in files.damaged_in(directory):
        report.add(Discrepancy(str(path), None, None, "was set aside as damaged: what waited in it is not sent"))
    return report


def audit_segment(db: sqlite3.Connection, name: str, report: AuditReport) -> None:
    """Check one segment. Raises sqlite3.Error where it cannot be read."""
    for (fault,) in db.execute("PRAGMA integrity_check(20)"):
        if fault != "ok":
            report.add(Discrepancy(name, None, None, f"integrity: {fault}"))
    # one snapshot, so that a daemon at work does not look like a contradiction
    db.execute("BEGIN")
    try:
        report.messages += db.execute("SELECT COUNT(*) FROM message").fetchone()[0]
        report.owed += db.execute("SELECT COUNT(*) FROM recipient WHERE notice IS NOT NULL").fetchone()[0]
        for code, count in db.execute("SELECT state, COUNT(*) FROM recipient GROUP BY state"):
            state = STATE_OF.get(code)
            report.accepted += count
            if state is None:
                report.add(Discrepancy(name, None, None, f"{count} recipients in the unknown state {code}"))
                continue
            group = report.final if state.final else report.waiting
            group[state] = group.get(state, 0) + count
        for problem, query in _CHECKS:
            for message, n in db.execute(query):
                report.add(Discrepancy(name, message, n, problem))
        for discrepancy in _states_against_events(db, name):
            report.add(discrepancy)
    finally:
        db.execute("COMMIT")


def _states_against_events(db: sqlite3.Connection, name: str) -> Iterator[Discrepancy]:
    """Recipients whose state does not follow from the last event that bears on it."""
    kinds = ", ".join(f"'{kind}'" for kind in ALLOWED)
    allowed = " ".join(f"WHEN '{kind}' THEN r.state IN ({_codes(*states)})" for kind, states in ALLOWED.items())
    for message, n, code, kind in db.execute(
        "SELECT r.message, r.n, r.state, e.kind FROM event e"  # noqa: S608 - all names are ours
        f" JOIN (SELECT MAX(id) AS id FROM event WHERE kind IN ({kinds}) GROUP BY message, n) last ON last.id = e.id"
        f" JOIN recipient r ON r.message = e.message AND r.n = e.n WHERE NOT (CASE e.kind {allowed} END)"
    ):
        state = STATE_OF.get(code)
        yield Discrepancy(name, message, n, f"is {state or code}, but its last event is `{kind}`")
