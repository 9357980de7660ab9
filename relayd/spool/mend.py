"""Puts right what does not fit together in a segment of saved rows, so that `relayd audit` has nothing to say of it.

Nothing is invented: what is missing is said to be missing, in the history of the recipient it is missing from.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from typing import Any

import orjson

from relayd.core.classes import ReplyClass
from relayd.core.dsn import Kind, wanted
from relayd.core.ids import format_id
from relayd.core.lifecycle import State
from relayd.core.units import Millis
from relayd.spool import codec
from relayd.spool.audit import ALLOWED, CONTENT_LOST
from relayd.spool.schema import FINAL_EVENT, FROM_FACT, STATE_CODE, STATE_OF

_REASON = "its segment was damaged: this was restored by relayd spool recover"
_STALE = "its segment was damaged and what was written last is lost: it may have been delivered already"
_LOST = "554 5.3.0 Its content was lost to a fault of the disk before it could be sent"
_HELD, _UNCERTAIN, _BOUNCED = (STATE_CODE[state] for state in (State.HELD, State.UNCERTAIN, State.BOUNCED))
_KIND_OF = {STATE_CODE[state]: kind.value for kind, state in FINAL_EVENT.items()}
_FINAL = {kind.value: STATE_CODE[state] for kind, state in FINAL_EVENT.items()}


@dataclass(slots=True)
class Mended:
    """What was done."""

    held: int = 0
    lost: list[str] = field(default_factory=list)


class _Mender:
    def __init__(self, db: sqlite3.Connection, now: Millis, *, notify: bool) -> None:
        self.db = db
        self.now = now
        self.notify = notify
        self.mended = Mended()
        self._lowest = min(db.execute("SELECT MIN(id) FROM event").fetchone()[0] or 0, 0)

    def event(self, message: int, n: int, kind: str, detail: dict[str, Any]) -> None:
        """A last event."""
        text = orjson.dumps(detail).decode()
        self.db.execute(
            "INSERT INTO event (message, n, at, kind, detail) VALUES (?, ?, ?, ?, ?)",
            (message, n, self.now, kind, text),
        )

    def first_event(self, message: int, n: int, at: Millis) -> None:
        """An `accepted` event in front of all others."""
        self._lowest -= 1
        self.db.execute("INSERT INTO event VALUES (?, ?, ?, ?, 'accepted', NULL)", (self._lowest, message, n, at))

    def drop_what_belongs_to_nothing(self) -> None:
        db, lost = self.db, self.mended.lost
        for message, address in db.execute(
            "SELECT message, address FROM recipient WHERE state < 10 AND message NOT IN (SELECT id FROM message)"
        ):
            lost.append(f"{format_id(message)} to {address}: the message's own record is lost")
        for message, n in db.execute(
            "SELECT DISTINCT e.message, e.n FROM event e WHERE e.message IN (SELECT id FROM message)"  # noqa: S608
            " AND NOT EXISTS"
            " (SELECT 1 FROM recipient r WHERE r.message = e.message AND r.n = e.n)"
            " AND NOT EXISTS (SELECT 1 FROM event f WHERE f.message = e.message AND f.n = e.n"
            f" AND f.kind IN {_kinds()})"
        ):
            lost.append(f"{format_id(message)} recipient {n}: its record is lost, and no event tells how it ended")
        for (message,) in db.execute(
            "SELECT id FROM message WHERE id NOT IN (SELECT message FROM recipient)"
            " AND id NOT IN (SELECT message FROM event)"
        ):
            lost.append(f"{format_id(message)}: the records of its recipients are lost")
        db.execute("DELETE FROM recipient WHERE message NOT IN (SELECT id FROM message)")
        db.execute("DELETE FROM message WHERE id NOT IN (SELECT message FROM recipient)")
        for table in ("body", "part", "attempt"):
            db.execute(f"DELETE FROM {table} WHERE message NOT IN (SELECT id FROM message)")  # noqa: S608
        for table in ("event", "fact"):
            db.execute(f"DELETE FROM {table} WHERE (message, n) NOT IN (SELECT message, n FROM recipient)")  # noqa: S608

    def restore_accepted(self) -> None:
        for message, n, at in self.db.execute(
            "SELECT r.message, r.n, m.accepted FROM recipient r JOIN message m ON m.id = r.message WHERE NOT EXISTS"
            " (SELECT 1 FROM event e WHERE e.message = r.message AND e.n = r.n AND e.kind = 'accepted')"
        ).fetchall():
            self.first_event(message, n, at)

    def restore_facts(self) -> None:
        """An event that tells of a fact says that it was there."""
        self.db.execute(
            "INSERT OR IGNORE INTO fact SELECT message, n, 'restored ' || id, at FROM event"  # noqa: S608
            f" WHERE json_extract(COALESCE(detail, '{{}}'), '$.{FROM_FACT}') IS NOT NULL AND NOT EXISTS"
            " (SELECT 1 FROM fact f WHERE f.message = event.message AND f.n = event.n)"
        )

    def reconcile_states(self) -> None:
        """State and history are written together, so where one of both is older the other holds."""
        for message, n, state, kind, final in self.db.execute(
            "SELECT r.message, r.n, r.state, "  # noqa: S608
            f"(SELECT kind FROM event e WHERE e.message = r.message AND e.n = r.n AND kind IN {_kinds(*ALLOWED)}"
            " ORDER BY id DESC LIMIT 1),"
            f"(SELECT kind FROM event e WHERE e.message = r.message AND e.n = r.n AND kind IN {_kinds()}"
            " ORDER BY id DESC LIMIT 1) FROM recipient r"
        ).fetchall():
            if final is not None:
                self._become(message, n, _FINAL[final])
            elif STATE_OF[state].final:
                self.event(message, n, _KIND_OF[state], {"by": "relayd", "reason": _REASON})
            elif STATE_OF[state] not in ALLOWED[kind]:
                if kind in ("held", "uncertain"):
                    self._become(message, n, _HELD if kind == "held" else _UNCERTAIN)
                else:
                    self.event(message, n, STATE_OF[state].value, {"by": "relayd", "reason": _REASON})

    def _become(self, message: int, n: int, state: int) -> None:
        self.db.execute("UPDATE recipient SET state = ? WHERE message = ? AND n = ?", (state, message, n))

    def drop_parts_of_contents(self) -> None:
        for table in ("body", "part"):
            self.db.execute(
                f"DELETE FROM {table} WHERE message IN (SELECT id FROM message m WHERE m.size !="  # noqa: S608
                f" (SELECT SUM(LENGTH(p.octets)) FROM {table} p WHERE p.message = m.id))"
            )

    def end_what_has_no_content(self) -> None:
        for message, n in self.db.execute(
            "SELECT message, n FROM recipient WHERE (state < 10 OR notice IS NOT NULL)"
            " AND message NOT IN (SELECT message FROM body UNION SELECT message FROM part)"
        ).fetchall():
            row = self._row("recipient", codec.RECIPIENT, "message = ? AND n = ?", (message, n))
            waiting = codec.waiting_of(row)
            value = codec.message_of(self._row("message", codec.MESSAGE, "id = ?", (message,)))
            owed = self.notify and value.envelope.sender and not value.origin.inbound
            detail = {"by": "relayd", "reply": _LOST, "class": ReplyClass.SYSTEM_ERROR.value, CONTENT_LOST: True}
            if waiting.state.final:
                self.event(message, n, "noted", detail)
                continue
            notice = "failure" if owed and wanted(waiting.recipient.notify, Kind.FAILED) else None
            self.db.execute(
                "UPDATE recipient SET state = ?, notice = ? WHERE message = ? AND n = ?", (_BOUNCED, notice, message, n)
            )
            self.event(message, n, "bounced", detail)
            told = "its sender is told" if notice else "its sender is not told"
            self.mended.lost.append(
                f"{format_id(message)} to {waiting.recipient.address}: its content is lost; it bounces, {told}"
            )

    def _row(self, table: str, columns: str, condition: str, values: tuple[int, ...]) -> Any:
        return self.db.execute(f"SELECT {columns} FROM {table} WHERE {condition}", values).fetchone()  # noqa: S608

    def hold(self) -> None:
        for message, n in self.db.execute("SELECT message, n FROM recipient WHERE state < 3").fetchall():
            self._become(message, n, _HELD)
            self.event(message, n, "held", {"by": "relayd", "reason": _STALE})
            self.mended.held += 1

    def set_times(self) -> None:
        self.db.execute("UPDATE recipient SET due = NULL WHERE state >= ?", (_HELD,))
        self.db.execute("UPDATE recipient SET due = ? WHERE state < ? AND due IS NULL", (self.now, _UNCERTAIN))


def mend(db: sqlite3.Connection, now: Millis, *, notify: bool, hold: bool) -> Mended:
    """Make a segment of saved rows one that holds together. Within a transaction of the caller's."""
    mender = _Mender(db, now, notify=notify)
    mender.drop_what_belongs_to_nothing()
    mender.restore_accepted()
    mender.restore_facts()
    mender.reconcile_states()
    mender.drop_parts_of_contents()
    mender.end_what_has_no_content()
    if hold:
        mender.hold()
    mender.set_times()
    return mender.mended


def _kinds(*kinds: str) -> str:
    return "(" + ", ".join(f"'{kind}'" for kind in kinds or _FINAL) + ")"
