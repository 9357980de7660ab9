"""Trial: a service manager restarts the daemon again and again while clients send, as an upgrade does."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass, field
from typing import Any

import yaml

from relayd.spool.audit import audit
from tests.support.daemon import local, settings, smtp_upstream
from tests.support.fake_upstream import FakeUpstream
from tests.support.ports import free_port
from tests.support.service_manager import Manager
from tests.torture.traffic import REPEATED, Arrivals, Traffic
from tests.torture.trial import Context, Figures, Trial

CONNECTIONS = 4
"""To the upstream, of all workers."""
KILLED = 0.2
"""The share of restarts that are no restarts but kill -9 of everything."""


@dataclass
class _Restarts:
    """One service over all its lives: started, and ended by its manager in either way."""

    context: Context
    manager: Manager
    config: dict[str, Any]
    workers: list[int] = field(default_factory=list)
    """How many each life had."""
    torn: int = 0
    """Transactions that were in flight at a kill -9, at most."""
    longest: float = 0.0
    """Seconds from the signal until the next life was ready."""

    async def start(self) -> None:
        """Another life, maybe with more or fewer processes, as after an upgrade."""
        self.workers.append(self.context.rng.choice((1, 2, 2, 3)))
        path = self.context.directory / "relayd.yaml"
        path.write_text(yaml.safe_dump(self.config | {"workers": self.workers[-1]}))
        await self.manager.start(path)

    async def again(self) -> None:
        """End it, and start it."""
        began = time.monotonic()
        killed = self.context.rng.random() < KILLED
        if killed:
            self.torn += CONNECTIONS * REPEATED
        await self.manager.stop(signal.SIGKILL if killed else signal.SIGTERM)
        await self.start()
        self.longest = max(self.longest, time.monotonic() - began)


async def _rounds(context: Context) -> Figures:
    async with FakeUpstream() as upstream:
        section = smtp_upstream(upstream, limits={"connections": CONNECTIONS})
        manager = Manager(context.directory)
        port = free_port()
        config = settings(listeners=[local(bind=[f"127.0.0.1:{port}"])], upstreams={"fake": section})
        service = _Restarts(context, manager, config)
        traffic, arrivals = Traffic(port, context.rng, pause=0.05), Arrivals((upstream,))
        try:
            await service.start()
            async with traffic.running():
                for _ in context.rounds():
                    await traffic.more(context.rng.randrange(1, 30))
                    await service.again()
                    arrivals.look()
                await traffic.more()
            await arrivals.complete(traffic)
        finally:
            await manager.close()
    report = audit(context.directory / "data" / "spool")
    context.promise(report.clean, f"the audit found {report.discrepancies[:3]}")
    context.promise(not traffic.refused_connections, f"{traffic.refused_connections} connections were refused")
    context.promise(not traffic.surprises, f"clients were told: {traffic.surprises[:5]}")
    context.promise(arrivals.repeats <= service.torn, f"{arrivals.repeats} repeats, {service.torn} could be")
    return {
        "restarts": len(service.workers) - 1,
        "mails accepted meanwhile, all delivered": len(traffic.promised),
        "refused connections": traffic.refused_connections,
        "repeats, of transactions in flight at a kill -9": f"{arrivals.repeats} of {service.torn}",
        "longest from the signal to ready again, s": round(service.longest, 1),
        "longest wait for a greeting, s": round(traffic.longest, 1),
    }


TRIAL = Trial(
    "restart",
    17,
    "A restart under a service manager that keeps the sockets refuses no client and loses no mail.",
    _rounds,
)
