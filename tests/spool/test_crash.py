"""kill -9 in the middle of work: after a restart everything that was acknowledged is there, whole."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from relayd.core.ids import MessageId
from relayd.core.lifecycle import State
from relayd.spool.audit import audit
from relayd.spool.reader import SpoolReader
from relayd.spool.writes import LARGE
from tests.spool.conftest import OpenStore
from tests.support.clock import Clock
from tests.support.mail import NOW

LOAD = Path(__file__).with_name("load.py")


async def run_until_killed(directory: Path, mode: str, lines: int, *arguments: str) -> list[list[str]]:
    """Start the load, read what it acknowledges, kill it after so many lines; all that it had written out by then."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.spool.load", str(directory), mode, *arguments, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    told: list[list[str]] = []
    while len(told) < lines and (line := await process.stdout.readline()):
        told.append(line.decode().split())
    if process.returncode is None:
        os.kill(process.pid, signal.SIGKILL)
    # what the pipe still holds was acknowledged too, save for a last line cut short
    rest = (await process.stdout.read()).decode()
    told += [line.split() for line in rest.splitlines(keepends=True) if line.endswith("\n")]
    await process.wait()
    return told


def content_of(number: MessageId, size: int) -> bytes:
    return (b"%d\r\n" % number * (size // 8 + 1))[:size]


@pytest.mark.parametrize(("lines", "size"), [(1, 2000), (150, 2000), (400, 2000), (3, LARGE * 2)])
async def test_acknowledged_mail_survives(
    open_store: OpenStore, directory: Path, clock: Clock, lines: int, size: int
) -> None:
    told = await run_until_killed(directory, "accept", lines, str(size))
    assert len(told) >= lines
    store = await open_store()
    acknowledged = {int(line[1]) for line in told}
    for number in sorted(acknowledged)[:: max(1, len(acknowledged) // 50)]:
        assert await store.content(number) == content_of(number, size)
    found = {row.message.id for row in _rows(directory)}
    assert acknowledged <= found
    assert audit(directory).clean
    assert store.mint() > max(found)


async def test_settled_mail_stays_settled(open_store: OpenStore, directory: Path) -> None:
    told = await run_until_killed(directory, "settle", 300, "500")
    store = await open_store()
    accepted = {int(number) for word, number in told if word == "accepted"}
    settled = {int(number) for word, number in told if word == "settled"}
    assert settled
    report = audit(directory)
    assert report.clean, report.discrepancies
    waiting = {row.message.id for row in _rows(directory)}
    assert accepted - settled - waiting <= _delivered_unheard(directory, accepted - settled)
    assert not settled & waiting
    for number in list(settled)[::20]:
        assert (await store.history(number)).recipients[0].state is State.DELIVERED


async def test_a_crash_between_files_leaves_every_file_whole(open_store: OpenStore, directory: Path) -> None:
    """Rollover at every few mails: the crash falls into the making of a segment as likely as not."""
    for _ in range(3):
        told = await run_until_killed(directory, "roll", 25, "500")
        acknowledged = {int(line[1]) for line in told}
        assert acknowledged <= {row.message.id for row in _rows(directory)}
    store = await open_store()
    assert store.damaged == 0
    assert audit(directory).clean
    assert len(SpoolReader(directory).segments()) > 3
    assert (await store.due("acme", NOW * 2, 1, ())).deliveries


def _rows(directory: Path) -> list[object]:
    from relayd.spool.filter import QueueFilter

    with SpoolReader(directory) as reader:
        return list(reader.find(QueueFilter()))


def _delivered_unheard(directory: Path, numbers: set[MessageId]) -> set[MessageId]:
    """Settled on disk, but killed before it could say so."""
    reader = SpoolReader(directory)
    return {n for n in numbers if reader.history(n).recipients[0].state is State.DELIVERED}
