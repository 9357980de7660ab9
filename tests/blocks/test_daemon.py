"""The whole daemon: dead addresses are mailed no more, their senders hear of it, the support desk gets its answer."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from relayd.core.ids import parse_id, slot_of
from tests.endtoend.client import Client, id_of, mail, send_one
from tests.endtoend.conftest import MakeDaemon, make_daemon
from tests.support.crashing import JUDGING
from tests.support.daemon import Daemon, smtp_upstream
from tests.support.fake_upstream import FakeUpstream, ReceivedMail

__all__ = ["make_daemon"]

APP = "app@example.com"
QUICK = {"relayd.intake.blocks:POLL": 0.05}


async def blocks(daemon: Daemon, *args: str) -> list[dict[str, Any]]:
    done = await daemon.cli("block", "list", "--json", *args)
    assert done.code == 0, done.err
    found: list[dict[str, Any]] = done.json
    return found


async def blocked(daemon: Daemon, count: int = 1) -> list[dict[str, Any]]:
    """Wait until so many addresses are blocked."""

    async def there() -> list[dict[str, Any]] | None:
        found = await blocks(daemon)
        return found if len(found) == count else None

    found: list[dict[str, Any]] = await daemon.until(there, f"{count} blocks")
    return found


def reports(upstream: FakeUpstream) -> list[ReceivedMail]:
    return [each for each in upstream.accepted if not each.sender]


async def test_a_dead_address_is_mailed_once_and_the_support_desk_is_told_why(make_daemon: MakeDaemon) -> None:
    async with FakeUpstream({"RCPT": ["550 5.1.1 <gone@example.org>: no such user"]}) as upstream:
        daemon = make_daemon({"upstreams": {"acme": smtp_upstream(upstream)}}, constants=QUICK)
        await daemon.start()
        first = await send_one(daemon.port, APP, "gone@example.org", content=mail("first"))
        await daemon.wait_for_event("bounced", id=first)
        [block] = await blocked(daemon)
        assert (block["address"], block["class"], block["by"]) == ("gone@example.org", "user-unknown", "auto")
        assert (block["message"], block["until"], block["scope"]) == (first, None, "everything")
        second = await send_one(daemon.port, APP, "Gone@Example.org", "alive@example.org", content=mail("second"))
        event = await daemon.wait_for_event("suppressed", id=second)
        assert (event["recipient"], event["class"], event["cause"]) == ("Gone@Example.org", "user-unknown", first)
        assert "no such user" in event["reason"]
        await daemon.wait_for_event("delivered", id=second, recipient="alive@example.org")
        await daemon.until(lambda: len(reports(upstream)) == 2, "two reports to the sender")
        assert all(report.recipients == [APP] for report in reports(upstream))
        assert sum(b"the address is blocked" in report.content for report in reports(upstream)) == 1
        taken = [each.recipients for each in upstream.accepted if each.sender]
        assert taken == [["alive@example.org"]]

        async def counted() -> bool:
            return [each["stopped"] for each in await blocks(daemon)] == [1]

        await daemon.until(counted, "the stopped mail is counted")
        told = (await daemon.cli("why", "gone@example.org", "--json")).json
        assert [(each["state"], each["subject"]) for each in told["mails"]] == [
            ("suppressed", "second"),
            ("bounced", "first"),
        ]
        english = (await daemon.cli("why", "gone@example.org")).out
        assert "There is no such mailbox" in english and "is blocked since" in english
        japanese = (await daemon.cli("why", "gone@example.org", "--lang", "ja")).out
        assert "存在しません" in japanese and "ブロックされています" in japanese
        # lifted: mailed again
        assert (await daemon.cli("block", "remove", "gone@example.org")).code == 0

        async def mailed() -> bool:
            number = await send_one(daemon.port, APP, "gone@example.org")
            await daemon.until(lambda: len(daemon.events(id=number)) > 1)
            return bool(daemon.events("delivered", id=number))

        await daemon.until(mailed, "mail goes out again")
        [past] = await blocks(daemon, "--all")
        assert past["ended"] and past["stopped"] >= 1
        assert await daemon.stop() == 0
        assert daemon.audit().clean


async def test_a_suspended_account_blocks_nobody_and_bounces_nothing(make_daemon: MakeDaemon) -> None:
    async with FakeUpstream({"MAIL": "550 5.7.1 account suspended"}) as upstream:
        constants = QUICK | {"relayd.delivery.gate:FIRST_PAUSE": 100, "relayd.delivery.gate:LONGEST_PAUSE": 200}
        daemon = make_daemon({"upstreams": {"acme": smtp_upstream(upstream)}}, constants=constants)
        await daemon.start()
        async with Client(daemon.port) as client:
            numbers = [id_of(await client.send(APP, [f"{n}@example.org"], mail())) for n in range(200)]
        await daemon.wait_for_event("deferred", count=10)
        assert daemon.events("bounced") == []
        assert await blocks(daemon, "--all") == []
        upstream.script.clear()
        await daemon.wait_for_event("delivered", count=len(numbers))
        assert {event["event"] for event in daemon.events()} <= {"accepted", "deferred", "delivered"}
        assert await daemon.stop() == 0
        assert daemon.audit().clean


async def test_a_full_mailbox_is_blocked_at_the_fifth_time_until_its_time_is_up(make_daemon: MakeDaemon) -> None:
    async with FakeUpstream({"RCPT": ["552 5.2.2 mailbox full"] * 5}) as upstream:
        rules = {"mailbox-full": {"expires": "3s"}}
        daemon = make_daemon(
            {"upstreams": {"acme": smtp_upstream(upstream)}, "blocks": {"rules": rules}, "bounces": {"notify": "none"}},
            constants=QUICK,
        )
        await daemon.start()
        for _ in range(5):
            assert daemon.log("address blocked") == []
            number = await send_one(daemon.port, APP, "full@example.org")
            await daemon.wait_for_event("bounced", id=number)
        said = await daemon.wait_for_log("address blocked")
        assert said["class"] == "mailbox-full"
        number = await send_one(daemon.port, APP, "full@example.org")
        await daemon.until(lambda: daemon.events("suppressed", id=number) or daemon.events("delivered", id=number))

        async def again() -> bool:
            number = await send_one(daemon.port, APP, "full@example.org")
            await daemon.until(lambda: daemon.events("suppressed", id=number) or daemon.events("delivered", id=number))
            return bool(daemon.events("delivered", id=number))

        await daemon.until(again, "the block expires")
        assert daemon.events("suppressed")
        assert reports(upstream) == []


async def test_mail_that_waits_is_suppressed_when_its_address_is_blocked_later(make_daemon: MakeDaemon) -> None:
    async with FakeUpstream({"RCPT": "451 4.3.0 not now"}) as upstream:
        daemon = make_daemon(
            {"upstreams": {"acme": smtp_upstream(upstream)}, "retry": {"schedule": "200ms*"}}, constants=QUICK
        )
        await daemon.start()
        number = await send_one(daemon.port, APP, "late@example.org")
        await daemon.wait_for_event("deferred", id=number)
        held = await send_one(daemon.port, APP, "held@example.org")
        await daemon.wait_for_event("deferred", id=held)

        async def is_held() -> bool:  # what is being sent at that moment is left alone
            assert (await daemon.cli("queue", "hold", held)).code == 0
            return (await daemon.message(held))["recipients"][0]["state"] == "held"

        await daemon.until(is_held, "it is held")
        assert (await daemon.cli("block", "add", "*@example.org", "--reason", "closed down")).code == 0
        event = await daemon.wait_for_event("suppressed", id=number)
        assert (event["class"], event["reason"]) == ("manual", "closed down")
        assert not daemon.events("suppressed", id=held)
        assert (await daemon.cli("queue", "release", held)).code == 0
        await daemon.wait_for_event("suppressed", id=held)
        upstream.script.clear()
        await daemon.until(lambda: len(reports(upstream)) == 2, "reports of both")


async def test_two_workers_share_blocks(make_daemon: MakeDaemon) -> None:
    async with FakeUpstream({"RCPT": ["550 5.1.1 no such user"]}) as upstream:
        daemon = make_daemon(
            {"upstreams": {"acme": smtp_upstream(upstream)}, "workers": 2, "bounces": {"notify": "none"}},
            constants=QUICK,
        )
        await daemon.start()
        first = await send_one(daemon.port, APP, "gone@example.org")
        await daemon.wait_for_event("bounced", id=first)
        await blocked(daemon)

        async def both() -> bool:
            await send_one(daemon.port, APP, "gone@example.org")
            return {slot_of(parse_id(event["id"])) for event in daemon.events("suppressed")} == {0, 1}

        await daemon.until(both, "both workers stop mail")
        assert await daemon.stop() == 0
        assert daemon.audit().clean


async def test_a_bounce_after_delivery_blocks_too_and_the_sender_is_told(make_daemon: MakeDaemon) -> None:
    async with FakeUpstream() as upstream:
        config = {
            "upstreams": {"acme": smtp_upstream(upstream, return_path="verp")},
            "bounces": {"domain": "bounce.test"},
        }
        daemon = make_daemon(config, constants=QUICK)
        await daemon.start()
        number = await send_one(daemon.port, APP, "gone@example.org", content=mail("once"))
        await daemon.wait_for_event("delivered", id=number)
        fact = {
            "message": parse_id(number), "n": 0, "kind": "bounce", "cls": "user-unknown", "at": 1_800_000_000_000,
            "source": "d1", "action": "failed", "hard": True, "status": "5.1.1", "diagnostic": "550 5.1.1 nobody here",
        }  # fmt: skip
        assert await daemon.control("inbound.fact", fact, slots=0) == "new"
        assert await daemon.control("inbound.fact", fact, slots=0) == "duplicate"
        event = await daemon.wait_for_event("bounced", id=number)
        assert (event["source"], event["class"]) == ("bounce", "user-unknown")
        [block] = await blocked(daemon)
        assert block["reason"] == "550 5.1.1 nobody here"
        await daemon.until(lambda: len(reports(upstream)) == 1, "the sender is told")
        assert b"nobody here" in reports(upstream)[0].content
        assert (await daemon.message(number))["recipients"][0]["state"] == "bounced"
        later = await send_one(daemon.port, APP, "gone@example.org")
        await daemon.wait_for_event("suppressed", id=later)
        assert await daemon.stop() == 0
        assert daemon.audit().clean


@pytest.mark.parametrize("step", list(JUDGING))
async def test_killed_between_a_failure_and_its_block(make_daemon: MakeDaemon, step: str) -> None:
    async with FakeUpstream({"RCPT": ["550 5.1.1 <gone@example.org>: no such user"]}) as upstream:
        daemon = make_daemon({"upstreams": {"acme": smtp_upstream(upstream)}, "bounces": {"notify": "none"}})
        await daemon.start(plan={"crash": {"step": step}})
        first = await send_one(daemon.port, APP, "gone@example.org", content=mail("doomed"))
        assert await daemon.ended() == -signal.SIGKILL
        await daemon.start()
        [block] = await blocked(daemon)
        assert (block["address"], block["class"], block["message"]) == ("gone@example.org", "user-unknown", first)
        # lifted by an operator: the next start, which judges the failure again, does not bring it back
        assert (await daemon.cli("block", "remove", "gone@example.org")).code == 0
        await daemon.kill9()
        await daemon.start()
        await send_one(daemon.port, APP, "gone@example.org")
        await daemon.wait_for_event("delivered")
        assert len(await blocks(daemon, "--all")) == 1
