"""Real daemons whose upstreams die, come back, are suspended and resumed by hand: nothing is lost or sent twice."""

from __future__ import annotations

import json
from typing import Any

from tests.endtoend.client import send_one
from tests.support.daemon import Daemon, smtp_upstream
from tests.support.fake_upstream import FakeUpstream

QUICK = {"relayd.delivery.gate:FIRST_PAUSE": 300, "relayd.delivery.gate:LONGEST_PAUSE": 600}


async def test_the_first_of_two_upstreams_dies_and_all_mail_arrives_by_the_second(make_daemon: Any) -> None:
    async with FakeUpstream() as first, FakeUpstream() as second:
        config = {
            "workers": 2,
            "upstreams": {"one": smtp_upstream(first), "two": smtp_upstream(second)},
            "routes": [{"upstream": ["one", "two"]}],
        }
        daemon: Daemon = make_daemon(config, constants=QUICK)
        async with daemon:
            await send_one(daemon.port, "app@example.com", "before@example.org")
            await daemon.wait_for_event("delivered", upstream="one")
            first.script["greeting"] = "554 5.3.2 closed"
            first.hang_up()
            for place in range(40):
                await send_one(daemon.port, "app@example.com", f"{place}@example.org")
            await daemon.wait_for_event("delivered", count=41)
            assert len(second.accepted) == 40
            assert {event["attempt"] for event in daemon.events("delivered")} == {1}
            assert not daemon.events("bounced")
            paused = await daemon.wait_for_log("upstream.paused", upstream="one")
            assert "closed" in paused["reason"]
            shown = json.loads((await daemon.cli("upstream", "show", "one", "--json")).out)
            assert shown["standing"]["state"] == "paused"
            assert shown["events"][-1]["event"] == "upstream.paused"
            # it works again: new mail goes there
            first.script.clear()
            await daemon.until(lambda: _sent_to(daemon, "one"), "mail by the first again")
            assert daemon.log("upstream.resumed", upstream="one")

            done = await daemon.cli("upstream", "suspend", "one", "--for", "1h", "--reason", "moving house")
            assert done.code == 0, done.err
            await send_one(daemon.port, "app@example.com", "suspended@example.org")
            event = await daemon.wait_for_event("delivered", recipient="suspended@example.org")
            assert event["upstream"] == "two"
            await daemon.restart()
            await send_one(daemon.port, "app@example.com", "later@example.org")
            event = await daemon.wait_for_event("delivered", recipient="later@example.org")
            assert event["upstream"] == "two"
            table = (await daemon.cli("upstream", "list")).out
            assert "suspended" in table
            resumed = await daemon.cli("upstream", "resume", "one", "--reason", "done")
            assert resumed.code == 0, resumed.err
            assert (await daemon.cli("upstream", "resume", "one")).code == 1
            await send_one(daemon.port, "app@example.com", "resumed@example.org")
            event = await daemon.wait_for_event("delivered", recipient="resumed@example.org")
            assert event["upstream"] == "one"
            history = (await daemon.cli("upstream", "show", "one")).out
            assert "moving house" in history and "resumed" in history


async def _sent_to(daemon: Daemon, upstream: str) -> bool:
    number = len(daemon.events("accepted"))
    await send_one(daemon.port, "app@example.com", f"try{number}@example.org")
    event = await daemon.wait_for_event("delivered", recipient=f"try{number}@example.org")
    return bool(event["upstream"] == upstream)


async def test_a_changed_password_and_a_suspended_account_lose_and_bounce_nothing(make_daemon: Any) -> None:
    async with (
        FakeUpstream(tls="starttls", users={"relay": "right"}, require_auth=True) as acme,
        FakeUpstream() as spare,
    ):
        config = {
            "workers": 2,
            "upstreams": {"acme": smtp_upstream(acme), "spare": smtp_upstream(spare)},
            "routes": [{"upstream": "acme"}],
        }
        daemon: Daemon = make_daemon(config, constants=QUICK)
        async with daemon:
            for place in range(10):
                await send_one(daemon.port, "app@example.com", f"before{place}@example.org")
            await daemon.wait_for_event("delivered", count=10)  # none of them is cut off half-way
            acme.users["relay"] = "changed"
            acme.hang_up()
            for place in range(20):
                await send_one(daemon.port, "app@example.com", f"during{place}@example.org")
            await daemon.wait_for_log("upstream.paused", upstream="acme")
            acme.users["relay"] = "right"
            await daemon.wait_for_event("delivered", count=30)
            assert {event["attempt"] for event in daemon.events("delivered")} == {1}
            await daemon.wait_for_log("upstream.resumed", upstream="acme")

            # the provider suspends the account: every recipient is refused for good
            acme.script["RCPT"] = "550 5.7.1 account suspended"
            for place in range(45):
                sender = "shop@example.com" if place % 3 else "news@example.com"
                await send_one(daemon.port, sender, f"storm{place}@example.org")
            storm = await daemon.wait_for_log("upstream.storm", upstream="acme")
            assert "relayd upstream resume acme" in storm["remedy"]
            await daemon.until(lambda: _all_wait(daemon, 45), "all of it waits")
            assert not daemon.events("bounced")
            assert (await daemon.cli("block", "list", "--json")).json == []
            shown = (await daemon.cli("upstream", "show", "acme", "--json")).json
            assert shown["standing"]["state"] == "storm"
            metrics = await daemon.cli("upstream", "list")
            assert "storm" in metrics.out

            # some of it goes by another upstream, by hand
            args = ("--from", "acme", "--to", "spare", "--sender", "news@*", "--reason", "it is urgent")
            counted = (await daemon.cli("queue", "move", *args, "--dry-run", "--json")).json
            assert counted["recipients"] == 15
            moved = await daemon.cli("queue", "move", *args)
            assert moved.code == 0 and "15 recipients of 15 messages moved to spare" in moved.out, moved.err
            await daemon.wait_for_event("delivered", count=45)
            assert len(spare.accepted) == 15
            event = daemon.events("moved")[-1]
            assert event["reason"] == "it is urgent" and event["by"]
            unknown = await daemon.cli("queue", "move", "--all", "--to", "nobody")
            assert unknown.code == 1 and "no upstream nobody" in unknown.err

            acme.script.clear()
            assert (await daemon.cli("upstream", "resume", "acme")).code == 0
            await daemon.wait_for_event("delivered", count=75)
            assert not daemon.events("bounced")
            assert {event["attempt"] for event in daemon.events("delivered")} == {1}


async def _all_wait(daemon: Daemon, count: int) -> bool:
    listed = (await daemon.cli("queue", "list", "--json")).json
    return len(listed) == count and {each["state"] for each in listed} == {"queued"}
