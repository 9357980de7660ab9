"""Trial: everything at once, for long (mixed traffic, faults, reloads, operators), and then: is anything left over?"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from scripts.bench_lib.measure import pss
from tests.support.daemon import Daemon, smtp_upstream
from tests.support.fake_upstream import DROP, RESET, Action, Drop, FakeUpstream, Split
from tests.torture.reload import changed
from tests.torture.traffic import REFUSED, REPEATED, Arrivals, Traffic
from tests.torture.trial import Context, Figures, Trial

CONNECTIONS = 4
SETTLED = 5.0
"""Minutes below which memory is only shown: caches, pools and the segments of the first minutes still fill."""
MORE_MEMORY, MORE_DESCRIPTORS = (1.1, 6 << 20), 24
"""What the last quarter may hold more than the second: a factor and octets; file descriptors. That is two segments:
they stay open until a retention round, every ten minutes, finds that nothing waits there."""
FAULTS: tuple[tuple[str, Action], ...] = (
    ("greeting", "421 4.3.2 too busy"),
    ("greeting", DROP),
    ("EHLO", RESET),
    ("MAIL", "451 4.3.0 not now"),
    ("RCPT", "450 4.2.1 later"),
    ("RCPT", Split("250 2.1.5 one octet after the other")),
    ("DATA", "451 4.3.0 not now"),
    ("content", DROP),
    ("DOT", "452 4.3.1 full"),
    ("DOT", Drop("451 4.3.0 and good-bye")),
    ("RSET", RESET),
)


class _Upstream(FakeUpstream):
    """Refuses the addresses that are to be refused."""

    def action(self, step: str) -> Action | None:
        if step == "RCPT" and REFUSED in self.commands[-1]:
            return "550 5.1.1 no such user"
        return super().action(step)


@dataclass
class _Process:
    """What one process held, each time it was looked at."""

    pid: int
    memory: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)

    def look(self) -> None:
        """Octets of memory (PSS) and open file descriptors, now."""
        self.memory.append(pss([self.pid]))
        self.descriptors.append(len(list(Path(f"/proc/{self.pid}/fd").iterdir())))


def _quarters(values: Sequence[int]) -> tuple[int, int]:
    """The medians of the second and of the last quarter."""
    part = max(len(values) // 4, 1)
    return round(statistics.median(values[part : 2 * part] or values)), round(statistics.median(values[-part:]))


@dataclass
class _Soak:
    """A daemon of two workers and everybody who wants something of it."""

    context: Context
    daemon: Daemon
    traffic: Traffic
    upstreams: Sequence[FakeUpstream]
    base: dict[str, Any]
    arrivals: Arrivals
    done: dict[str, int] = field(default_factory=dict)

    async def faults(self) -> None:
        """One of the upstreams has its moods."""
        upstream, (step, action) = self.context.rng.choice(self.upstreams), self.context.rng.choice(FAULTS)
        upstream.script[step] = action
        await asyncio.sleep(self.context.rng.uniform(0.2, 2))
        del upstream.script[step]

    async def hang_ups(self) -> None:
        """All connections to an upstream end at once."""
        self.context.rng.choice(self.upstreams).hang_up()

    async def reloads(self) -> None:
        """Another configuration."""
        self.daemon.write_config(changed(self.base, self.context.rng.randrange(100)))
        await self.daemon.control("reload")

    async def looks(self) -> None:
        """What monitoring asks for."""
        async with aiohttp.ClientSession() as session:
            for page, wanted in (("metrics", 200), ("healthz", 200), ("readyz", None), ("nonesuch", 404)):
                async with session.get(f"http://127.0.0.1:{self.daemon.port_of('web')}/{page}") as answer:
                    text = await answer.text()
                    fine = answer.status in ((200, 503) if wanted is None else (wanted,))
                    self.context.promise(fine, f"/{page} answers {answer.status}: {text[:80]}")

    async def operators(self) -> None:
        """Mail of one address is held and let go, the queue is listed."""
        for words in (
            "queue hold --recipient 4@example.org --all",
            "queue list --json",
            "queue release --all",
            "stats",
        ):
            killed = self.killed
            done = await self.daemon.cli(*words.split())
            # one that was just killed, or is while it is asked
            told = done.code == 0 or "does not run now" in done.err or self.killed > killed
            self.context.promise(told, f"relayd {words}: {done.code} {done.err[:200]}")

    async def kills(self) -> None:
        """kill -9 of the second worker; the first and the supervisor live on, to see whether they grow."""
        before = self.daemon.worker_pids()[1]
        self.killed += 1
        os.kill(before, signal.SIGKILL)
        await self.daemon.until(lambda: self.daemon.worker_pids().get(1, before) != before, "the worker is back")

    async def run(self) -> list[_Process]:
        """All of it until the time is up; what the processes that lived through it held."""
        assert self.daemon.process is not None
        watched = [_Process(self.daemon.process.pid), _Process(self.daemon.worker_pids()[0])]
        every = [
            (self.faults, 3.0), (self.hang_ups, 11.0), (self.reloads, 5.0), (self.looks, 2.0),
            (self.operators, 20.0), (self.kills, 45.0),
        ]  # fmt: skip
        async with self.traffic.running(), asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._often(act, pause), name=act.__name__) for act, pause in every]
            told = time.monotonic()
            for _ in self.context.rounds():
                await asyncio.sleep(1)
                self.arrivals.look()
                for process in watched:
                    process.look()
                if time.monotonic() > told + 60:
                    told = time.monotonic()
                    sizes = ", ".join(f"{p.memory[-1] >> 20} MiB {p.descriptors[-1]} fds" for p in watched)
                    self.context.say(f"{len(self.traffic.promised):,} mails; supervisor, worker 0: {sizes}")
            self.stopping = True
            await asyncio.gather(*tasks)
        return watched

    stopping: bool = False
    killed: int = 0

    async def _often(self, act: Callable[[], Awaitable[None]], pause: float) -> None:
        """At once, and again and again after a while."""
        while True:
            await act()
            self.done[act.__name__] = self.done.get(act.__name__, 0) + 1
            until = time.monotonic() + pause * self.context.rng.uniform(0.5, 1.5)
            while time.monotonic() < until:
                if self.stopping:
                    return
                await asyncio.sleep(0.1)


def _base(*upstreams: FakeUpstream) -> dict[str, Any]:
    names = ("first", "second")
    limits = {"connections": CONNECTIONS}
    sections = {name: smtp_upstream(fake, limits=limits) for name, fake in zip(names, upstreams, strict=True)}
    return {
        "upstreams": {name: section | {"storm": {"replies": 0}} for name, section in sections.items()},
        "routes": [{"upstream": ["first", "second"]}],
        "workers": 2,
        "spool": {"min_free": "0%", "segment": "5m", "keep": "10m"},
        "web": {"bind": ["127.0.0.1:0"]},
    }


def _open_to_others(data_dir: Path) -> list[str]:
    """What other users of the machine could reach, were the directory itself open: nothing."""
    found = []
    for folder, folders, names in os.walk(data_dir):
        private = {name for name in folders if not (Path(folder) / name).stat().st_mode & 0o077}
        folders[:] = [name for name in folders if name not in private]  # what is below is out of reach
        found += [f"{folder}/{name}" for name in folders]
        found += [f"{folder}/{name}" for name in names if (Path(folder) / name).lstat().st_mode & 0o077]
    return found


async def _run(context: Context) -> Figures:
    async with _Upstream() as first, _Upstream() as second:
        base = _base(first, second)
        arrivals = Arrivals((first, second))
        async with Daemon(context.directory, base, execute=context.timed) as daemon:
            traffic = Traffic(daemon.port, context.rng, clients=6, pause=0.1, bounces=True)
            soak = _Soak(context, daemon, traffic, (first, second), base, arrivals)
            watched = await soak.run()
            reach = await asyncio.to_thread(_open_to_others, daemon.data_dir)
            context.promise(not reach, f"other users could reach {reach[:5]}")
            released = await daemon.cli("queue", "release", "--all")
            context.promise(released.code == 0, released.err)
            await arrivals.complete(traffic)
            assert await daemon.stop() == 0
            report = await asyncio.to_thread(daemon.audit)
    torn = soak.done["kills"] * CONNECTIONS * 2 * REPEATED  # to two upstreams
    context.promise(report.clean, f"the audit found {report.discrepancies[:3]}")
    context.promise(arrivals.repeats <= torn, f"{arrivals.repeats} repeats, {torn} could be")
    context.promise(not traffic.refused_connections, f"{traffic.refused_connections} connections were refused")
    context.promise(not traffic.surprises, f"clients were told: {traffic.surprises[:5]}")
    figures: dict[str, str | int | float] = {
        "mails accepted, all delivered": len(traffic.promised),
        **dict(sorted(soak.done.items())),
        "repeats, of transactions in flight at a kill": f"{arrivals.repeats} of {torn}",
    }
    for name, process in zip(("supervisor", "worker 0"), watched, strict=True):
        figures |= _flat(context, name, process)
    return figures


def _flat(context: Context, name: str, process: _Process) -> Figures:
    """Did it grow?"""
    memory, descriptors = _quarters(process.memory), _quarters(process.descriptors)
    if context.minutes >= SETTLED:
        factor, octets = MORE_MEMORY
        grown = memory[1] > memory[0] * factor + octets
        context.promise(not grown, f"{name} grew from {memory[0] >> 20} to {memory[1] >> 20} MiB")
        more = descriptors[1] > descriptors[0] + MORE_DESCRIPTORS
        context.promise(not more, f"{name} went from {descriptors[0]} to {descriptors[1]} file descriptors")
    return {
        f"{name}: memory, second / last quarter, MiB (PSS)": f"{memory[0] / 2**20:.1f} / {memory[1] / 2**20:.1f}",
        f"{name}: file descriptors, second / last quarter": f"{descriptors[0]} / {descriptors[1]}",
    }


TRIAL = Trial(
    "soak",
    18,
    "Memory and file descriptors stay flat under mixed traffic, faults and reloads, and the audit is clean after it.",
    _run,
)
