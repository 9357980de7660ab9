"""What surrounds a daemon goes wrong: the clock, DNS, descriptors, files of a newer version.

A wedged worker is the trial `wedged`.
"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.endtoend.client import Client, mail, subject_of
from tests.endtoend.conftest import MakeDaemon
from tests.endtoend.test_crashes import drained, send
from tests.support import faults
from tests.support.daemon import Daemon, smtp_upstream
from tests.support.fake_upstream import FakeUpstream
from tests.support.faults import Faults

DAY = 86_400


async def arrives(daemon: Daemon, upstream: FakeUpstream, subject: str) -> None:
    """Wait until the upstream has taken it."""
    await daemon.until(
        lambda: any(subject_of(each.content) == subject for each in upstream.accepted), f"{subject} arrives"
    )


async def test_the_clock_is_put_forward_and_back(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    if reason := faults.why_not():
        pytest.skip(reason)
    clock = Faults(tmp_path, tmp_path)
    async with FakeUpstream() as upstream:
        daemon = make_daemon(
            {"upstreams": {"acme": smtp_upstream(upstream)}, "retry": {"schedule": "3s*"}},
            execute=True,
            env=clock.env,
        )
        await daemon.start()
        for place, step in enumerate((3600, -3600, DAY, 0)):
            upstream.script["DOT"] = "451 4.3.0 later"
            async with Client(daemon.port) as client:
                assert (await send(client, f"before-{place}"))[0] == 250
            await daemon.wait_for_event("deferred", count=place + 1)
            upstream.script.clear()
            clock.set(clock=step)
            async with Client(daemon.port) as client:
                assert (await send(client, f"behind-{place}"))[0] == 250
            await arrives(daemon, upstream, f"behind-{place}")
            await arrives(daemon, upstream, f"before-{place}")
        assert [line["seconds"] for line in daemon.log("clock_put_back")] == [7200, DAY]
        assert await daemon.stop() == 0
        report = daemon.audit()
        assert report.clean and report.final == {"delivered": 8}


@pytest.mark.parametrize("newer", ["segment", "state.db"])
async def test_files_of_a_newer_version_are_left_alone(make_daemon: MakeDaemon, newer: str) -> None:
    daemon = make_daemon()
    await daemon.start()
    async with Client(daemon.port) as client:
        assert (await send(client, "first"))[0] == 250
    await daemon.wait_for_event("delivered")
    assert await daemon.stop() == 0
    [segment] = (daemon.data_dir / "spool" / "000").glob("*.db")
    path = segment if newer == "segment" else daemon.data_dir / newer
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 999")
    before = files_of(daemon.data_dir)
    await daemon.start(ready=False)
    assert await daemon.ended() == 1
    assert "newer relayd (schema 999" in daemon.log("cannot_start")[0]["reason"]
    assert files_of(daemon.data_dir) == before


def files_of(data_dir: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in data_dir.rglob("*") if path.is_file() and path.name != "lock"}


async def test_without_descriptors_clients_wait_and_are_served_then(make_daemon: MakeDaemon) -> None:
    async with FakeUpstream() as upstream:
        daemon = make_daemon({"upstreams": {"acme": smtp_upstream(upstream)}})
        await daemon.start()
        assert daemon.process is not None
        pid = daemon.process.pid
        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        async with Client(daemon.port) as client:
            assert (await send(client, "before"))[0] == 250
            await arrives(daemon, upstream, "before")
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (descriptors(pid) + 2, hard))
            many = [socket.create_connection(("127.0.0.1", daemon.port)) for _ in range(12)]
            # the session that is open goes on, and what it hands over is kept
            assert (await send(client, "meanwhile"))[0] == 250
            await asyncio.to_thread(busy_for, pid)
            for each in many:
                each.close()
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard, hard))
        async with Client(daemon.port) as client:
            assert (await send(client, "after"))[0] == 250
        for subject in ("meanwhile", "after"):
            await arrives(daemon, upstream, subject)
        await drained(daemon)
        assert len(daemon.log_text().splitlines()) < 100
        assert await daemon.stop() == 0
        assert daemon.audit().clean


def descriptors(pid: int) -> int:
    """How many it has open."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def busy_for(pid: int) -> None:
    """What a loop costs that cannot accept: it must not spin."""
    before = cpu(pid)
    time.sleep(2)
    spent = cpu(pid) - before
    assert spent < 1.0, f"{spent:.2f} s of processor time in 2 s"


def cpu(pid: int) -> float:
    """Seconds of processor time so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def test_names_that_nobody_answers_for_keep_no_other_upstream_waiting(
    make_daemon: MakeDaemon, tmp_path: Path
) -> None:
    """More of them than the event loop has threads for look-ups: they used to hold all of those."""
    if reason := faults.why_not():
        pytest.skip(reason)
    async with FakeUpstream() as upstream:
        good = smtp_upstream(upstream) | {"host": "localhost"}
        silent = {f"silent{n}": good | {"host": f"smtp{n}.silent.example"} for n in range(6)}
        daemon = make_daemon(
            {
                "upstreams": {"good": good, **silent},
                "routes": [
                    *({"match": {"sender": f"{name}@*"}, "upstream": name} for name in silent),
                    {"upstream": "good"},
                ],
            },
            execute=True,
            env=Faults(tmp_path, tmp_path).env,
        )
        await daemon.start()
        async with Client(daemon.port) as client:
            for name in silent:
                assert (await client.send(f"{name}@example.com", ["a@example.org"], mail("silent")))[0] == 250
            assert (await send(client, "good"))[0] == 250
        await arrives(daemon, upstream, "good")
        assert not daemon.events("deferred", upstream="good")
        # nor do they keep the daemon from ending
        assert await daemon.stop() == 0
        assert not daemon.log("stopping_took_too_long")


async def test_out_of_memory_one_client_is_dropped_and_others_are_served(make_daemon: MakeDaemon) -> None:
    """A mail that no memory is left for: not `limits.memory`, which refuses in time, but the system's own limit."""
    async with FakeUpstream() as upstream:
        daemon = make_daemon({"upstreams": {"acme": smtp_upstream(upstream)}})
        await daemon.start()
        assert daemon.process is not None
        pid = daemon.process.pid
        async with Client(daemon.port) as client:
            assert (await send(client, "before"))[0] == 250
        resource.prlimit(pid, resource.RLIMIT_AS, (address_space(pid) + 12 * 1024**2, resource.RLIM_INFINITY))
        async with Client(daemon.port) as client:
            assert (await send(client, "huge", size=24 * 1024**2))[0] in (0, 421, 451, 452)
        async with Client(daemon.port) as client:
            assert (await send(client, "small"))[0] == 250
        resource.prlimit(pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        await arrives(daemon, upstream, "small")
        assert await daemon.stop() == 0
        report = daemon.audit()
        assert report.clean and report.accepted == 2


def address_space(pid: int) -> int:
    """Octets of it in use."""
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmSize")]
    return int(line.split()[1]) * 1024
