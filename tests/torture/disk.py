"""Trial: the disk is full, slow, broken, read-only, one after the other, under clients, and is healed each time.

A file system of its own (tests/support/small_disk.py) and a library in front of libc (faults.py) do that.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from tests.support import faults, small_disk
from tests.support.daemon import Daemon, local, smtp_upstream
from tests.support.fake_upstream import FakeUpstream
from tests.support.faults import Faults
from tests.support.ports import free_port
from tests.support.small_disk import SmallDisk
from tests.torture.traffic import REPEATED, Arrivals, Traffic, until
from tests.torture.trial import Context, Figures, Trial

CONNECTIONS = 4
"""To the upstream."""
MEBIBYTES = 128
SLOW = 1.0
"""Seconds of a slow fsync."""


class _Patient:
    """One daemon on one disk, and what clients were told while it was ill."""

    def __init__(self, context: Context, daemon: Daemon, disk: SmallDisk, faults: Faults) -> None:
        self.context = context
        self.daemon = daemon
        self.disk = disk
        self.faults = faults
        self.traffic = Traffic(
            int(daemon.config["listeners"][0]["bind"][0].rpartition(":")[2]), context.rng, pause=0.02
        )
        self.refused: Counter[str] = Counter()
        self.torn = 0
        self.longest_slow = 0.0

    async def ill_for(self, what: str, seconds: float) -> None:
        """A while of trouble, in which nothing may be promised that is not kept, and nothing refused for good."""
        before = len(self.traffic.surprises)
        await asyncio.sleep(seconds)
        told = self.traffic.surprises[before:]
        self.refused[what] += len(told)

    async def full(self) -> None:
        """No room at all, then room again."""
        ballast = await asyncio.to_thread(self.disk.fill)
        await self.ill_for("full", 2.0)
        ballast.unlink()

    async def syncs_fail(self) -> None:
        """fsync says EIO."""
        self.faults.set(sync_error=errno.EIO)
        await self.ill_for("EIO of fsync", 2.0)
        self.faults.set()

    async def writes_fail(self) -> None:
        """write says EIO."""
        self.faults.set(write_error=errno.EIO)
        await self.ill_for("EIO of write", 2.0)
        self.faults.set()

    async def slow(self) -> None:
        """Each fsync takes a second: everything goes on, in its time."""
        self.faults.set(sync_seconds=SLOW)
        began = time.monotonic()
        before = len(self.traffic.surprises)
        await self.traffic.more(20)
        self.longest_slow = max(self.longest_slow, time.monotonic() - began)
        self.faults.set()
        self.context.promise(
            len(self.traffic.surprises) == before, f"while it was slow: {self.traffic.surprises[before : before + 3]}"
        )

    async def read_only(self) -> None:
        """As the kernel makes it after an error. Only an operator can mount it again.

        An fsync that is under way at that very moment may say that all is well, and it is not: seen on Linux 6.18 with
        a bare loop of write and fdatasync, too. So what is promised from then on may be lost.
        """
        before = set(self.traffic.promised)
        self.disk.become_read_only()
        await self.ill_for("read-only", 2.0)
        self.traffic.doubtful |= set(self.traffic.promised) - before
        self.context.promise(await self.daemon.stop() == 0, "it did not stop in order")
        self.torn += CONNECTIONS * REPEATED
        await asyncio.to_thread(self.disk.unmount)
        self.disk.mount()
        report = await asyncio.to_thread(self.daemon.audit)
        self.context.promise(report.clean, f"after it was read-only the audit found {report.discrepancies[:3]}")
        await self.daemon.start()


async def _rounds(context: Context) -> Figures:
    assert not small_disk.why_not(), small_disk.why_not()
    assert not faults.why_not(), faults.why_not()
    figures: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for place in context.rounds():
        async with _patient(context, place) as (patient, arrivals):
            await _all_faults(context, patient, arrivals)
        refused.update(patient.refused)
        figures.update(mails=len(patient.traffic.promised), repeats=arrivals.repeats, torn=patient.torn, rounds=1)
        figures["doubtful"] += sum(
            (subject, "0@example.org") not in arrivals.taken for subject in patient.traffic.doubtful
        )
    return {
        "rounds of all five faults": figures["rounds"],
        "mails accepted, all delivered": figures["mails"],
        "but for those that an fsync had lied about": figures["doubtful"],
        **{f"refusals (4yz) while: {what}": count for what, count in sorted(refused.items())},
        "repeats, of transactions in flight when it had to stop": f"{figures['repeats']} of {figures['torn']}",
    }


async def _all_faults(context: Context, patient: _Patient, arrivals: Arrivals) -> None:
    faults: list[Callable[[], Awaitable[None]]] = [
        patient.full,
        patient.syncs_fail,
        patient.writes_fail,
        patient.slow,
        patient.read_only,
    ]
    context.rng.shuffle(faults)
    traffic = patient.traffic
    async with traffic.running():
        for fault in faults:
            await traffic.more(5)
            await fault()
            context.say(f"{fault.__name__}: {len(traffic.promised)} promised, {len(traffic.surprises)} refused")
            # without help: new mail is taken again
            await traffic.more(5)
    await arrivals.complete(traffic)
    await until(lambda: not patient.daemon.audit().waiting, "nothing waits any more")
    assert await patient.daemon.stop() == 0
    report = patient.daemon.audit()
    context.promise(report.clean, f"the audit found {report.discrepancies[:3]}")
    context.promise(all(said.startswith("4") for said in traffic.surprises), f"told: {traffic.surprises[:5]}")
    context.promise(arrivals.repeats <= patient.torn, f"{arrivals.repeats} repeats, {patient.torn} could be")


@asynccontextmanager
async def _patient(context: Context, place: int) -> AsyncIterator[tuple[_Patient, Arrivals]]:
    directory = context.directory / str(place)
    directory.mkdir()
    with small_disk.small_disk(directory, MEBIBYTES) as disk:
        async with FakeUpstream() as upstream:
            faults = Faults(directory, disk.path)
            daemon = Daemon(directory, _config(context, upstream, disk), execute=True, env=faults.env)
            async with daemon:
                yield _Patient(context, daemon, disk, faults), Arrivals((upstream,))


def _config(context: Context, upstream: FakeUpstream, disk: SmallDisk) -> dict[str, Any]:
    return {
        "upstreams": {"fake": smtp_upstream(upstream, limits={"connections": CONNECTIONS})},
        "listeners": [local(bind=[f"127.0.0.1:{free_port()}"])],
        "data_dir": str(disk.path / "data"),
        "workers": context.rng.choice((1, 2)),
    }


TRIAL = Trial(
    "disk",
    11,
    "A full, slow, broken or read-only disk loses nothing that was accepted, and what is healed goes on by itself.",
    _rounds,
    quick=False,
)
