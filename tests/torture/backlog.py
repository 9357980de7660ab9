"""Trial: up to a million queued mails, a start with them, fresh mail while they drain. filling.py puts them there."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process, create_subprocess_exec
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from scripts.bench_lib.measure import MemoryWatch
from tests.endtoend.client import Client, mail
from tests.support.daemon import Daemon
from tests.support.forking import ROOT
from tests.torture.trial import Context, Figures, Trial

MAILS, SIZE, WORKERS = 1_000_000, 4096, 2
FEW = 1000
"""Mails where there is no time for more."""
FILLING = 0.4
"""The share of the time that may go into filling."""
START_WITHIN, FRESH_WITHIN, MEMORY = 10.0, 1.0, 512 << 20
START_MORE = 3.0
"""Seconds that the queue may cost where the machine needs longer than START_WITHIN even without one."""


@dataclass
class Sink:
    """An upstream in a process of its own, as fast as Python can be: it counts, and tells when numbered mail came."""

    times: Path
    port: int = 0
    _process: Process | None = None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Sink]:
        """Listen until the block ends."""
        command = [sys.executable, "-m", "bench_lib.sink", "--times", str(self.times)]
        process = await create_subprocess_exec(*command, stdout=PIPE, stdin=DEVNULL, cwd=ROOT / "scripts")
        assert process.stdout is not None
        try:
            self.port = int(await process.stdout.readline())
            yield self
        finally:
            process.kill()
            await process.wait()

    async def count(self) -> int:
        """Mails so far; the file of times is written anew."""
        async with Client(self.port) as client:
            return int((await client.say("VRFY count"))[1])

    def taken(self) -> dict[int, float]:
        """Number of a mail → when it came, as of the last count."""
        return {int(number): at for number, at in orjson.loads(self.times.read_bytes()).items()}


@dataclass
class Fresh:
    """Mail that an app sends while the backlog drains; when each was promised, by its number."""

    port: int
    promised: dict[int, float] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)

    async def send(self, context: Context) -> None:
        """One mail after the other, some three in a second, until cancelled."""
        for number in range(1_000_000):
            async with Client(self.port) as client:
                content = b"X-Bench-Number: %d\r\n" % number + mail(f"fresh-{number}")
                code, text = await client.send("app@example.com", ["new@example.org"], content)
                if code == 250:
                    self.promised[number] = time.perf_counter()
                else:
                    self.refused.append(f"{code} {text}")
            await asyncio.sleep(context.rng.uniform(0.1, 0.5))


async def _watch(context: Context, process: Process, slot: int) -> int:
    """Until this spool is full, or the time for filling is up; how many mails are in it."""
    assert process.stdout is not None
    done = told = 0
    async for line in process.stdout:
        done = int(line)
        if done >= told + 50_000:
            told = done
            context.say(f"worker {slot} has {done:,} mails")
        if context.left < context.minutes * 60 * (1 - FILLING) and done >= FEW // WORKERS:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
    assert await process.wait() == 0, "the spool could not be filled"
    return done


async def _fill(context: Context, spool: Path, mails: int) -> int:
    """Fill the spools of all workers at once; how many mails there are when they are full or the time for it is up."""

    async def one(slot: int) -> int:
        share = str(mails // WORKERS)
        args = (str(spool), str(slot), str(WORKERS), share, str(SIZE), "sink", str(context.seed))
        process = await create_subprocess_exec(
            sys.executable, "-m", "tests.torture.filling", *args, stdout=PIPE, stdin=DEVNULL, stderr=DEVNULL, cwd=ROOT
        )
        try:
            return await _watch(context, process, slot)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    return sum(await asyncio.gather(*(one(slot) for slot in range(WORKERS))))


async def _drain(context: Context, daemon: Daemon, sink: Sink, mails: int) -> tuple[Fresh, int, float]:
    """Until the backlog is gone or the time is up: the fresh mail, the mails that came, and the seconds for them."""
    fresh = Fresh(daemon.port)
    began = time.monotonic()
    sender = asyncio.create_task(fresh.send(context), name="fresh mail")
    came = told = 0
    try:
        # one fresh mail at least: where there are few others, they may all have come before it is promised
        while not sender.done() and (not fresh.promised or (came < mails and (context.left or came < FEW // 2))):
            await asyncio.sleep(0.2)
            came = await sink.count()
            if came >= told + 50_000:
                told = came
                context.say(f"{came:,} mails have come")
        took = time.monotonic() - began
    finally:
        sender.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sender
    return fresh, came, took


async def _arrived(daemon: Daemon, sink: Sink, fresh: Fresh) -> list[float]:
    """Wait for all fresh mail that was promised; for each the seconds from our 250 to the upstream's, sorted."""

    async def all_there() -> bool:
        await sink.count()
        return set(fresh.promised) <= set(sink.taken())

    await daemon.until(all_there, "all fresh mail has come")
    taken = sink.taken()
    return sorted(max(0.0, taken[number] - at) for number, at in fresh.promised.items())


def _quantile(waits: list[float], share: float) -> float:
    return waits[min(int(len(waits) * share), len(waits) - 1)]


def _mails(context: Context) -> int:
    """As many as the issue says, or as the time and the disk allow."""
    room = shutil.disk_usage(context.directory).free // (SIZE + 2048) // 2
    return max(FEW, min(MAILS, room, round(context.minutes * 100_000)))


@dataclass
class _Seen:
    """What was measured."""

    started: float
    """Seconds until it was ready, with the backlog."""
    fresh: Fresh
    waits: list[float]
    """Of fresh mail, from our 250 to the upstream's, in seconds, sorted."""
    memory: int
    """Octets at the peak, of all processes."""
    came: int
    took: float
    """Seconds for the `came` mails."""


async def _empty_start(daemon: Daemon) -> float:
    """What this machine needs for a start with nothing in the queue: on a busy one that is most of it."""
    began = time.monotonic()
    async with daemon:
        return time.monotonic() - began


def _beside(directory: Path) -> Path:
    """A directory for a second daemon."""
    path = directory / "empty"
    path.mkdir()
    return path


async def _drained(context: Context, daemon: Daemon, sink: Sink, mails: int) -> _Seen:
    """Start with the backlog, and let it drain as far as the time goes."""
    began = time.monotonic()
    async with daemon:
        started = time.monotonic() - began
        context.say(f"ready after {started:.1f} s")
        assert daemon.process is not None
        watch = MemoryWatch([daemon.process.pid])
        watch.start()
        fresh, came, took = await _drain(context, daemon, sink, mails)
        waits = await _arrived(daemon, sink, fresh)
        watch.stop()
        assert await daemon.stop() == 0
    return _Seen(started, fresh, waits, watch.peak, came, took)


async def _run(context: Context) -> Figures:
    sink = Sink(context.directory / "times")
    config: dict[str, Any] = {
        "upstreams": {"sink": {"host": "127.0.0.1", "port": 1, "tls": "none", "limits": {"connections": 20}}},
        "workers": WORKERS,
        "retry": {"schedule": "1m*"},
    }
    daemon = Daemon(context.directory, config, execute=context.timed)
    mails = await _fill(context, daemon.data_dir / "spool", _mails(context))
    context.say(f"{mails:,} mails wait")
    other = Daemon(_beside(context.directory), config, execute=True)
    empty = await _empty_start(other) if context.timed else 0.0
    async with sink.running():
        config["upstreams"]["sink"]["port"] = sink.port
        seen = await _drained(context, daemon, sink, mails)
    report = await asyncio.to_thread(daemon.audit)
    usual = _quantile(seen.waits, 0.99)
    context.promise(report.clean, f"the audit found {report.discrepancies[:3]}")
    context.promise(not seen.fresh.refused, f"fresh mail was refused: {seen.fresh.refused[:3]}")
    context.promise(seen.memory <= MEMORY, f"{seen.memory >> 20} MiB were needed")
    if context.timed:
        late = seen.started > max(START_WITHIN, empty + START_MORE)
        context.promise(not late, f"the start took {seen.started:.1f} s, an empty one {empty:.1f}")
        context.promise(usual <= FRESH_WITHIN, f"fresh mail waited {usual:.2f} s (p99)")
    return {
        "mails that waited": mails,
        "seconds to start with them / with an empty queue": f"{seen.started:.1f} / {empty:.1f}",
        "memory of all processes together, peak, MiB (PSS)": seen.memory >> 20,
        "mails drained": seen.came,
        "drained a second": round(seen.came / seen.took),
        "fresh mails sent meanwhile": len(seen.fresh.promised),
        "fresh mail: 250 to delivered, p50 / p99 / longest, ms": " / ".join(
            f"{wait * 1000:.0f}" for wait in (_quantile(seen.waits, 0.5), usual, seen.waits[-1])
        ),
    }


TRIAL = Trial(
    "backlog",
    16,
    "A million queued mails delay neither the start nor fresh mail, and memory stays under 512 MiB.",
    _run,
    grace=1200,
)
