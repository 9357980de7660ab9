"""kill -9 between a final failure and the report about it, and in the middle of an operator's act.

A report is never lost; killed between its acceptance and the note that it was made, it is made twice.
"""

from __future__ import annotations

import asyncio
import signal

import pytest

from tests.endtoend.client import Client, id_of, mail, send_one
from tests.endtoend.conftest import MakeDaemon
from tests.endtoend.test_crashes import drained
from tests.support.crashing import REPORTING, STEERING
from tests.support.daemon import Daemon, smtp_upstream
from tests.support.fake_upstream import FakeUpstream

REFUSED = "550 5.1.1 no such user"
ONCE = (
    "the settlement, all but COMMIT",
    "the settlement's COMMIT",
    "before the window has room again",
    "the window has room again",
    "before the report is composed",
    "the report is composed",
    "the report is about to be committed",
    "the debt is struck out",
)
TWICE = (
    "the report is committed",
    "before the debt is struck out",
    "the debt waits to be struck out",
    "the debt is about to be struck out",
)


def test_every_step_is_in_a_table() -> None:
    assert set(REPORTING) <= set(ONCE) | set(TWICE)


@pytest.mark.parametrize(("step", "times"), [*((step, 1) for step in ONCE), *((step, 2) for step in TWICE)])
async def test_killed_between_a_bounce_and_its_report(make_daemon: MakeDaemon, step: str, times: int) -> None:
    # until the daemon dies no report is delivered: one in flight would repeat for a reason of its own
    async with FakeUpstream({"RCPT": [REFUSED, *["450 4.2.1 later"] * 100]}) as upstream:
        daemon = make_daemon({"upstreams": {"acme": smtp_upstream(upstream)}, "retry": {"schedule": "200ms*"}})
        await daemon.start(plan={"crash": {"step": step}})
        await send_one(daemon.port, "app@example.com", "bad@example.org", content=mail("doomed"))
        assert await daemon.ended() == -signal.SIGKILL
        assert daemon.audit().clean
        # a bounce that was not written is tried again
        upstream.script["RCPT"] = [REFUSED] if step == "the settlement, all but COMMIT" else []
        await daemon.start()

        async def settled() -> bool:
            report = await asyncio.to_thread(daemon.audit)
            return not report.waiting and not report.owed

        await daemon.until(settled, "nothing waits and nothing is owed")
        assert await daemon.stop() == 0
        report = daemon.audit()
        assert report.clean and report.final == {"bounced": 1, "delivered": times}
        reports = [each for each in upstream.accepted if each.sender == ""]
        assert [each.recipients for each in reports] == [["app@example.com"]] * times
        assert all(b"Action: failed" in each.content and b"bad@example.org" in each.content for each in reports)


ACTS = {"hold": "held", "fail": "bounced", "delete": "deleted"}


@pytest.mark.parametrize("act", list(ACTS))
@pytest.mark.parametrize(("step", "done"), [(step, step == "an act is committed") for step in STEERING])
async def test_killed_in_the_middle_of_an_act(make_daemon: MakeDaemon, act: str, step: str, done: bool) -> None:
    async with FakeUpstream({"MAIL": "451 4.3.0 not now"}) as upstream:
        section = {"upstreams": {"acme": smtp_upstream(upstream)}, "retry": {"schedule": "1h*"}}
        daemon = make_daemon(section | {"bounces": {"notify": "none"}})
        await daemon.start()
        async with Client(daemon.port) as client:
            number = id_of(await client.send("app@example.com", ["a@example.org"], mail("waits")))
        await daemon.wait_for_event("deferred")
        await daemon.stop()
        await daemon.start(plan={"crash": {"step": step}})
        command = await daemon.cli("queue", act, number, "--yes")
        assert command.code == 1
        assert await daemon.ended() == -signal.SIGKILL
        report = daemon.audit()
        assert report.clean
        assert (report.waiting | report.final) == {ACTS[act] if done else "deferred": 1}
        upstream.script.clear()
        await _finish(daemon, act, number, done=done)
        assert daemon.audit().clean


async def _finish(daemon: Daemon, act: str, number: str, *, done: bool) -> None:
    """After the restart the act can be done, or taken back."""
    await daemon.start()
    if not done:
        again = await daemon.cli("queue", act, number, "--yes")
        assert again.code == 0, again.err
    if act == "hold":
        assert (await daemon.cli("queue", "release", number)).code == 0
    await drained(daemon)
    assert daemon.audit().final == {"delivered" if act == "hold" else ACTS[act]: 1}
    assert await daemon.stop() == 0
