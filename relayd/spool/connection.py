"""aiosqlite's connection, given one more method: run a whole function on its thread.

A thread hop costs some 50 µs, so a commit is one hop, not one per statement.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar, cast

import aiosqlite

from relayd.spool import schema

P = ParamSpec("P")
T = TypeVar("T")


class Connection(aiosqlite.Connection):
    """One database, one thread."""

    async def run(
        self, function: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call `function(db, ...)` on the connection's thread. Raises what it raises."""
        return cast("T", await self._execute(function, self._conn, *args, **kwargs))  # type: ignore[no-untyped-call]


async def open_writer(path: Path) -> Connection:
    """The one connection that writes to a segment. Raises sqlite3.Error."""
    return await _opened(Connection(lambda: schema.connect(path), iter_chunk_size=64))


async def open_reader(path: Path) -> Connection:
    """A connection that only reads: in WAL mode it never waits for the writer, nor the writer for it."""

    def connector() -> sqlite3.Connection:
        db = schema.connect(path)
        db.execute("PRAGMA query_only = ON")
        return db

    return await _opened(Connection(connector, iter_chunk_size=64))


async def _opened(connection: Connection) -> Connection:
    # a segment that somebody forgets to close must not keep the process from ending
    connection._thread.daemon = True
    await connection
    return connection
