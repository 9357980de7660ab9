"""Certificates of tracking hosts in state.db, with the accounts at their CAs and the challenges that are under way.

When one is got and what of it is locked is decided in relayd/domains/; keys come and go encrypted.
"""

from __future__ import annotations

import sqlite3
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import orjson

from relayd.core.units import Millis
from relayd.spool.state import StateDB, StateError


@dataclass(frozen=True, slots=True)
class Certificate:
    """What is known of one host's certificate, and of the attempts to get it."""

    host: str
    chain: str = ""
    """PEM, its own certificate first; "" before the first one is there."""
    private: bytes = field(default=b"", repr=False)
    """Its key, encrypted (relayd/domains/issued.py)."""
    not_before: Millis | None = None
    not_after: Millis | None = None
    directory: str = ""
    """The CA of the last attempt."""
    due: Millis = 0
    """When it is to be renewed, or tried again."""
    ordered_at: Millis | None = None
    """When the CA was last asked for it."""
    failures: int = 0
    """Attempts in a row that failed."""
    failed_at: Millis | None = None
    error: str = ""
    """Why the last attempt failed."""


@dataclass(frozen=True, slots=True)
class CAAccount:
    """Who we are at one CA."""

    directory: str
    uri: str = ""
    """"" before it is registered."""
    email: str = ""
    private: bytes = field(default=b"", repr=False)
    """Its key, encrypted."""
    pause_until: Millis = 0
    """The CA asked to be left alone until then."""


def read_certificates(db: sqlite3.Connection) -> tuple[Certificate, ...]:
    """All of them. Raises StateError for damage."""
    return tuple(_certificate(row) for row in db.execute("SELECT facts, private FROM certificate ORDER BY host"))


def read_certificate(db: sqlite3.Connection, host: str) -> Certificate | None:
    """One host's. Raises StateError for damage."""
    row = db.execute("SELECT facts, private FROM certificate WHERE host = ?", (host,)).fetchone()
    return None if row is None else _certificate(row)


def put_certificate(db: sqlite3.Connection, certificate: Certificate) -> None:
    """Write one, new or changed."""
    facts = asdict(certificate)
    private = facts.pop("private")
    db.execute("REPLACE INTO certificate VALUES (?, ?, ?)", (certificate.host, orjson.dumps(facts).decode(), private))


def remove_certificate(db: sqlite3.Connection, host: str) -> None:
    """Forget it and its key."""
    db.execute("DELETE FROM certificate WHERE host = ?", (host,))


class ChallengeStore:
    """The part of state.db that is about our dealings with CAs. Its verbs raise StateError."""

    def __init__(self, state: StateDB) -> None:
        self._state = state

    async def account(self, directory: str) -> CAAccount:
        """Our account there; without key and URI where there is none yet."""
        row = await self._state.read(
            lambda db: db.execute("SELECT facts, private FROM ca_account WHERE directory = ?", (directory,)).fetchone()
        )
        if row is None:
            return CAAccount(directory)
        known = {each.name for each in fields(CAAccount)}
        facts = {name: value for name, value in _loads(row[0]).items() if name in known}
        return CAAccount(**facts, private=row[1])

    async def keep_account(self, account: CAAccount) -> None:
        """Write it, new or changed."""
        facts = asdict(account)
        private = facts.pop("private")
        values = (account.directory, orjson.dumps(facts).decode(), private)
        await self._state.write(lambda db: db.execute("REPLACE INTO ca_account VALUES (?, ?, ?)", values))

    async def show(self, answers: dict[str, str], now: Millis, until: Millis) -> None:
        """Answer these challenges (token → answer) on every worker; old ones go."""

        def work(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM challenge WHERE until <= ?", (now,))
            rows = [(token, answer, until) for token, answer in answers.items()]
            db.executemany("REPLACE INTO challenge VALUES (?, ?, ?)", rows)

        await self._state.write(work)

    async def hide(self, tokens: list[str]) -> None:
        """Answer these no more."""
        await self._state.write(
            lambda db: db.executemany("DELETE FROM challenge WHERE token = ?", [(t,) for t in tokens])
        )

    async def answer(self, token: str) -> str | None:
        """The answer to a challenge; None for one that is not ours."""
        row = await self._state.read(
            lambda db: db.execute("SELECT answer FROM challenge WHERE token = ?", (token,)).fetchone()
        )
        return None if row is None else str(row[0])


def _certificate(row: tuple[str, bytes]) -> Certificate:
    known = {each.name for each in fields(Certificate)}
    facts = {name: value for name, value in _loads(row[0]).items() if name in known}
    return Certificate(**facts, private=row[1])


def _loads(text: str) -> dict[str, Any]:
    try:
        facts = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise StateError(f"state.db: a kept certificate is damaged: {error}") from error
    if not isinstance(facts, dict):
        raise StateError("state.db: a kept certificate is damaged")
    return facts
