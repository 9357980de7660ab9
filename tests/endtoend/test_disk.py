"""A daemon whose disk fills up, turns read-only and loses its power. The long part is tests/torture/{disk,kill}.py."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.endtoend.client import Client, subject_of
from tests.endtoend.conftest import MakeDaemon
from tests.endtoend.test_crashes import drained, send
from tests.support import small_disk
from tests.support.daemon import Daemon, smtp_upstream
from tests.support.fake_upstream import FakeUpstream
from tests.support.small_disk import SmallDisk, machine_dies


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    if reason := small_disk.why_not():
        pytest.skip(reason)
    with small_disk.small_disk(tmp_path) as disk:
        yield disk


async def taken(daemon: Daemon, *subjects: str) -> None:
    """The daemon promises them."""
    async with Client(daemon.port) as client:
        for subject in subjects:
            assert (await send(client, subject, size=20_000))[0] == 250


async def refused(daemon: Daemon, code: int) -> None:
    """It takes nothing."""
    async with Client(daemon.port) as client:
        assert (await send(client, "refused", size=50_000))[0] == code


async def test_full_then_read_only_then_without_power(make_daemon: MakeDaemon, disk: SmallDisk) -> None:
    async with FakeUpstream({"MAIL": "451 4.3.0 not now"}) as upstream:
        data_dir = str(disk.path / "data")
        daemon = make_daemon({"upstreams": {"acme": smtp_upstream(upstream)}, "data_dir": data_dir})
        await daemon.start()
        await taken(daemon, "a", "b")
        ballast = disk.fill()
        await refused(daemon, 452)
        ballast.unlink()
        await taken(daemon, "c")

        disk.become_read_only()
        await refused(daemon, 451)
        assert await daemon.stop() == 0
        # it went as it should: nothing was cut off, nothing left half done
        assert not [line for line in daemon.log(level="error") if line["event"] in ("cannot_start", "stopping_failed")]
        assert daemon.log("stopped")
        await asyncio.to_thread(disk.unmount)
        disk.mount()
        await daemon.start()
        await taken(daemon, "d")

        await machine_dies(daemon, disk)
        assert daemon.audit().clean and daemon.audit().accepted == 4
        upstream.script.clear()
        await daemon.start()
        await taken(daemon, "e")
        await drained(daemon)
        assert Counter(subject_of(each.content) for each in upstream.accepted) == Counter("abcde")
        assert await daemon.stop() == 0
        assert daemon.audit().clean
