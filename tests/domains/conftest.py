"""A clock that is moved by hand, a configuration that asks the test's own DNS, and a state.db."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from relayd.config.models import Config
from relayd.spool.state import StateDB
from tests.domains.sites import config_for
from tests.support.clock import Clock
from tests.support.dns_world import World


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def config(world: World, tmp_path: Path) -> Config:
    """Every test file that wants it has a `world`."""
    return config_for(world, tmp_path)


@pytest_asyncio.fixture
async def state(tmp_path: Path) -> AsyncIterator[StateDB]:
    db = StateDB(tmp_path / "state.db")
    await db.open()
    yield db
    await db.close()
