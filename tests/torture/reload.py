"""Trial: the configuration is changed and read again and again while clients send. What a reload does is not judged."""

from __future__ import annotations

from typing import Any

from tests.endtoend.test_random_kills import Load
from tests.support.daemon import Daemon, smtp_upstream
from tests.support.fake_upstream import FakeUpstream
from tests.torture.trial import Context, Figures, Trial

RELOADS = 10
"""In one round."""


def _changed(base: dict[str, Any], number: int) -> dict[str, Any]:
    """The configuration once more, with something else in every part that a reload changes."""
    a, b = ("first", "second") if number % 2 else ("second", "first")
    return base | {
        "routes": [{"match": {"sender": "nobody@*"}, "upstream": b}, {"upstream": a}],
        "limits": {"message_size": f"{10 + number % 7}MiB", "recipients": 100 + number % 5},
        "retry": {"schedule": f"{1 + number % 3}s*"},
        "log": {"format": "json", "level": ("info", "warning")[number % 2]},
    }


async def _rounds(context: Context) -> Figures:
    async with FakeUpstream() as first, FakeUpstream() as second:
        base: dict[str, Any] = {
            "upstreams": {"first": smtp_upstream(first), "second": smtp_upstream(second)},
            "routes": [{"upstream": "first"}],
            "workers": 2,
        }
        async with Daemon(context.directory, base) as daemon:
            load, reloads = Load(daemon), 0
            async with load.running():
                for _ in context.rounds():
                    for _ in range(RELOADS):
                        daemon.write_config(_changed(base, reloads))
                        changes = await daemon.control("reload")
                        context.promise(changes, f"reload {reloads} changed nothing")
                        reloads += 1
                    await load.more(1)
            await daemon.until(
                lambda: len(first.accepted) + len(second.accepted) >= len(load.promised), "all mail arrives"
            )
            context.promise(not load.refused_connections, f"{load.refused_connections} connections were refused")
            context.promise(set(load.answers) <= {250}, f"clients were told: {dict(load.answers)}")
            assert await daemon.stop() == 0
            report = daemon.audit()
            context.promise(report.clean, f"the audit found {report.discrepancies}")
            mails = len(load.promised)
        return {"reloads": reloads, "mails accepted and delivered meanwhile": mails, "refused connections": 0}


TRIAL = Trial("reload", 17, "A reload drops no connection and loses no mail, however often it is asked for.", _rounds)
