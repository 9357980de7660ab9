"""state.db: who may read it, which schemas it takes, leases, several processes at once."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from relayd.spool.state import FetchedList, StateDB, StateError
from tests.support.clock import Clock


def modes(directory: Path) -> dict[str, int]:
    return {file.name: stat.S_IMODE(file.stat().st_mode) for file in directory.iterdir()}


async def test_only_its_owner_can_read_it(tmp_path: Path, state: StateDB) -> None:
    await state.claim("duty", "one", 0, 1000)
    assert modes(tmp_path) == dict.fromkeys(["state.db", "state.db-shm", "state.db-wal"], 0o600)


async def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA user_version=999")
    db.close()
    before = path.read_bytes()
    with pytest.raises(StateError, match="newer relayd"):
        await StateDB(path).open()
    assert path.read_bytes() == before


async def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(StateError, match=r"state\.db"):
        await StateDB(path).open()


async def test_a_directory_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(StateError):
        await StateDB(tmp_path / "absent" / "state.db").open()


async def test_a_closed_one_says_so(tmp_path: Path) -> None:
    state = StateDB(tmp_path / "state.db")
    await state.open()
    await state.close()
    await state.close()
    with pytest.raises(StateError):
        await state.claim("duty", "one", 0, 1000)


async def test_a_lease_has_one_owner_at_a_time(state: StateDB, clock: Clock) -> None:
    assert await state.claim("duty", "one", clock(), 1000)
    assert not await state.claim("duty", "two", clock(), 1000)
    assert await state.claim("another duty", "two", clock(), 1000)
    assert await state.claim("duty", "one", clock(), 1000)
    clock.advance(1)
    assert await state.claim("duty", "two", clock(), 1000)
    await state.release("duty", "one")  # not its any more
    assert not await state.claim("duty", "one", clock(), 1000)
    await state.release("duty", "two")
    assert await state.claim("duty", "one", clock(), 1000)


async def test_a_lease_does_not_outlive_a_clock_that_steps_back(state: StateDB, clock: Clock) -> None:
    assert await state.claim("duty", "one", clock(), 1000)
    clock.advance(-86_400)
    assert await state.claim("duty", "two", clock(), 1000)


async def test_a_network_comes_back_as_it_was_kept(state: StateDB) -> None:
    first = FetchedList("crm", "https://crm.example/ips", 5, 10, 0, {"192.0.2.1/32": None, "2001:db8::/32": 7})
    second = FetchedList("crm", "https://crm.example/ips", None, 20, 3, {})
    await state.keep_network(first)
    assert await state.networks() == {"crm": first}
    await state.keep_network(second)
    assert await state.networks() == {"crm": second}


COUNTER = """
import asyncio, sys
from pathlib import Path
from relayd.spool.state import StateDB

async def main():
    state = StateDB(Path(sys.argv[1]))
    await state.open()
    got = 0
    for _ in range(40):
        slice_ = await state.lease_rate(
            "crm", 1000, want=1, count=100, window=60000, valid=5000, spent=[])
        got += slice_.permits
    await state.close()
    print(got)

asyncio.run(main())
"""


def test_processes_that_start_together_share_one_file(tmp_path: Path) -> None:
    command = [sys.executable, "-c", COUNTER, str(tmp_path / "state.db")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = [process.communicate()[0] for process in processes]
    assert sum(map(int, outputs)) == 100
