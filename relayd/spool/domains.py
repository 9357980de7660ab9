"""Sender domains with their keys, tracking domains and sender accounts in state.db, and the history of each.

What the facts mean, and when they change, is decided in relayd/domains/; private keys come and go encrypted.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any, TypeVar

import orjson

from relayd.core.units import Millis
from relayd.spool import certificates
from relayd.spool.certificates import Certificate
from relayd.spool.state import StateDB, StateError

T = TypeVar("T")
R = TypeVar("R", bound="SenderDomain | TrackingDomain")

_KEPT_EVENTS = 500
"""Of one domain; older ones go."""


class DomainState(StrEnum):
    """Where a sender domain stands."""

    PENDING = "pending"
    """Not everything has been seen in DNS yet."""
    VERIFIED = "verified"
    DEGRADED = "degraded"
    """Verified once, and now a record is missing or wrong. Mail still goes out."""
    STOPPED = "stopped"
    """Degraded for longer than the grace: mail is refused until it is verified again."""

    @property
    def vouched(self) -> bool:
        """Mail of the domain is taken."""
        return self in {DomainState.VERIFIED, DomainState.DEGRADED}


class KeyState(StrEnum):
    """Where a key stands in its rotation."""

    ACTIVE = "active"
    """Signs, once its record has been seen."""
    NEXT = "next"
    """Takes over once its record is seen."""
    RETIRING = "retiring"
    """Signs no more; its record stays for mail that is under way."""
    SPARE = "spare"
    """A delegated selector without a key, for the next rotation."""


@dataclass(frozen=True, slots=True)
class SenderDomain:
    """One sender domain (A-labels, lower case)."""

    name: str
    state: DomainState = DomainState.PENDING
    upstream: str = ""
    provider: str = ""
    """The preset of the upstream, where there is one (relayd/domains/providers.py)."""
    return_path: str = ""
    """Domain of the custom return path; "" for none."""
    return_path_seen_at: Millis | None = None
    """When all its records were first seen; None while one is known to be absent."""
    delegate: bool = False
    """DKIM by CNAMEs to `zone`, as it was when the domain was added."""
    zone: str = ""
    underscore_cname: bool = True
    """False: its DNS service takes no underscore in a CNAME's host, so TXT it is."""
    added_at: Millis = 0
    verified_at: Millis | None = None
    degraded_at: Millis | None = None
    checked_at: Millis | None = None
    next_check: Millis = 0
    unsettled: int = 0
    """Checks in a row that did not find everything in order."""
    report: Mapping[str, Any] = field(default_factory=dict)
    """The last check, as report.py writes it."""


@dataclass(frozen=True, slots=True)
class DomainKey:
    """One DKIM key."""

    domain: str
    selector: str
    algorithm: str
    """rsa or ed25519."""
    state: KeyState
    public: bytes = b""
    """What p= holds: DER for RSA, the bare 32 octets for Ed25519."""
    private: bytes = field(default=b"", repr=False)
    """Encrypted (relayd/domains/keys.py)."""
    created_at: Millis = 0
    seen_at: Millis | None = None
    """When its record was first seen."""
    retire_at: Millis | None = None


class TrackingState(StrEnum):
    """Where a tracking domain stands."""

    PENDING = "pending"
    VERIFIED = "verified"
    DEGRADED = "degraded"
    """Verified once, and now a record is missing: links use the shared host meanwhile."""
    EXPIRED = "expired"
    """The proof was not seen in time: delete it and add it anew."""


@dataclass(frozen=True, slots=True)
class TrackingDomain:
    """One branded host for links and opens (A-labels, lower case)."""

    name: str
    state: TrackingState = TrackingState.PENDING
    steps: int = 1
    step: int = 1
    """The step that is to be done now."""
    require_mx: bool = False
    target: str = ""
    """The plain host that step 1 leads to."""
    mx: str = ""
    proof_host: str = ""
    proof_value: str = ""
    tls_target: str = ""
    added_at: Millis = 0
    deadline: Millis | None = None
    """Until when the proof must have been seen."""
    proof_seen_at: Millis | None = None
    verified_at: Millis | None = None
    checked_at: Millis | None = None
    next_check: Millis = 0
    unsettled: int = 0
    report: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SenderAccount:
    """An address that credentials may be limited to; it only sends."""

    id: str
    address: str
    added_at: Millis = 0


@dataclass(frozen=True, slots=True)
class DomainEvent:
    """One fact in a domain's history."""

    domain: str
    at: Millis
    kind: str
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Everything:
    """All that is kept, as of one generation."""

    generation: int = 0
    domains: tuple[SenderDomain, ...] = ()
    keys: tuple[DomainKey, ...] = ()
    tracking: tuple[TrackingDomain, ...] = ()
    accounts: tuple[SenderAccount, ...] = ()
    certificates: tuple[Certificate, ...] = ()
    former_return_paths: tuple[tuple[str, Millis], ...] = ()
    """Of domains that were removed, and when: mail that left with them may still come back."""


class Editor:
    """Reads and writes within one transaction."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def everything(self) -> Everything:
        """All that is kept."""
        db = self._db
        keys = db.execute(
            "SELECT domain, selector, algorithm, state, public, private, created_at, seen_at, retire_at FROM domain_key"
            " ORDER BY domain, created_at, algorithm DESC, selector"
        )
        return Everything(
            _mark(db, "generation"),
            tuple(_read(SenderDomain, text) for (text,) in db.execute("SELECT facts FROM domain ORDER BY name")),
            tuple(_key(row) for row in keys),
            tuple(
                _read(TrackingDomain, text) for (text,) in db.execute("SELECT facts FROM tracking_domain ORDER BY name")
            ),
            tuple(
                SenderAccount(*row)
                for row in db.execute("SELECT id, address, added_at FROM sender_account ORDER BY id")
            ),
            certificates.read_certificates(db),
            tuple(db.execute("SELECT domain, removed_at FROM former_return_path ORDER BY domain")),
        )

    def domain(self, name: str) -> SenderDomain | None:
        """One sender domain."""
        row = self._db.execute("SELECT facts FROM domain WHERE name = ?", (name,)).fetchone()
        return None if row is None else _read(SenderDomain, row[0])

    def put_domain(self, domain: SenderDomain) -> None:
        """Write one, new or changed."""
        self._db.execute("REPLACE INTO domain VALUES (?, ?)", (domain.name, _written(domain)))

    def remove_domain(self, name: str, now: Millis) -> None:
        """Forget it, its keys too; the history stays, and the name of its return path."""
        domain = self.domain(name)
        if domain is not None and domain.return_path:
            self._db.execute("REPLACE INTO former_return_path VALUES (?, ?)", (domain.return_path, now))
        self._db.execute("DELETE FROM domain WHERE name = ?", (name,))
        self._db.execute("DELETE FROM domain_key WHERE domain = ?", (name,))

    def keys(self, domain: str) -> list[DomainKey]:
        """The keys of a domain, oldest first, RSA before Ed25519."""
        return [key for key in self.everything().keys if key.domain == domain]

    def put_key(self, key: DomainKey) -> None:
        """Write one, new or changed."""
        values = [getattr(key, each.name) for each in fields(key)]
        self._db.execute(
            "REPLACE INTO domain_key (domain, selector, algorithm, state, public, private, created_at, seen_at,"
            " retire_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [value.value if isinstance(value, StrEnum) else value for value in values],
        )

    def remove_key(self, domain: str, selector: str) -> None:
        """Forget a key for good."""
        self._db.execute("DELETE FROM domain_key WHERE domain = ? AND selector = ?", (domain, selector))

    def tracking(self, name: str) -> TrackingDomain | None:
        """One tracking domain."""
        row = self._db.execute("SELECT facts FROM tracking_domain WHERE name = ?", (name,)).fetchone()
        return None if row is None else _read(TrackingDomain, row[0])

    def put_tracking(self, tracking: TrackingDomain) -> None:
        """Write one, new or changed."""
        self._db.execute("REPLACE INTO tracking_domain VALUES (?, ?)", (tracking.name, _written(tracking)))

    def remove_tracking(self, name: str) -> None:
        """Forget it, and its certificate; the history stays."""
        self._db.execute("DELETE FROM tracking_domain WHERE name = ?", (name,))
        self.remove_certificate(name)

    def certificate(self, host: str) -> Certificate | None:
        """The certificate of a tracking host, with the attempts to get it."""
        return certificates.read_certificate(self._db, host)

    def put_certificate(self, certificate: Certificate) -> None:
        """Write one, new or changed."""
        certificates.put_certificate(self._db, certificate)

    def remove_certificate(self, host: str) -> None:
        """Forget it and its key."""
        certificates.remove_certificate(self._db, host)

    def put_account(self, account: SenderAccount) -> None:
        """Write one, new or changed."""
        self._db.execute(
            "REPLACE INTO sender_account VALUES (?, ?, ?)", (account.id, account.address, account.added_at)
        )

    def remove_account(self, name: str) -> None:
        """Forget it."""
        self._db.execute("DELETE FROM sender_account WHERE id = ?", (name,))

    def tell(self, event: DomainEvent) -> None:
        """Add to a domain's history."""
        self._db.execute(
            "INSERT INTO domain_event (domain, at, kind, detail) VALUES (?, ?, ?, ?)",
            (event.domain, event.at, event.kind, orjson.dumps(dict(event.detail)).decode()),
        )
        self._db.execute(
            "DELETE FROM domain_event WHERE domain = ? AND id NOT IN"
            " (SELECT id FROM domain_event WHERE domain = ? ORDER BY id DESC LIMIT ?)",
            (event.domain, event.domain, _KEPT_EVENTS),
        )


class DomainStore:
    """The part of state.db that is about domains. Every verb is one transaction; all of them raise StateError."""

    def __init__(self, state: StateDB) -> None:
        self._state = state
        self.changed = False
        """Something was written by way of this object."""

    async def generation(self) -> int:
        """Grows with every change; cheap to ask once a second."""
        return await self._state.read(lambda db: _mark(db, "generation"))

    async def everything(self) -> Everything:
        """All that is kept."""
        return await self._state.read(_whole)

    async def change(self, work: Callable[[Editor], T]) -> T:
        """Read and write in one transaction. What `work` raises undoes it and comes through."""

        def changed(db: sqlite3.Connection) -> T:
            result = work(Editor(db))
            db.execute("UPDATE domain_mark SET value = value + 1 WHERE name = 'generation'")
            return result

        done = await self._state.write(changed)
        self.changed = True
        return done

    async def history(self, domain: str, limit: int = 50) -> list[DomainEvent]:
        """The newest facts about a domain, newest first."""
        rows = await self._state.read(
            lambda db: db.execute(
                "SELECT domain, at, kind, detail FROM domain_event WHERE domain = ? ORDER BY id DESC LIMIT ?",
                (domain, limit),
            ).fetchall()
        )
        return [_event(row) for row in rows]

    async def untold(self) -> list[DomainEvent]:
        """Facts that no worker has logged yet; they count as logged now, so that one worker tells each."""

        def work(db: sqlite3.Connection) -> list[tuple[Any, ...]]:
            rows = db.execute(
                "SELECT domain, at, kind, detail, id FROM domain_event"
                " WHERE id > (SELECT value FROM domain_mark WHERE name = 'told') ORDER BY id"
            ).fetchall()
            if rows:
                db.execute("UPDATE domain_mark SET value = ? WHERE name = 'told'", (rows[-1][4],))
            return rows

        return [_event(row[:4]) for row in await self._state.write(work)]


def _whole(db: sqlite3.Connection) -> Everything:
    db.execute("BEGIN")  # one moment for all tables
    try:
        return Editor(db).everything()
    finally:
        db.execute("ROLLBACK")


def _mark(db: sqlite3.Connection, name: str) -> int:
    return int(db.execute("SELECT value FROM domain_mark WHERE name = ?", (name,)).fetchone()[0])


def _written(value: SenderDomain | TrackingDomain) -> str:
    return orjson.dumps(asdict(value)).decode()


def _read(kind: type[R], text: str) -> R:
    try:
        facts = orjson.loads(text)
        known = {each.name for each in fields(kind)}
        facts = {name: value for name, value in facts.items() if name in known}
        facts["state"] = (DomainState if kind is SenderDomain else TrackingState)(facts["state"])
        return kind(**facts)
    except (orjson.JSONDecodeError, KeyError, ValueError, TypeError) as error:
        raise StateError(f"state.db: a kept domain is damaged: {error}") from error


def _key(row: tuple[Any, ...]) -> DomainKey:
    domain, selector, algorithm, state, *rest = row
    return DomainKey(domain, selector, algorithm, KeyState(state), *rest)


def _event(row: tuple[Any, ...]) -> DomainEvent:
    return DomainEvent(row[0], row[1], row[2], orjson.loads(row[3]))
