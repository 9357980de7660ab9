"""Mails kept for people to look at, newest ones only, in one file that all workers share and commands read.

sandbox.db holds what delivery/sandbox.py was given, inbound.db what inbound/filing.py could make nothing of.
"""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import orjson
import structlog

from relayd.core import headers
from relayd.core.session import Outgoing
from relayd.core.units import Millis
from relayd.spool import files
from relayd.spool.connection import Connection
from relayd.spool.faults import is_damage
from relayd.spool.joining import join

MAX_MAILS = 10_000
MAX_OCTETS = 1024**3
"""The oldest mails go when there are more than this."""
MAX_REFUSALS = 10_000
SUBJECT_WITHIN = 65_536
"""Octets that are looked at for the subject: to read all of a long header would hold up others."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS mails(
    id INTEGER PRIMARY KEY AUTOINCREMENT, at INTEGER NOT NULL, message TEXT NOT NULL, sender TEXT NOT NULL,
    recipients TEXT NOT NULL, subject TEXT NOT NULL, size INTEGER NOT NULL, content BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS totals(
    one INTEGER PRIMARY KEY CHECK (one = 1), mails INTEGER NOT NULL, octets INTEGER NOT NULL);
INSERT OR IGNORE INTO totals VALUES (1, 0, 0);
CREATE TABLE IF NOT EXISTS refusals(
    message TEXT NOT NULL, recipient TEXT NOT NULL, count INTEGER NOT NULL, PRIMARY KEY (message, recipient));
"""
_COLUMNS = "id, at, message, sender, recipients, subject, size"
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class KeptMail:
    """One mail as it was given."""

    id: int
    """The file's own number."""
    at: Millis
    message: str
    """The message id, as logs write it."""
    sender: str
    recipients: tuple[str, ...]
    subject: str
    size: int


class NotKeptError(Exception):
    """There is no such file (nothing was kept yet), or no such mail in it."""


class Keepsakes:
    """The writing side: one connection of one worker."""

    def __init__(
        self, path: Path, *, max_mails: int = MAX_MAILS, max_octets: int = MAX_OCTETS, durable: bool = False
    ) -> None:
        """`durable`: what is kept survives a power cut, and a message that is kept already is not kept again."""
        self._path = path
        self._durable = durable
        self._limits = (max_mails, max_octets)
        self._connection: Connection | None = None
        self._inode = 0
        self._mending = asyncio.Lock()

    async def open(self) -> None:
        """Open the file, made where absent, and anew where it is damaged. Raises sqlite3.Error, OSError."""
        try:
            await self._open()
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            await self._begin_anew(error, None)

    async def _begin_anew(self, error: Exception, broken: Connection | None) -> None:
        """What is kept here holds no mail up: a damaged file is set aside, for `relayd spool recover`."""
        async with self._mending:
            if self._connection is broken:
                await self._replace(error)

    async def _replace(self, error: Exception) -> None:
        await self.close()
        aside = self._path.with_name(self._path.name + files.DAMAGED)
        if await asyncio.to_thread(self._is_ours):
            await asyncio.to_thread(files.rename, self._path, aside)
            structlog.get_logger("relayd.spool").error(
                "database_damaged", path=str(self._path), error=str(error), set_aside=str(aside)
            )
        await self._open()

    def _is_ours(self) -> bool:
        """The file is the one that we opened: no other worker has begun it anew meanwhile."""
        return self._path.exists() and self._path.stat().st_ino == self._inode

    async def _open(self) -> None:
        await asyncio.to_thread(self._make_file)
        connection = Connection(lambda: sqlite3.connect(self._path, timeout=10, isolation_level=None))
        await connection
        try:
            await connection.run(_prepare)
            if self._durable:
                await connection.run(_make_durable)
        except BaseException:
            await connection.close()
            raise
        self._connection = connection

    def _make_file(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.touch(mode=0o600)
        self._inode = self._path.stat().st_ino

    async def close(self) -> None:
        """Close the file. Never raises."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _run(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        if self._connection is None:
            raise sqlite3.ProgrammingError(f"{self._path.name} is closed")
        connection = self._connection
        try:
            return await connection.run(lambda connection: _transact(connection, work))
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            await self._begin_anew(error, connection)
        if self._connection is None:
            raise sqlite3.ProgrammingError(f"{self._path.name} is closed")
        return await self._connection.run(lambda connection: _transact(connection, work))

    async def keep(self, mail: Outgoing, recipients: Sequence[str], at: Millis) -> int:
        """Keep one mail and drop the oldest beyond the limits; its number. Raises sqlite3.Error."""
        named = orjson.dumps(list(recipients)).decode()

        def work(connection: sqlite3.Connection) -> int:
            # in the database's thread: a long header takes its time
            subject = headers.facts(mail.content[:SUBJECT_WITHIN]).subject
            content = join([mail.front, mail.content])
            return self._keep(connection, (at, mail.id, mail.envelope.sender, named, subject, len(content)), content)

        return await self._run(work)

    def _keep(self, connection: sqlite3.Connection, row: tuple[Any, ...], content: bytes) -> int:
        if self._durable:
            known = connection.execute("SELECT id FROM mails WHERE message = ?", (row[1],)).fetchone()
            if known is not None:
                return int(known[0])
        cursor = connection.execute(
            "INSERT INTO mails(at, message, sender, recipients, subject, size, content) VALUES (?,?,?,?,?,?,?)",
            (*row, content),
        )
        connection.execute("UPDATE totals SET mails = mails + 1, octets = octets + ?", (len(content),))
        self._prune(connection)
        return int(cursor.lastrowid or 0)

    def _prune(self, connection: sqlite3.Connection) -> None:
        mails, octets = connection.execute("SELECT mails, octets FROM totals").fetchone()
        while mails > 1 and (mails > self._limits[0] or octets > self._limits[1]):
            oldest, size = connection.execute("SELECT id, size FROM mails ORDER BY id LIMIT 1").fetchone()
            connection.execute("DELETE FROM mails WHERE id = ?", (oldest,))
            mails, octets = mails - 1, octets - size
            connection.execute("UPDATE totals SET mails = ?, octets = ?", (mails, octets))

    async def refusals(self, message: str, recipients: Sequence[str]) -> dict[str, int]:
        """How often each recipient of this message has acted its part by now, this time included."""
        return await self._run(lambda connection: _refusals(connection, message, recipients))


def _prepare(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    # a sandbox keeps no promise: losing the newest mails in a power cut is no loss
    connection.execute("PRAGMA synchronous=OFF")
    connection.executescript(_SCHEMA)


def _make_durable(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE INDEX IF NOT EXISTS mails_message ON mails (message)")


def _refusals(connection: sqlite3.Connection, message: str, recipients: Sequence[str]) -> dict[str, int]:
    connection.executemany(
        "INSERT INTO refusals VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET count = count + 1",
        [(message, recipient) for recipient in recipients],
    )
    connection.execute(
        "DELETE FROM refusals WHERE rowid <= (SELECT max(rowid) FROM refusals) - ?",
        (MAX_REFUSALS,),
    )
    return dict(connection.execute("SELECT recipient, count FROM refusals WHERE message = ?", (message,)))


def _transact(connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], _T]) -> _T:
    connection.execute("BEGIN IMMEDIATE")
    try:
        result = work(connection)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return result


# the reading side, for `relayd sandbox` and `relayd inbound`


@contextmanager
def _reading(path: Path, mode: str = "ro") -> Iterator[sqlite3.Connection]:
    if not path.exists():
        raise NotKeptError(f"nothing was kept in {path.name} yet")
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=10)) as connection:
        yield connection


def _mail(row: Sequence[Any]) -> KeptMail:
    return KeptMail(row[0], row[1], row[2], row[3], tuple(orjson.loads(row[4])), row[5], row[6])


def listing(path: Path, limit: int = 100) -> list[KeptMail]:
    """The newest mails, newest first. Raises NotKeptError, sqlite3.Error."""
    with _reading(path) as connection:
        rows = connection.execute(f"SELECT {_COLUMNS} FROM mails ORDER BY id DESC LIMIT ?", (limit,))  # noqa: S608
        return [_mail(row) for row in rows]


def show(path: Path, key: int | str) -> tuple[KeptMail, bytes]:
    """One mail and its content, by the file's number, or the newest by message id. Raises NotKeptError."""
    column = "id" if isinstance(key, int) else "message"
    with _reading(path) as connection:
        row = connection.execute(
            f"SELECT {_COLUMNS}, content FROM mails WHERE {column} = ? ORDER BY id DESC LIMIT 1",  # noqa: S608
            (key,),
        ).fetchone()
    if row is None:
        raise NotKeptError(f"{path.name} has no mail {key}")
    return _mail(row), bytes(row[7])


def export(path: Path, target: Path, form: Literal["eml", "mbox"] = "eml") -> int:
    """Write all mails, oldest first: one NUMBER.eml each into the folder `target`, or one mbox file `target`.

    How many there were. Raises NotKeptError, OSError.
    """
    count = 0
    with _reading(path) as connection:
        rows = connection.execute(f"SELECT {_COLUMNS}, content FROM mails ORDER BY id")  # noqa: S608
        if form == "eml":
            target.mkdir(parents=True, exist_ok=True)
            for row in rows:
                (target / f"{row[0]:06}.eml").write_bytes(row[7])
                count += 1
            return count
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            for row in rows:
                file.write(mbox_entry(_mail(row), row[7]))
                count += 1
    return count


def mbox_entry(mail: KeptMail, content: bytes) -> bytes:
    """One mail in the mboxrd form: LF line ends, a > more before each line that looks like a From line (RFC 4155)."""
    date = headers.format_date(mail.at).split()
    stamp = f"{date[0].rstrip(',')} {date[2]} {date[1]:>2} {date[4]} {date[3]}"
    sender = re.sub(r"[^\x21-\x7e]", "?", mail.sender) or "MAILER-DAEMON"
    body = re.sub(rb"(?m)^(>*From )", rb">\1", content.replace(b"\r\n", b"\n"))
    return f"From {sender} {stamp}\n".encode() + body + b"\n"


def clear(path: Path) -> int:
    """Forget all mails; how many there were. Raises NotKeptError, sqlite3.Error."""
    with _reading(path, "rw") as connection, connection:
        count = connection.execute("DELETE FROM mails").rowcount
        connection.execute("DELETE FROM refusals")
        connection.execute("UPDATE totals SET mails = 0, octets = 0")
    return count
