"""aiosqlite's connection: it runs a whole function on its thread, and is closed even if who opened it is gone.

A thread hop costs some 50 µs, so a commit is one hop, not one per statement.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Concatenate, ParamSpec, Self, TypeVar, cast

import aiosqlite

from relayd.spool import schema

P = ParamSpec("P")
T = TypeVar("T")


class Connection(aiosqlite.Connection):
    """One database, one thread, for which no process waits once it is open. Opened by `await`, which may raise
    whatever `connector` does.

    aiosqlite itself closes only what the loop has heard of, and waits for no thread: who is cancelled while it opens
    would leave an open file, beside which SQLite keeps the WAL, and a thread that speaks to a loop that may be closed.
    """

    def __init__(self, connector: Callable[[], sqlite3.Connection]) -> None:
        super().__init__(self._connect_on_thread, iter_chunk_size=64)
        self._thread.daemon = True
        self._open_database = connector
        self._database: sqlite3.Connection | None = None

    async def _connect(self) -> Self:
        try:
            await super()._connect()
        except (Exception, asyncio.CancelledError):
            ended = asyncio.get_running_loop().run_in_executor(None, self._thread.join)
            while not ended.done():
                with contextlib.suppress(asyncio.CancelledError):  # the first is raised below
                    await asyncio.wait([ended])
            raise
        return self

    def _connect_on_thread(self) -> sqlite3.Connection:
        self._database = self._open_database()
        return self._database

    def stop(self) -> asyncio.Future[None] | None:
        """End the thread, behind all that was asked of it; the database is closed then, too."""
        self._tx.put_nowait((None, self._close_on_thread))
        return super().stop()

    def _close_on_thread(self) -> None:
        if self._database is not None:
            self._database.close()

    async def run(
        self, function: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call `function(db, ...)` on the connection's thread. Raises what it raises."""
        return cast("T", await self._execute(function, self._conn, *args, **kwargs))  # type: ignore[no-untyped-call]


async def open_writer(path: Path) -> Connection:
    """The one connection that writes to a segment. Raises sqlite3.Error."""
    return await _opened(lambda: schema.connect(path))


async def open_reader(path: Path) -> Connection:
    """A connection that only reads: in WAL mode it never waits for the writer, nor the writer for it."""

    def connector() -> sqlite3.Connection:
        db = schema.connect(path)
        db.execute("PRAGMA query_only = ON")
        return db

    return await _opened(connector)


async def _opened(connector: Callable[[], sqlite3.Connection]) -> Connection:
    connection = Connection(connector)
    await connection
    return connection
