"""Budgets in whole daemons: shared exactly by workers, kept through kill -9, and told by the commands."""

from __future__ import annotations

import asyncio
from bisect import bisect_left

from tests.endtoend.client import Client, mail
from tests.endtoend.conftest import MakeDaemon
from tests.endtoend.test_crashes import drained
from tests.support.daemon import Daemon, smtp_upstream
from tests.support.fake_upstream import FakeUpstream

SENDER = "app@example.com"


async def _fill(daemon: Daemon, count: int, header: str = "", connections: int = 6) -> None:
    async def some(place: int) -> None:
        async with Client(daemon.port) as client:
            for number in range(place, count, connections):
                content = header.encode() + mail(f"mail-{number}")
                assert (await client.send(SENDER, [f"{number}@example.org"], content))[0] == 250

    await asyncio.gather(*(some(place) for place in range(connections)))


def fullest(upstream: FakeUpstream, span: int) -> int:
    """The most mails that began within any so many milliseconds, both ends included."""
    times = sorted(mail.at for mail in upstream.mails)
    return max((place + 1 - bisect_left(times, at - span) for place, at in enumerate(times)), default=0)


async def test_two_workers_share_a_budget_exactly_and_a_killed_one_resets_nothing(make_daemon: MakeDaemon) -> None:
    async with FakeUpstream() as upstream:
        section = smtp_upstream(upstream, limits={"messages": "20/s", "connections": 6})
        daemon = make_daemon({"upstreams": {"acme": section}, "workers": 2})
        await daemon.start()
        await _fill(daemon, 60)
        await daemon.until(lambda: len(upstream.mails) >= 22, "both workers are at work")
        daemon.kill_worker(0)
        # not by the mail log: what the worker had committed when it was killed, it may not have written there yet
        await drained(daemon)
        assert len({mail.recipients[0] for mail in upstream.mails}) == 60
        # what a provider counts lies between the permit and our knowing of its answer
        assert fullest(upstream, 1000) <= 20
        assert await daemon.stop() == 0


async def test_what_waits_is_told_and_a_whole_restart_resets_nothing(make_daemon: MakeDaemon) -> None:
    async with FakeUpstream() as upstream:
        section = smtp_upstream(upstream, limits={"messages": "4/day", "recipients": "100/day"})
        daemon = make_daemon({"upstreams": {"acme": section}, "web": {"bind": ["127.0.0.1:0"]}})
        await daemon.start()
        await _fill(daemon, 9, header="X-Priority-Lane: bulk\r\n", connections=1)
        await daemon.wait_for_event("delivered", count=4)
        await daemon.kill9()
        await daemon.start()

        async def listed() -> dict[str, object]:
            [entry] = (await daemon.cli("upstream", "list", "--json")).json
            return entry  # type: ignore[no-any-return]

        entry = await listed()
        async with asyncio.timeout(60):
            while not entry["waits_for"]:
                await asyncio.sleep(0.2)
                entry = await listed()
        budgets = {budget["kind"]: budget for budget in entry["budgets"]}  # type: ignore[attr-defined]
        assert (budgets["messages"]["used"], budgets["messages"]["left"]) == (4, 0)
        # a slice that was not handed back counts as used
        assert 4 <= budgets["recipients"]["used"] <= 9
        assert (entry["queue"], entry["state"]) == (5, "in use")
        assert entry["through"] is not None
        assert len(upstream.mails) == 4
        told = await daemon.cli("upstream", "list")
        assert "messages of acme" in told.out

        async def status_tells() -> bool:
            return "waits for messages 4/day of acme" in (await daemon.cli("status")).out

        # the list reads what is on disk; the worker has to find its mail again first
        await daemon.until(status_tells)
        shown = (await daemon.cli("queue", "show")).out
        assert "waits for the budget of acme (messages 4/day)" in shown
        assert "bulk" in shown
        why = (await daemon.cli("why", "8@example.org", "--json")).json
        assert why["mails"][0]["waits_for_budget"]["kind"] == "messages"
        assert "送信枠" in (await daemon.cli("why", "8@example.org", "--lang", "ja")).out
        history = await daemon.message(why["mails"][0]["id"])
        assert (history["attempts"], [each["event"] for each in history["events"]]) == ([], ["accepted"])
        assert all(b"X-Priority-Lane" not in each.content for each in upstream.mails)
