"""state.db: the small facts that all workers share (rates, fetched networks, failed logins, leases, blocks, budgets).

Speaks in verbs, like the spool; what the facts mean is decided by those who ask: intake/{rates,networks,guesses}.py.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import orjson

from relayd.core.units import Millis
from relayd.spool.connection import Connection
from relayd.spool.faults import is_damage
from relayd.spool.state_schema import SCRIPTS, VERSION

T = TypeVar("T")

_BUSY_SECONDS = 5.0
_CLOCK_SLACK = 65_000
"""How far ahead of now (ms) a slice may end: another worker may have just leased a longer one."""


class StateError(Exception):
    """state.db could not do what was asked; nothing of the request was kept."""


@dataclass(frozen=True, slots=True)
class Used:
    """So many permits of a slice were used, the last of them at `at`."""

    at: Millis
    count: int


@dataclass(frozen=True, slots=True)
class Spent:
    """A slice that its worker is done with: what was used of it; the rest goes back."""

    slice: int
    username: str
    grain: Millis
    """Uses within one grain are kept as one row, which counts from the last of them."""
    used: tuple[Used, ...]


@dataclass(frozen=True, slots=True)
class Slice:
    """Permits leased from a credential's rate, to be used before `until`. `permits` is 0 where none are left."""

    id: int
    permits: int
    until: Millis
    """With no permits: when the first of those in use becomes free."""


@dataclass(frozen=True, slots=True)
class FetchedList:
    """A network as it was last fetched. `addresses`: CIDR → when it vanished from the list, None while it is listed."""

    name: str
    url: str
    fetched_at: Millis | None
    """The last success; None when there was none."""
    next_try: Millis
    failures: int
    """In a row, since the last success."""
    addresses: Mapping[str, Millis | None]


@dataclass(frozen=True, slots=True)
class Guess:
    """One failed login, as another worker saw it."""

    peer: str
    at: Millis


def _transact(db: sqlite3.Connection, work: Callable[[sqlite3.Connection], T], durable: bool) -> T:
    db.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
    db.execute("BEGIN IMMEDIATE")
    try:
        result = work(db)
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    return result


def _connect(path: Path) -> sqlite3.Connection:
    # made here with its mode: SQLite would use the umask, and gives -wal and -shm the mode of the main file
    os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    db = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        _become_wal(db)
        db.execute("BEGIN IMMEDIATE")
        _migrate(db, path)
        db.execute("COMMIT")
    except BaseException:
        db.close()
        raise
    return db


def _become_wal(db: sqlite3.Connection) -> None:
    """Switch to WAL. SQLite ignores the busy time-out when several processes switch a new file at once, so: again."""
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            db.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


def _migrate(db: sqlite3.Connection, path: Path) -> None:
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version > VERSION:
        raise StateError(f"{path} was written by a newer relayd (schema {version}, this one knows {VERSION})")
    for script in SCRIPTS[version:]:
        for statement in script.split(";"):
            db.execute(statement)
    if version < VERSION:
        db.execute(f"PRAGMA user_version={VERSION}")


class StateDB:
    """state.db of one data directory. Every verb is one transaction; all of them raise StateError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: Connection | None = None

    async def open(self) -> None:
        """Open, and make what is missing. Raises StateError: unreadable, damaged, or of a newer schema."""
        connection = Connection(lambda: _connect(self._path))
        try:
            await connection
        except (sqlite3.Error, OSError) as error:
            raise _cannot_open(self._path, error) from error
        self._connection = connection

    async def close(self) -> None:
        """Finish what is asked already, and close."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _transact(self, work: Callable[[sqlite3.Connection], T], *, durable: bool = True) -> T:
        """One write transaction; `durable` False leaves the fsync for later, for facts that a crash may eat."""
        connection = self._connection
        if connection is None:
            raise StateError("state.db is closed")
        try:
            return await connection.run(_transact, work, durable)
        except (sqlite3.Error, ValueError) as error:
            # ValueError: aiosqlite's word for a connection that was closed meanwhile
            raise StateError(f"state.db: {error}") from error

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """One durable write transaction, for the verbs of a neighbour file (domains.py, blocklist.py)."""
        return await self._transact(work)

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Read without waiting for writers."""
        connection = self._connection
        if connection is None:
            raise StateError("state.db is closed")
        try:
            return await connection.run(work)
        except (sqlite3.Error, ValueError) as error:
            raise StateError(f"state.db: {error}") from error

    # --- rates ------------------------------------------------------------------------------------------------

    async def lease_rate(
        self,
        username: str,
        now: Millis,
        *,
        want: int,
        count: int,
        window: Millis,
        valid: Millis,
        spent: Sequence[Spent],
    ) -> Slice:
        """Lease up to `want` of `count` permits per `window`, usable for `valid`, and hand back `spent` slices.

        A slice counts whole, as if used at its last moment, until it is handed back: so no crash lets a window
        hold more than `count`. The shorter permits become, the smaller the slices, so that no worker hoards the last.
        """

        def work(db: sqlite3.Connection) -> Slice:
            _settle(db, spent)
            # a clock that stepped back must not lock a credential out for much longer than its window
            ahead = now + valid + _CLOCK_SLACK
            db.execute("UPDATE rate_use SET at = ? WHERE username = ? AND at > ?", (ahead, username, ahead))
            # a little longer than the window: a worker whose clock reading is a moment older may still be waiting
            db.execute("DELETE FROM rate_use WHERE username = ? AND at <= ?", (username, now - window - valid))
            used, oldest = db.execute(
                "SELECT total(count), min(at) FROM rate_use WHERE username = ? AND at > ?", (username, now - window)
            ).fetchone()
            free = count - int(used)
            if free <= 0:
                return Slice(0, 0, oldest + window)
            permits = min(want, max(1, free // 4))
            row = db.execute(
                "INSERT INTO rate_use (username, at, count) VALUES (?, ?, ?)", (username, now + valid, permits)
            )
            return Slice(row.lastrowid or 0, permits, now + valid)

        return await self._transact(work)

    async def return_rates(self, spent: Sequence[Spent]) -> None:
        """Hand slices back without leasing another."""
        await self._transact(lambda db: _settle(db, spent))

    # --- networks ---------------------------------------------------------------------------------------------

    async def networks(self) -> dict[str, FetchedList]:
        """Every fetched network."""
        rows = await self._transact(
            lambda db: db.execute(
                "SELECT name, url, fetched_at, next_try, failures, addresses FROM network"
            ).fetchall(),
            durable=False,
        )
        try:
            return {
                name: FetchedList(name, url, fetched_at, next_try, failures, orjson.loads(addresses))
                for name, url, fetched_at, next_try, failures, addresses in rows
            }
        except orjson.JSONDecodeError as error:
            raise StateError(f"state.db: a kept network is damaged: {error}") from error

    async def keep_network(self, fetched: FetchedList) -> None:
        """Write what was fetched (or failed to be)."""
        values = (
            fetched.name,
            fetched.url,
            fetched.fetched_at,
            fetched.next_try,
            fetched.failures,
            orjson.dumps(dict(fetched.addresses)).decode(),
        )
        await self._transact(lambda db: db.execute("REPLACE INTO network VALUES (?, ?, ?, ?, ?, ?)", values))

    # --- failed logins ----------------------------------------------------------------------------------------

    async def share_guesses(
        self, owner: str, own: Sequence[Guess], since: Millis, after: int
    ) -> tuple[list[Guess], int]:
        """Add one's own failed logins, and get those of all others behind mark `after`, with the next mark.

        What is older than `since` is dropped. An `owner` is one process's life: after a restart its own come back.
        """

        def work(db: sqlite3.Connection) -> tuple[list[Guess], int]:
            db.execute("DELETE FROM guess WHERE at <= ?", (since,))
            rows = db.execute(
                "SELECT id, peer, at FROM guess WHERE id > ? AND owner <> ? ORDER BY id", (after, owner)
            ).fetchall()
            db.executemany(
                "INSERT INTO guess (peer, at, owner) VALUES (?, ?, ?)", [(guess.peer, guess.at, owner) for guess in own]
            )
            return [Guess(peer, at) for _, peer, at in rows], rows[-1][0] if rows else after

        return await self._transact(work, durable=False)

    # --- mailboxes --------------------------------------------------------------------------------------------

    async def mailbox_mark(self, name: str) -> tuple[int, int] | None:
        """UIDVALIDITY of a mailbox and the last UID that was read; None before the first."""
        row = await self._transact(
            lambda db: db.execute("SELECT uidvalidity, uid FROM mailbox WHERE name = ?", (name,)).fetchone(),
            durable=False,
        )
        return None if row is None else (row[0], row[1])

    async def keep_mailbox_mark(self, name: str, uidvalidity: int, uid: int) -> None:
        """The mails up to this UID are kept here; losing the mark only means to fetch them again."""
        await self._transact(
            lambda db: db.execute("REPLACE INTO mailbox VALUES (?, ?, ?)", (name, uidvalidity, uid)), durable=False
        )

    # --- leases of duties -------------------------------------------------------------------------------------

    async def claim(self, name: str, owner: str, now: Millis, ttl: Millis) -> bool:
        """Take or renew the lease `name` for `ttl`; False while another owner holds it."""

        def work(db: sqlite3.Connection) -> bool:
            row = db.execute("SELECT owner, until FROM lease WHERE name = ?", (name,)).fetchone()
            # further ahead than any lease reaches: the clock stepped back, the lease means nothing
            if row is not None and row[0] != owner and now < row[1] <= now + ttl:
                return False
            db.execute("REPLACE INTO lease VALUES (?, ?, ?)", (name, owner, now + ttl))
            return True

        return await self._transact(work, durable=False)

    async def release(self, name: str, owner: str) -> None:
        """Give the lease up, if it is still this owner's."""
        await self._transact(
            lambda db: db.execute("DELETE FROM lease WHERE name = ? AND owner = ?", (name, owner)), durable=False
        )


def open_state(path: Path) -> sqlite3.Connection:
    """state.db for a command, beside a daemon or without one. Raises StateError."""
    try:
        return _connect(path)
    except (sqlite3.Error, OSError) as error:
        raise _cannot_open(path, error) from error


def _cannot_open(path: Path, error: Exception) -> StateError:
    # never begun anew by itself: it holds keys and blocks, and mail must not go out without them
    help_ = f" (relayd spool recover {path} saves what can be read)" if is_damage(error) else ""
    return StateError(f"cannot open {path}: {error}{help_}")


def transact(db: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
    """One durable write transaction on a connection of `open_state`. Raises StateError."""
    try:
        return _transact(db, work, durable=True)
    except sqlite3.Error as error:
        raise StateError(f"state.db: {error}") from error


def _settle(db: sqlite3.Connection, spent: Sequence[Spent]) -> None:
    for entry in spent:
        db.execute("DELETE FROM rate_use WHERE id = ?", (entry.slice,))
        for used in entry.used:
            grain = used.at - used.at % entry.grain
            changed = db.execute(
                "UPDATE rate_use SET count = count + ?, at = max(at, ?) WHERE username = ? AND at >= ? AND grain = ?",
                (used.count, used.at, entry.username, grain, grain),
            )
            if not changed.rowcount:
                db.execute(
                    "INSERT INTO rate_use (username, at, count, grain) VALUES (?, ?, ?, ?)",
                    (entry.username, used.at, used.count, grain),
                )
