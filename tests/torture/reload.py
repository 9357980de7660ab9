"""Trial: the configuration is changed and read again and again while clients send. What a reload does is not judged."""

from __future__ import annotations

from typing import Any

from tests.support.daemon import Daemon, smtp_upstream
from tests.support.fake_upstream import FakeUpstream
from tests.torture.traffic import Arrivals, Traffic
from tests.torture.trial import Context, Figures, Trial

RELOADS = 10
"""In one round."""


def changed(base: dict[str, Any], number: int) -> dict[str, Any]:
    """The configuration once more, with something else in every part that a reload changes."""
    a, b = ("first", "second") if number % 2 else ("second", "first")
    return base | {
        "routes": [{"match": {"sender": "nobody@*"}, "upstream": b}, {"upstream": a}],
        "limits": {"message_size": f"{10 + number % 7}MiB", "recipients": 100 + number % 5},
        "retry": {"schedule": f"{1 + number % 3}s*"},
        "bounces": {"notify": ("sender", "none")[number % 2]},
        "log": {"format": "json", "level": ("info", "warning")[number % 2]},
    }


async def _rounds(context: Context) -> Figures:
    async with FakeUpstream() as first, FakeUpstream() as second:
        base: dict[str, Any] = {
            "upstreams": {"first": smtp_upstream(first), "second": smtp_upstream(second)},
            "routes": [{"upstream": "first"}],
            "workers": 2,
        }
        arrivals, reloads = Arrivals((first, second)), 0
        async with Daemon(context.directory, base) as daemon:
            traffic = Traffic(daemon.port, context.rng, pause=0.02)
            async with traffic.running():
                for _ in context.rounds():
                    for _ in range(RELOADS):
                        daemon.write_config(changed(base, reloads))
                        context.promise(await daemon.control("reload"), f"reload {reloads} changed nothing")
                        reloads += 1
                    arrivals.look()
                    await traffic.more()
            await arrivals.complete(traffic)
            assert await daemon.stop() == 0
            report = daemon.audit()
        context.promise(report.clean, f"the audit found {report.discrepancies[:3]}")
        context.promise(not traffic.refused_connections, f"{traffic.refused_connections} connections were refused")
        context.promise(not traffic.surprises, f"clients were told: {traffic.surprises[:5]}")
        context.promise(not arrivals.repeats, f"{arrivals.repeats} mails came twice")
        return {
            "reloads": reloads,
            "mails accepted meanwhile, all delivered": len(traffic.promised),
            "longest wait for a greeting, s": round(traffic.longest, 2),
        }


TRIAL = Trial("reload", 17, "A reload drops no connection and loses no mail, however often it is asked for.", _rounds)
