"""Trial: thousands of idle, slow and greedy clients at once; a good one sends mail meanwhile, and memory has a cap.

The clients are crowd.py's. How much slower the good one is served is measured, and judged by whoever reads it: on two
cores the attackers compete with the relay for the processor itself.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from scripts.bench_lib.measure import MemoryWatch, pss, trees
from tests.endtoend.client import Client, mail
from tests.support.daemon import Daemon, local
from tests.torture.trial import Context, Figures, Trial

MIB = 1 << 20
WORKERS = 2
MEMORY = 64
"""`limits.memory` of each worker, MiB."""
PER_CONNECTION = 96 * 1024
"""Octets of a connection that are counted nowhere, at most: buffers of ours and of TLS."""
SLACK = 48 * MIB
"""Of a worker: what the interpreter, SQLite and copies under way take besides."""
SPARE = MEMORY * MIB // 8
"""Of a worker: what small mails have beside `limits.memory`."""
LEAVING = 2 * 50 * MIB
"""Of a worker: two copies of `limits.message_size`. One mail is read back from disk to go out even where there is no
room for it, and SQLite makes another copy where the sandbox keeps it."""

TRIES = 4
"""A worker that stands still for a moment, as on a busy machine, meets so many newcomers then that a quarter of its
places is on the way out (WAY_OUT of core/counter.py). Who is behind them is told to come again, and may."""

CROWD = {
    "idle": 10_000,
    "handshake": 100,
    "command": 100,
    "login": 100,
    "data": 40,
    "chunk": 40,
    "noop": 10,
    "rset": 10,
    "rcpt": 10,
    "header": 5,
    "line": 5,
    "bdat": 5,
    "huge": 20,
}
FEW = {kind: max(1, count // 200) for kind, count in CROWD.items()} | {"idle": 150}


def config(connections: int) -> Mapping[str, object]:
    """A relay that takes mail from 127.0.0.1 and 127.2.0.0/16; everybody else is a stranger who may log in."""
    return {
        "workers": WORKERS,
        "listeners": [
            local(
                tls="starttls", access="network-or-auth", networks=["127.0.0.1/32", "127.2.0.0/16"], require_tls=False
            )
        ],
        "limits": {
            "connections": connections,
            "connections_per_ip": 50,
            "memory": f"{MEMORY}MiB",
            "auth_failures": 1000,
        },
    }


@asynccontextmanager
async def attacked(port: int, crowd: Mapping[str, int], counts: Counter[str]) -> AsyncIterator[None]:
    """The crowd is there while the block lasts; afterwards `counts` says what it had."""
    command = [sys.executable, "-m", "tests.torture.crowd", str(port), *(f"{k}={n}" for k, n in crowd.items())]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    try:
        yield
        out, _ = await process.communicate(b"")
        counts.update(json.loads(out))
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _one(port: int, context: Context, when: str) -> float:
    """A good client's mail, from connect to QUIT: seconds."""
    began = time.perf_counter()
    for tries_left in range(1 if context.timed else TRIES)[::-1]:
        client = Client(port)
        answer = await client.connect()
        if answer[0] == 421 and tries_left:
            await client.close()
            continue
        if answer[0] == 250:
            answer = await client.send("app@example.com", ["a@example.org"], mail())
        context.promise(answer[0] == 250, f"a good client was told {answer} {when}")
        await client.say("QUIT")
        await client.close()
        break
    return time.perf_counter() - began


async def _rounds(context: Context) -> Figures:
    long = context.minutes > 0
    crowd, connections = (CROWD, 1000) if long else (FEW, 100)
    counts: Counter[str] = Counter()
    meanwhile: list[float] = []
    async with Daemon(context.directory, config(connections)) as daemon:
        assert daemon.process is not None
        usual = [await _one(daemon.port, context, "before") for _ in range(200 if long else 10)]
        pids = [daemon.process.pid]
        before = pss(trees(pids))
        watch = MemoryWatch(pids)
        watch.start()
        async with attacked(daemon.port, crowd, counts):
            await daemon.until(lambda: _connected(daemon.port) >= connections, "the crowd is there")
            for _ in context.rounds():
                for _ in range(10):
                    meanwhile.append(await _one(daemon.port, context, "in the crowd"))
                if len(meanwhile) % 1000 == 0:
                    context.say(f"{len(meanwhile):,} mails, {watch.peak / MIB:.0f} MiB")
        watch.stop()
        cap = before + WORKERS * (MEMORY * MIB + SPARE + LEAVING + SLACK) + connections * PER_CONNECTION
        context.promise(watch.peak <= cap, f"memory was {watch.peak / MIB:.0f} MiB, above {cap / MIB:.0f} MiB")
        after = [await _one(daemon.port, context, "afterwards") for _ in range(200 if long else 10)]
        assert await daemon.stop() == 0
        context.promise(daemon.audit().clean, "the audit is not clean")
    return {
        "clients in the crowd": sum(crowd.values()),
        "connections they made": sum(n for what, n in counts.items() if what.endswith("connections")),
        "MiB they sent": sum(n for what, n in counts.items() if what.endswith("octets")) // MIB,
        "mails of good clients meanwhile, all accepted": len(meanwhile),
        "a mail's time before, median ms": statistics.median(usual) * 1000,
        "a mail's time meanwhile, median ms": statistics.median(meanwhile) * 1000,
        "a mail's time meanwhile, 95th percentile ms": sorted(meanwhile)[len(meanwhile) * 95 // 100] * 1000,
        "a mail's time afterwards, median ms": statistics.median(after) * 1000,
        "memory before, MiB": before // MIB,
        "memory, peak MiB": watch.peak // MIB,
        "memory's cap, MiB": cap // MIB,
    }


def _connected(port: int) -> int:
    """Connections to a port of this machine, as the kernel counts them."""
    rows = (line.split() for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines())
    return sum(fields[1].endswith(f":{port:04X}") and fields[3] == "01" for fields in rows)


TRIAL = Trial(
    "greedy", 5, "Greedy clients do not keep others from being served, and memory stays under its cap.", _rounds
)
