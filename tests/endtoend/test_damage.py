"""Damaged files under a real daemon: what is damaged is set aside and saved, all other mail goes on."""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

import aiohttp

from relayd.spool import files
from tests.endtoend.client import Client, mail, subject_of
from tests.endtoend.conftest import MakeDaemon
from tests.endtoend.test_crashes import drained, send
from tests.support.daemon import Daemon, smtp_upstream
from tests.support.fake_upstream import FakeUpstream


def segment_of(daemon: Daemon) -> Path:
    return files.segments_in(daemon.data_dir / "spool" / "000")[-1]


async def test_a_damaged_segment_is_saved_beside_the_running_daemon(make_daemon: MakeDaemon) -> None:
    async with FakeUpstream({"MAIL": "451 4.3.0 not now"}) as upstream:
        daemon = make_daemon(
            {
                "upstreams": {"acme": smtp_upstream(upstream)},
                "retry": {"schedule": "1h*"},
                "web": {"bind": ["127.0.0.1:0"]},
            }
        )
        await daemon.start()
        async with Client(daemon.port) as client:
            for number in range(8):
                assert (await send(client, f"old-{number}", size=8000))[0] == 250
        await daemon.stop()
        damaged = segment_of(daemon)
        with damaged.open("r+b") as file:
            file.write(bytes(100))
        check = await daemon.cli("spool", "check", "--json")
        assert check.code == 1 and not check.json["whole"]
        upstream.script.clear()
        await daemon.start()
        assert daemon.log("segment_damaged", segment=str(damaged))
        async with Client(daemon.port) as client:
            assert (await send(client, "new"))[0] == 250
        await daemon.wait_for_event("delivered")
        audit = await daemon.cli("audit")
        assert audit.code == 1 and "set aside as damaged" in audit.err
        await daemon.until(lambda: _damaged(daemon, 1), "the metric tells of it")
        done = await daemon.cli("spool", "recover", "--json", "--send")
        assert done.code == 0, done.err
        assert done.json["taken_in"] and done.json["recovered"][0]["messages"] == 8
        assert (await daemon.cli("queue", "retry", "--all")).code == 0
        await drained(daemon)
        assert Counter(subject_of(each.content) for each in upstream.accepted) == Counter(
            ["new", *(f"old-{number}" for number in range(8))]
        )
        await daemon.until(lambda: _damaged(daemon, 0), "the metric tells that nothing is damaged")
        assert (await daemon.cli("spool", "check")).code == 0
        assert (await daemon.cli("spool", "recover")).out.startswith("Nothing was set aside")
        assert await daemon.stop() == 0
        report = daemon.audit()
        assert report.clean and report.final == {"delivered": 9}


async def metrics(daemon: Daemon) -> str:
    """All of them, as text."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{daemon.port_of('web')}/metrics") as answer,
    ):
        return await answer.text()


async def _damaged(daemon: Daemon, segments: int) -> bool:
    return f"relayd_spool_damaged_segments {segments}.0" in await metrics(daemon)


async def test_content_that_changed_on_the_disk_leaves_with_nobody(make_daemon: MakeDaemon) -> None:
    async with FakeUpstream({"MAIL": "451 4.3.0 not now"}) as upstream:
        daemon = make_daemon({"upstreams": {"acme": smtp_upstream(upstream)}})
        await daemon.start()
        async with Client(daemon.port) as client:
            for number in range(3):
                assert (await send(client, f"mail-{number}", size=8000))[0] == 250
        await daemon.stop()
        path = segment_of(daemon)
        # its pages would stand in for what is changed here
        assert not path.with_name(path.name + "-wal").exists()
        octets = path.read_bytes()
        at = octets.index(b"mail-1", octets.index(b"Subject: mail-1"))
        path.write_bytes(octets[: at + 5] + b"9" + octets[at + 6 :])
        upstream.script.clear()
        await daemon.start()
        held = await daemon.wait_for_event("held")
        assert "changed on the disk" in held["reason"]
        await daemon.wait_for_event("delivered", count=2)
        assert sorted(subject_of(each.content) for each in upstream.accepted) == ["mail-0", "mail-2"]
        assert await daemon.stop() == 0
        assert daemon.audit().clean


async def test_the_other_databases_damaged(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon()
    await daemon.start()
    async with Client(daemon.port) as client:
        await client.send("app@example.com", ["a@example.org"], mail("first"))
        await daemon.wait_for_event("delivered")
    assert (await daemon.cli("block", "add", "bad@example.org", "--reason", "test")).code == 0
    await daemon.stop()
    # the sandbox's is begun anew: no mail waits for it
    (daemon.data_dir / "sandbox.db").write_bytes(os.urandom(8192))
    # with state.db gone, mail would go out unsigned, and to whom it must not: that is for an operator
    state = daemon.data_dir / "state.db"
    with closing(sqlite3.connect(state)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        [root] = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'lease'").fetchone()
    whole = state.read_bytes()
    state.write_bytes(os.urandom(100) + whole[100:])
    await daemon.start(ready=False)
    assert await daemon.ended() == 1
    assert "relayd spool recover" in daemon.log_text()
    refused = await daemon.cli("spool", "recover", str(state))
    assert refused.code == 1 and "put a backup in its place" in refused.err
    state.write_bytes(whole[: (root - 1) * 4096] + os.urandom(4096) + whole[root * 4096 :])
    assert (await daemon.cli("spool", "check")).code == 1
    saved = await daemon.cli("spool", "recover", str(state), "--json")
    assert saved.code == 1, saved.err
    assert saved.json["recovered"][0]["incomplete"] == ["lease"]
    await daemon.start()
    assert "bad@example.org" in (await daemon.cli("block", "list")).out
    async with Client(daemon.port) as client:
        await client.send("app@example.com", ["a@example.org"], mail("second"))
    await daemon.wait_for_event("delivered")
    assert daemon.log("database_damaged")
    assert (daemon.data_dir / "sandbox.db.damaged").exists()
    # found damaged at work: mail goes on, and the log is not filled with it
    overwritten(state)
    async with Client(daemon.port) as client:
        await client.send("app@example.com", ["a@example.org"], mail("third"))
    await daemon.wait_for_event("delivered", count=2)
    assert len(daemon.log("duty failed")) < 10
    assert await daemon.stop() == 0


def overwritten(database: Path) -> None:
    """Random octets in place of all that is in it and its WAL."""
    for path in (database, database.with_name(database.name + "-wal")):
        if path.exists():
            with path.open("r+b") as file:
                file.write(os.urandom(path.stat().st_size))
