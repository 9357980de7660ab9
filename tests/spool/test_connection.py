"""Connections to SQLite that have a thread of their own."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from pathlib import Path

import pytest

from relayd.spool.connection import Connection


async def test_what_was_opened_for_somebody_who_is_gone_is_closed(tmp_path: Path) -> None:
    begun, may_open = threading.Event(), threading.Event()
    opened: list[sqlite3.Connection] = []

    def connector() -> sqlite3.Connection:
        begun.set()
        may_open.wait()
        opened.append(sqlite3.connect(tmp_path / "some.db", check_same_thread=False))
        return opened[0]

    connection = Connection(connector)
    opening = asyncio.ensure_future(connection)
    await asyncio.to_thread(begun.wait)
    for _ in range(2):  # a stop may ask again
        opening.cancel()
        for _ in range(10):
            await asyncio.sleep(0)
        assert not opening.done()  # who waits for it may rely on its being closed
    may_open.set()
    with pytest.raises(asyncio.CancelledError):
        await opening
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        opened[0].execute("SELECT 1")
