"""The engines under test, and stores that close themselves."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from relayd.config.models import Spool
from relayd.spool.sqlite import SqliteStore
from tests.support.clock import Clock

OpenStore = Callable[..., Coroutine[Any, Any, SqliteStore]]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """data_dir/spool, in memory where possible: these tests commit a lot, and crash processes, not machines."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path / "spool"
        return
    with tempfile.TemporaryDirectory(prefix="relayd-test-", dir=memory) as place:
        yield Path(place) / "spool"


@pytest.fixture(params=["sqlite"])
async def open_store(request: pytest.FixtureRequest, directory: Path, clock: Clock) -> AsyncIterator[OpenStore]:
    """Opens a store of the engine under test; another engine joins by a name in `params`."""
    opened: list[SqliteStore] = []

    async def opener(slot: int = 0, slots: int = 1, **settings: Any) -> SqliteStore:
        store = SqliteStore(directory, slot, slots, Spool(**settings), clock)
        await store.open()
        opened.append(store)
        return store

    yield opener
    for store in opened:
        await store.close()


@pytest.fixture
async def store(open_store: OpenStore) -> SqliteStore:
    return await open_store()
