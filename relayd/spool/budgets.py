"""Usage of budgets in state.db: one transaction reports what was used and gets more, for all workers.

What may be given is core/permits.py's; who asks, delivery/budget.py's.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import orjson

from relayd.core.permits import Grant, Kind, Refusal, Request, Share, Usage, exchange
from relayd.core.units import Millis
from relayd.spool.state import StateDB, StateError


class BudgetStore:
    """The budgets of all upstreams and accounts. Both verbs raise StateError."""

    def __init__(self, state: StateDB) -> None:
        self._state = state

    async def exchange(
        self, shares: Sequence[Share], owner: str, requests: dict[Kind, Request], now: Millis, urgency: int
    ) -> Grant | Refusal:
        """Report and ask, in one durable transaction: what is granted is on disk as spent before it can be used."""

        def work(db: sqlite3.Connection) -> Grant | Refusal:
            books = [(share, _load(db, share)) for share in shares]
            answer = exchange(books, owner, requests, now, urgency)
            for share, usage in books:
                values = (share.name, share.kind.value, _text(usage))
                db.execute("REPLACE INTO budget (name, kind, usage) VALUES (?, ?, ?)", values)
            return answer

        return await self._state.write(work)

    async def usages(self, shares: Sequence[Share]) -> list[Usage]:
        """The records as they are, untidied."""
        return await self._state.read(lambda db: [_load(db, share) for share in shares])


def read_usages(path: Path, shares: Sequence[Share]) -> list[Usage]:
    """The same for a command, beside a daemon or without one; empty ones where there is no state.db. Changes nothing.

    Raises StateError.
    """
    if not path.exists():
        return [Usage() for _ in shares]
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)) as db:
            if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'budget'").fetchone():
                return [Usage() for _ in shares]
            return [_load(db, share) for share in shares]
    except sqlite3.Error as error:
        raise StateError(f"cannot read {path}: {error}") from error


def _load(db: sqlite3.Connection, share: Share) -> Usage:
    values = (share.name, share.kind.value)
    row = db.execute("SELECT usage FROM budget WHERE name = ? AND kind = ?", values).fetchone()
    if row is None:
        return Usage()
    try:
        facts = orjson.loads(row[0])
        return Usage(
            [(at, count) for at, count in facts["marks"]],
            {owner: (count, until) for owner, (count, until) in facts["holds"].items()},
            {owner: (urgency, until) for owner, (urgency, until) in facts["wants"].items()},
            facts["passed"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise StateError(f"state.db: the budget {share.name} is damaged: {error}") from error


def _text(usage: Usage) -> str:
    facts = {
        "marks": usage.marks,
        "holds": usage.holds,
        "wants": usage.wants,
        "passed": usage.passed,
    }
    return orjson.dumps(facts).decode()
