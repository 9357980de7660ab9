"""Trial: kill -9 of a worker, of the supervisor, of everything, and the power cut off the machine, at any moment.

The machine is a file system of its own that loses what was not on its disk (tests/support/small_disk.py), and all
processes with it. Where that is not to be had, the other three are tried.
"""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from typing import Any

from tests.support import small_disk
from tests.support.daemon import Daemon, local, smtp_upstream
from tests.support.fake_upstream import FakeUpstream
from tests.support.ports import free_port
from tests.support.small_disk import SmallDisk, machine_dies
from tests.torture.traffic import REPEATED, Arrivals, Traffic, until
from tests.torture.trial import Context, Figures, Trial

CONNECTIONS = 4
"""To the upstream, of all workers."""
MEBIBYTES = 256
LIVES = 40
"""On one disk; then it is full of what was delivered, and a fresh one takes its place."""


class _Murder:
    """One daemon and its disk, killed in every way."""

    def __init__(self, context: Context, daemon: Daemon, disk: SmallDisk | None) -> None:
        self.context = context
        self.daemon = daemon
        self.disk = disk
        self.done: Counter[str] = Counter()
        self.torn = 0
        """Transactions that may have been in flight."""

    def ways(self) -> list[str]:
        """What can be killed now."""
        several = self.daemon.config["workers"] > 1
        return ["everything", *(["worker", "supervisor"] if several else []), *(["machine"] if self.disk else [])]

    async def start(self) -> None:
        """Another life, with one process or several."""
        self.daemon.config["workers"] = self.context.rng.choice((1, 1, 2))
        await self.daemon.start()

    async def once(self) -> None:
        """Kill, look at what is left, and let it live again."""
        way = self.context.rng.choice(self.ways())
        self.done[way] += 1
        if way != "supervisor":  # its workers notice, and finish what they have in hand
            self.torn += CONNECTIONS * REPEATED
        if way == "worker":
            await self._worker()
            return
        if way == "supervisor":
            self.daemon.signal(signal.SIGKILL)
            await self.daemon.ended()
            await self.daemon.lock_free()
        elif way == "machine":
            assert self.disk is not None
            await machine_dies(self.daemon, self.disk)
        else:
            await self.daemon.kill9()
        report = await asyncio.to_thread(self.daemon.audit)
        self.context.promise(report.clean, f"after {way} the audit found {report.discrepancies[:3]}")
        await self.start()

    async def _worker(self) -> None:
        before = await asyncio.to_thread(self.daemon.worker_pids)
        if not before:
            return
        worker = self.context.rng.choice(sorted(before))
        self.daemon.kill_worker(worker)

        async def back() -> bool:
            now = await asyncio.to_thread(self.daemon.worker_pids)
            return len(now) == len(before) and now[worker] != before[worker]

        await self.daemon.until(back, "the worker is back")


async def _rounds(context: Context) -> Figures:
    done: Counter[str] = Counter()
    figures: Counter[str] = Counter()
    for place in context.rounds():
        await _on_one_disk(context, place, done, figures)
    return {
        **{f"kills of: {way}": count for way, count in sorted(done.items())},
        "kills, together": done.total(),
        "mails accepted, all delivered": figures["mails"],
        "repeats, of transactions in flight at a kill": f"{figures['repeats']} of {figures['torn']}",
    }


async def _on_one_disk(context: Context, place: int, done: Counter[str], figures: Counter[str]) -> None:
    directory = context.directory / str(place)
    directory.mkdir()
    disk = None if small_disk.why_not() else SmallDisk(directory, MEBIBYTES)
    try:
        async with FakeUpstream() as upstream:
            daemon = Daemon(directory, _config(upstream, disk))
            murder = _Murder(context, daemon, disk)
            await murder.start()
            async with daemon:
                traffic = Traffic(_port_of(daemon.config), context.rng, pause=0.02)
                arrivals = Arrivals((upstream,))
                await _kill_and_kill(context, murder, traffic, arrivals)
        done.update(murder.done)
        figures.update(mails=len(traffic.promised), repeats=arrivals.repeats, torn=murder.torn)
        context.promise(arrivals.repeats <= murder.torn, f"{arrivals.repeats} repeats, {murder.torn} could be")
        context.promise(not traffic.surprises, f"clients were told: {traffic.surprises[:5]}")
    finally:
        if disk is not None:
            await asyncio.to_thread(disk.unmount)


async def _kill_and_kill(context: Context, murder: _Murder, traffic: Traffic, arrivals: Arrivals) -> None:
    lives = 0
    async with traffic.running():
        while not lives or (context.left and lives < LIVES):
            lives += 1
            await traffic.more(context.rng.randrange(1, 20))
            # not only when a mail was just promised
            await asyncio.sleep(context.rng.random() * 0.2)
            await murder.once()
            arrivals.look()
        await traffic.more()
    await arrivals.complete(traffic)
    daemon = murder.daemon
    await until(lambda: not daemon.audit().waiting, "nothing waits any more")
    assert await daemon.stop() == 0
    report = daemon.audit()
    context.promise(report.clean, f"the audit found {report.discrepancies[:3]}")


def _config(upstream: FakeUpstream, disk: SmallDisk | None) -> dict[str, Any]:
    section = smtp_upstream(upstream, limits={"connections": CONNECTIONS})
    listeners = [local(bind=[f"127.0.0.1:{free_port()}"])]
    config: dict[str, Any] = {"upstreams": {"fake": section}, "listeners": listeners}
    if disk is not None:
        config["data_dir"] = str(disk.path / "data")
    return config


def _port_of(config: dict[str, Any]) -> int:
    return int(config["listeners"][0]["bind"][0].rpartition(":")[2])


TRIAL = Trial(
    "kill",
    10,
    "Whatever is killed at whatever moment, nothing accepted is lost, and only what was in flight is repeated.",
    _rounds,
    quick=False,
)
