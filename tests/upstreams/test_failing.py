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
