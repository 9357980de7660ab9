"""The supervisor with real processes: restarts, reloads, draining, and no client refused meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import values

from relayd.sockets import BindError
from relayd.workers.channel import write_memory
from relayd.workers.orders import Orders
from relayd.workers.sealing import seal
from relayd.workers.supervisor import Patience, Supervisor, WorkerFailedError
from tests.operations.configs import config

DUMMY = Path(__file__).parent.parent / "support" / "dummy_worker.py"
QUICK = Patience(heartbeat=20.0, first_wait=0.05, longest_wait=0.2)

Start = Callable[..., Awaitable[Supervisor]]


@pytest.fixture(autouse=True)
def _metrics_of_this_process_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A supervisor has all later metrics of its process kept in files: here other tests come after it."""
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)
    yield
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    running: list[Supervisor] = []

    async def run(patience: Patience = QUICK, **changes: Any) -> Supervisor:
        supervisor = Supervisor(
            settings(tmp_path, **changes),
            command=(sys.executable, str(DUMMY)),
            patience=patience,
        )
        running.append(supervisor)
        await supervisor.start()
        return supervisor

    yield run
    for supervisor in running:
        await supervisor.stop()


def settings(tmp_path: Path, **changes: Any) -> Orders:
    return seal(config(**({"data_dir": tmp_path / "data", "workers": 2} | changes)))


def address(supervisor: Supervisor) -> tuple[str, int]:
    host, _, port = supervisor.addresses["local"][0].rpartition(":")
    return host, int(port)


@asynccontextmanager
async def connected(to: tuple[str, int]) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(*to)
    try:
        async with asyncio.timeout(30):
            yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def visit(supervisor: Supervisor) -> tuple[int, int, str]:
    """One client: which slot, process and configuration served it."""
    async with connected(address(supervisor)) as (reader, _):
        slot, pid, hostname = (await reader.readline()).decode().split()
    return int(slot), int(pid), hostname


async def workers(supervisor: Supervisor) -> list[dict[str, Any]]:
    return list((await supervisor.status())["workers"])


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await condition():  # noqa: ASYNC110 - processes set no events here
            await asyncio.sleep(0.02)


async def test_clients_reach_every_worker_on_one_port(start: Start) -> None:
    supervisor = await start()
    slots = {(await visit(supervisor))[0] for _ in range(60)}
    assert slots == {0, 1}
    facts = await workers(supervisor)
    assert [w["state"] for w in facts] == ["ready", "ready"]
    assert {w["slots"] for w in facts} == {2}, "each worker's own facts are among them"


async def test_a_worker_that_cannot_be_told_what_to_do_is_started_again(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = await start()
    writes = 0

    def write(octets: bytes) -> int:
        nonlocal writes
        writes += 1
        if writes == 1:
            raise OSError(errno.EMFILE, "Too many open files")
        return write_memory(octets)

    monkeypatch.setattr("relayd.workers.supervisor.write_memory", write)
    os.kill((await workers(supervisor))[1]["pid"], signal.SIGKILL)

    async def again() -> bool:
        facts = (await workers(supervisor))[1]
        return facts["state"] == "ready" and facts["restarts"] == 2

    await until(again)
    assert (await workers(supervisor))[1]["last_fault"] == "cannot be told what to do: Too many open files"


async def test_a_killed_worker_is_restarted_and_nobody_is_refused_meanwhile(start: Start) -> None:
    supervisor = await start()
    victim = (await workers(supervisor))[1]["pid"]
    os.kill(victim, signal.SIGKILL)
    visits = [await visit(supervisor) for _ in range(40)]
    assert len(visits) == 40

    async def again() -> bool:
        facts = (await workers(supervisor))[1]
        return facts["state"] == "ready" and facts["restarts"] == 1

    await until(again)
    facts = (await workers(supervisor))[1]
    assert facts["pid"] != victim
    assert facts["last_fault"] == "killed by SIGKILL", "told for as long as the restart is"
    assert supervisor.healthy()


async def test_a_worker_that_was_asked_to_stop_is_replaced_after_draining(start: Start) -> None:
    supervisor = await start(shutdown=60.0)  # longer than `connected` waits: chance finds others' sockets by then
    async with connected(address(supervisor)) as (reader, writer):
        slot, pid, _ = (await reader.readline()).decode().split()
        os.kill(int(pid), signal.SIGTERM)
        await visit_other(supervisor, int(pid))
        writer.write(b"last words\n")
        assert await reader.readline() == b"bye\n", "what was under way is finished first"

    async def replaced() -> bool:
        facts = (await workers(supervisor))[int(slot)]
        return facts["state"] == "ready" and facts["pid"] != int(pid)

    await until(replaced)


async def visit_other(supervisor: Supervisor, pid: int) -> None:
    """Clients are served by someone else meanwhile."""

    async def other() -> bool:
        try:
            async with asyncio.timeout(1):
                return (await visit(supervisor))[1] != pid
        except TimeoutError:
            return False  # it waits for the new worker

    await until(other)


async def test_a_wedged_worker_is_killed_and_replaced(start: Start) -> None:
    supervisor = await start(Patience(heartbeat=4.0, reload=60.0, first_wait=0.05, longest_wait=0.2))
    before = {w["pid"] for w in await workers(supervisor)}
    with pytest.raises(WorkerFailedError, match="worker 0 ended"):
        await supervisor.reload(settings(Path("/"), hostname="wedge.example"))

    async def replaced() -> bool:
        facts = (await workers(supervisor))[0]
        return facts["state"] == "ready" and facts["pid"] not in before

    await until(replaced)
    assert (await visit(supervisor))[2] == "relay.example.com", "with the configuration that held before"


async def test_a_reload_reaches_every_worker_without_dropping_a_connection(start: Start, tmp_path: Path) -> None:
    supervisor = await start()
    before = {w["pid"] for w in await workers(supervisor)}
    async with connected(address(supervisor)) as (reader, writer):
        await reader.readline()
        await supervisor.reload(settings(tmp_path, hostname="new.example"))
        facts = await workers(supervisor)
        assert {w["pid"] for w in facts} == before
        assert {w["hostname"] for w in facts} == {"new.example"}
        writer.write(b"still here\n")
        assert await reader.readline() == b"bye\n"


async def test_a_reload_reaches_a_worker_that_is_just_starting(start: Start, tmp_path: Path) -> None:
    supervisor = await start()
    victim = (await workers(supervisor))[1]["pid"]
    os.kill(victim, signal.SIGKILL)

    async def starting() -> bool:
        # whoever looks too late finds it ready already
        return (await workers(supervisor))[1]["pid"] not in (None, victim)

    await until(starting)
    await supervisor.reload(settings(tmp_path, hostname="new.example"))

    async def all_have_it() -> bool:
        return [facts.get("hostname") for facts in await workers(supervisor)] == ["new.example"] * 2

    await until(all_have_it)


async def test_a_reload_that_the_workers_refuse_changes_nothing(start: Start, tmp_path: Path) -> None:
    supervisor = await start()
    where = supervisor.addresses
    new = settings(
        tmp_path,
        hostname="refuse.example",
        listeners=[{"name": "local", "bind": ["127.0.0.1:0", "127.0.0.1:0"], "tls": "none"}],
    )
    with pytest.raises(WorkerFailedError, match="the dummy refuses, as asked"):
        await supervisor.reload(new)
    assert {w["hostname"] for w in await workers(supervisor)} == {"relay.example.com"}
    assert supervisor.addresses == where
    assert (await visit(supervisor))[2] == "relay.example.com"


async def test_a_worker_that_started_while_a_reload_was_refused_listens_where_the_others_do(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was given the new sockets already; the one that was asked refused them."""
    supervisor = await start(Patience(heartbeat=20.0, first_wait=0.5, longest_wait=0.5))
    old, ask = address(supervisor), supervisor._reload_one
    starting = supervisor._slots[0]
    given: list[str] = []

    async def late(*args: Any) -> str | None:
        async def started() -> bool:
            return starting.state == "ready"

        await until(started)
        given.extend(starting.sockets.addresses()["local"])
        return await ask(*args)

    monkeypatch.setattr(supervisor, "_reload_one", late)
    os.kill((await workers(supervisor))[0]["pid"], signal.SIGKILL)

    async def gone() -> bool:
        return starting.state == "restarting"

    await until(gone)
    listeners = [{"name": "local", "bind": ["127.0.0.1:0", "127.0.0.1:0"], "tls": "none"}]
    with pytest.raises(WorkerFailedError, match="the dummy refuses, as asked"):
        await supervisor.reload(settings(tmp_path, hostname="refuse.example", listeners=listeners))
    [new] = {(host, int(port)) for host, _, port in (each.rpartition(":") for each in given)} - {old}

    async def refused() -> bool:
        try:
            _, writer = await asyncio.open_connection(*new)
        except ConnectionRefusedError:
            return True
        writer.close()
        return False

    await until(refused)
    assert {(await visit(supervisor))[0] for _ in range(60)} == {0, 1}
    assert {(await visit(supervisor))[2] for _ in range(10)} == {"relay.example.com"}


async def test_a_reload_opens_new_addresses_and_closes_those_that_are_gone(start: Start, tmp_path: Path) -> None:
    supervisor = await start()
    old = address(supervisor)
    listeners = [{"name": "other", "bind": ["127.0.0.1:0"], "tls": "none"}]
    await supervisor.reload(settings(tmp_path, listeners=listeners))
    host, _, port = supervisor.addresses["other"][0].rpartition(":")
    async with connected((host, int(port))) as (reader, _):
        assert await reader.readline()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*old)


async def test_an_address_that_is_taken_leaves_all_as_it_was(start: Start, tmp_path: Path) -> None:
    supervisor = await start()
    stranger = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
    taken = f"127.0.0.1:{stranger.sockets[0].getsockname()[1]}"
    with pytest.raises(BindError, match="another program listens there"):
        await supervisor.reload(settings(tmp_path, listeners=[{"name": "local", "bind": [taken], "tls": "none"}]))
    assert (await visit(supervisor))[2] == "relay.example.com"
    stranger.close()


async def test_a_daemon_whose_workers_cannot_start_says_why(start: Start) -> None:
    with pytest.raises(WorkerFailedError, match="the dummy is broken, as asked"):
        await start(hostname="broken.example")


async def test_stopping_waits_for_what_is_under_way(start: Start) -> None:
    supervisor = await start(shutdown=30.0)
    where = address(supervisor)

    async def refused() -> bool:
        try:
            async with connected(where):
                return False
        except ConnectionRefusedError:
            return True

    async with connected(where) as (reader, writer):
        await reader.readline()
        stopping = asyncio.create_task(supervisor.stop())
        await until(refused)
        assert not stopping.done()
        writer.write(b"done\n")
        assert await reader.readline() == b"bye\n"
    await stopping


async def test_a_worker_that_does_not_stop_is_killed_in_the_end(start: Start) -> None:
    supervisor = await start(hostname="slow.example", shutdown=1.0)
    await supervisor.stop()
    assert [w["pid"] for w in await workers(supervisor)] == [None, None]


async def test_workers_leave_when_their_supervisor_is_killed(tmp_path: Path) -> None:
    script = f"""
import asyncio, sys
from pathlib import Path
from relayd.workers.supervisor import Supervisor
from tests.operations.test_supervisor import settings
async def main():
    supervisor = Supervisor(settings(Path({str(tmp_path)!r})), command=(sys.executable, {str(DUMMY)!r}))
    await supervisor.start()
    print("pids", *[w["pid"] for w in (await supervisor.status())["workers"]], flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE, cwd=DUMMY.parent.parent.parent
    )
    assert process.stdout is not None
    line = b""
    while not line.startswith(b"pids"):
        line = await process.stdout.readline()
    pids = [int(pid) for pid in line.split()[1:]]
    assert len(pids) == 2
    process.kill()
    await process.wait()

    async def gone() -> bool:
        return not any(_alive(pid) for pid in pids)

    await until(gone)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
