"""Trial: one worker of two stands still, as if its loop were caught in something, while clients send."""

from __future__ import annotations

import asyncio
import os
import signal
import time

from tests.support.daemon import Daemon, smtp_upstream
from tests.support.fake_upstream import FakeUpstream
from tests.torture.traffic import REPEATED, Arrivals, Traffic
from tests.torture.trial import Context, Figures, Trial

CONNECTIONS = 4
"""To the upstream, of both workers."""


async def _rounds(context: Context) -> Figures:
    wedged, longest = 0, 0.0
    async with FakeUpstream() as upstream:
        section = smtp_upstream(upstream, limits={"connections": CONNECTIONS})
        async with Daemon(context.directory, {"upstreams": {"fake": section}, "workers": 2}) as daemon:
            traffic, arrivals = Traffic(daemon.port, context.rng, pause=0.05), Arrivals((upstream,))
            async with traffic.running():
                for _ in context.rounds():
                    await traffic.more(5)
                    longest = max(longest, await _wedge(daemon, context.rng.randrange(2)))
                    wedged += 1
                    arrivals.look()
                await traffic.more(5)
            await arrivals.complete(traffic)
            assert await daemon.stop() == 0
            report = daemon.audit()
    context.promise(report.clean, f"the audit found {report.discrepancies[:3]}")
    context.promise(not traffic.surprises, f"clients were told: {traffic.surprises[:5]}")
    context.promise(not traffic.refused_connections, f"{traffic.refused_connections} connections were refused")
    context.promise(arrivals.repeats <= wedged * CONNECTIONS * REPEATED, f"{arrivals.repeats} repeats")
    return {
        "workers that stood still": wedged,
        "longest until another served in its place, s": round(longest, 1),
        "mails accepted meanwhile, all delivered": len(traffic.promised),
        "repeats, of transactions in flight": f"{arrivals.repeats} of {wedged * CONNECTIONS * REPEATED}",
    }


async def _wedge(daemon: Daemon, worker: int) -> float:
    """Freeze it, and wait until another process does its work; the seconds that took."""
    before = await asyncio.to_thread(daemon.worker_pids)
    began = time.monotonic()
    os.kill(before[worker], signal.SIGSTOP)
    await daemon.wait_for_log("worker_killed", worker=worker, count=len(daemon.log("worker_killed", worker=worker)) + 1)

    async def replaced() -> bool:
        now = await asyncio.to_thread(daemon.worker_pids)
        return len(now) == 2 and now[worker] != before[worker]

    await daemon.until(replaced, "another worker is there")
    return time.monotonic() - began


TRIAL = Trial(
    "wedged",
    14,
    "A worker that stands still is found and replaced, and loses nothing.",
    _rounds,
    quick=False,
)
