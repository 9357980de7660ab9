"""What an upstream says about recipients and messages: who bounces, who is tried again, and when."""

from __future__ import annotations

from typing import Any

import pytest

from tests.endtoend.client import Client, Reply, id_of, mail, send_one
from tests.endtoend.conftest import MakeDaemon
from tests.endtoend.test_crashes import drained
from tests.support.daemon import Daemon, smtp_upstream
from tests.support.fake_upstream import EXTENSIONS, FakeUpstream

SENDER = "app@example.com"


def states(shown: dict[str, Any]) -> dict[str, str]:
    return {each["recipient"]: each["state"] for each in shown["recipients"]}


def moment(text: str) -> int:
    """Milliseconds of an RFC 3339 moment."""
    from datetime import datetime

    return round(datetime.fromisoformat(text).timestamp() * 1000)


async def test_replies_to_rcpt_hold_for_that_recipient_only(make_daemon: MakeDaemon) -> None:
    script = {"RCPT": [None, "550 5.1.1 no such user", "450 4.2.1 greylisted", None]}
    async with FakeUpstream(script) as upstream:
        daemon = make_daemon({"upstreams": {"acme": smtp_upstream(upstream)}, "retry": {"schedule": "200ms*"}})
        await daemon.start()
        addresses = [f"{name}@example.org" for name in ("good", "bad", "late", "fine")]
        number = await send_one(daemon.port, SENDER, *addresses)
        await drained(daemon)
        first, second, report = upstream.accepted
        assert first.recipients == ["good@example.org", "fine@example.org"]
        assert {tuple(second.recipients), tuple(report.recipients)} == {("late@example.org",), (SENDER,)}
        assert states(await daemon.message(number)) == dict(
            zip(addresses, ("delivered", "bounced", "delivered", "delivered"), strict=True)
        )
        # the log tells what is on disk already
        late = await daemon.wait_for_event("delivered", id=number, recipient="late@example.org")
        assert late["attempt"] == 2
        [bounced] = daemon.events("bounced", id=number)
        assert (bounced["recipient"], bounced["stage"]) == ("bad@example.org", "rcpt")
        assert bounced["reply"].startswith("550 5.1.1")
        [deferred] = daemon.events("deferred", id=number)
        assert (deferred["recipient"], deferred["attempt"]) == ("late@example.org", 1)


async def test_the_sender_is_told_of_a_bounce_and_nobody_of_a_report_that_bounces(make_daemon: MakeDaemon) -> None:
    async with FakeUpstream({"RCPT": "550 5.1.1 no such user"}) as upstream:
        daemon = make_daemon({"upstreams": {"acme": smtp_upstream(upstream)}})
        await daemon.start()
        await send_one(daemon.port, SENDER, "bad@example.org")
        report = await daemon.wait_for_event("bounced", sender="")
        assert report["recipient"] == SENDER
        content = (await daemon.cli("message", "show", report["id"], "--content")).out
        assert "multipart/report" in content and "Final-Recipient: rfc822;bad@example.org" in content.replace("; ", ";")
        await drained(daemon)
        assert await daemon.stop() == 0
        found = daemon.audit()
        assert found.clean and found.final == {"bounced": 2} and not found.owed


@pytest.mark.parametrize("step", ["DATA", "DOT"])
async def test_replies_about_the_message_hold_for_all(make_daemon: MakeDaemon, step: str) -> None:
    async with FakeUpstream({step: ["451 4.3.0 try later", "554 5.6.0 not that message"]}) as upstream:
        daemon = make_daemon(
            {
                "upstreams": {"acme": smtp_upstream(upstream)},
                "retry": {"schedule": "200ms*"},
                "bounces": {"notify": "none"},
            }
        )
        await daemon.start()
        number = await send_one(daemon.port, SENDER, "a@example.org", "b@example.org")
        await daemon.wait_for_event("bounced", count=2)
        assert {each["recipient"] for each in daemon.events("deferred", id=number)} == {
            "a@example.org",
            "b@example.org",
        }
        assert {(each["stage"], each["attempt"]) for each in daemon.events("bounced", id=number)} == {(step.lower(), 2)}
        assert not upstream.accepted
        assert await daemon.stop() == 0
        assert daemon.audit().final == {"bounced": 2}


async def test_the_schedule_is_kept_and_the_lifetime_ends_it(make_daemon: MakeDaemon) -> None:
    async with FakeUpstream({"RCPT": ["450 4.2.1 later"] * 50}) as upstream:
        retry = {"schedule": "100ms, 300ms*2, 500ms*", "lifetime": "2s"}
        daemon = make_daemon({"upstreams": {"acme": smtp_upstream(upstream)}, "retry": retry})
        await daemon.start()
        number = await send_one(daemon.port, SENDER, "late@example.org")
        expired = await daemon.wait_for_event("expired", id=number)
        # the last attempt is made at the very end, and its reply is told
        assert expired["reply"] == "554 4.4.7 Not delivered within 2s; last reply: 450 4.2.1 later"
        deferred = daemon.events("deferred", id=number)
        assert [each["attempt"] for each in deferred] == list(range(1, len(deferred) + 1))
        accepted = moment(daemon.events("accepted", id=number)[0]["time"])
        for event, wait in zip(deferred, [100, 300, 300, *[500] * 50], strict=False):
            ends = accepted + 2000
            span = event["due"] - moment(event["time"])
            assert wait <= span <= wait * 1.1 + 1 or event["due"] == ends
        upstream.script.clear()
        # the report about it is delivered
        await daemon.wait_for_event("delivered", recipient=SENDER)
        assert b"4.4.7" in upstream.accepted[0].content


async def test_what_waits_past_its_lifetime_expires_while_the_upstream_is_down(make_daemon: MakeDaemon) -> None:
    async with FakeUpstream({"greeting": "554 5.3.2 closed"}) as upstream:
        daemon = make_daemon(
            {
                "upstreams": {"acme": smtp_upstream(upstream), "sandbox": {"type": "sandbox"}},
                "routes": [
                    {"match": {"recipient_domain": "example.org"}, "upstream": "acme"},
                    {"upstream": "sandbox"},
                ],
                "retry": {"lifetime": "500ms"},
            },
            constants={"relayd.app:_SWEEP": 0.1},
        )
        await daemon.start()
        number = await send_one(daemon.port, SENDER, "a@example.org")
        expired = await daemon.wait_for_event("expired", id=number)
        assert expired["attempt"] == 0
        await daemon.wait_for_event("delivered", recipient=SENDER, upstream="sandbox")


async def test_two_routes_do_not_hinder_each_other(make_daemon: MakeDaemon) -> None:
    async with FakeUpstream() as quick, FakeUpstream({"EHLO": "421 4.3.2 not today"}) as broken:
        daemon = make_daemon(
            {
                "upstreams": {"quick": smtp_upstream(quick), "broken": smtp_upstream(broken)},
                "routes": [
                    {"match": {"recipient_domain": "broken.example"}, "upstream": "broken"},
                    {"upstream": "quick"},
                ],
            },
            constants={"relayd.delivery.gate:FIRST_PAUSE": 100},
        )
        await daemon.start()
        number = await send_one(daemon.port, SENDER, "a@broken.example", "b@quick.example")
        await daemon.wait_for_event("delivered", id=number, recipient="b@quick.example", upstream="quick")
        for place in range(10):
            await send_one(daemon.port, SENDER, f"{place}@quick.example")
        await daemon.wait_for_event("delivered", count=11)
        await daemon.wait_for_event("deferred", count=2, id=number, recipient="a@broken.example")
        broken.script.clear()
        event = await daemon.wait_for_event("delivered", id=number, recipient="a@broken.example", upstream="broken")
        assert event["attempt"] == 1
        assert [each.recipients for each in broken.accepted] == [["a@broken.example"]]


async def _send(daemon: Daemon, parameters: str, recipient: str, content: bytes, sender: str = SENDER) -> Reply:
    async with Client(daemon.port) as client:
        assert (await client.say(f"MAIL FROM:<{sender}>{parameters}"))[0] == 250
        assert (await client.say(f"RCPT TO:<{recipient}>"))[0] == 250
        assert (await client.say("DATA"))[0] == 354
        client.writer.write(content + b".\r\n")
        return await client.reply()


EIGHT_BIT = mail().replace(b"Thank you", "どうも".encode())
UTF8_HEADER = mail("こんにちは".encode().decode("latin-1")).decode().encode("latin-1")


@pytest.mark.parametrize(
    ("lacking", "parameters", "recipient", "content", "code"),
    [
        ("SIZE", "", "a@example.org", mail(size=3000), "552 5.3.4"),
        ("8BITMIME", " BODY=8BITMIME", "a@example.org", EIGHT_BIT, "554 5.6.3"),
        ("SMTPUTF8", " SMTPUTF8", "用户@example.org", mail(), "550 5.6.7"),
        ("SMTPUTF8", " BODY=8BITMIME SMTPUTF8", "a@example.org", UTF8_HEADER, "550 5.6.9"),
    ],
)
async def test_what_the_upstream_cannot_take_bounces_before_it_is_sent(  # noqa: PLR0917
    make_daemon: MakeDaemon, lacking: str, parameters: str, recipient: str, content: bytes, code: str
) -> None:
    offers = [word for word in EXTENSIONS if not word.startswith(lacking)]
    offers += ["SIZE 2000"] if lacking == "SIZE" else []
    async with FakeUpstream(extensions=offers) as upstream:
        daemon = make_daemon({"upstreams": {"acme": smtp_upstream(upstream)}, "bounces": {"notify": "none"}})
        await daemon.start()
        number = id_of(await _send(daemon, parameters, recipient, content))
        bounced = await daemon.wait_for_event("bounced", id=number)
        assert (bounced["stage"], bounced["reply"][:9]) == ("local", code)
        # the same session carries what the upstream can take
        await send_one(daemon.port, SENDER, "b@example.org")
        await daemon.wait_for_event("delivered", recipient="b@example.org")
        assert [command[:4] for command in upstream.commands if command[:4] == "MAIL"] == ["MAIL"]
        assert upstream.connections == 1


async def test_a_utf8_address_in_the_domain_only_goes_as_a_labels(make_daemon: MakeDaemon) -> None:
    async with FakeUpstream(extensions=[word for word in EXTENSIONS if word != "SMTPUTF8"]) as upstream:
        daemon = make_daemon({"upstreams": {"acme": smtp_upstream(upstream)}})
        await daemon.start()
        await _send(daemon, " SMTPUTF8", "a@bücher.example", mail())
        await daemon.wait_for_event("delivered", recipient="a@bücher.example")
        assert upstream.accepted[0].recipients == ["a@xn--bcher-kva.example"]


async def test_a_recipient_that_cannot_be_sent_there_does_not_hinder_the_others(make_daemon: MakeDaemon) -> None:
    async with FakeUpstream(extensions=[word for word in EXTENSIONS if word != "SMTPUTF8"]) as upstream:
        daemon = make_daemon({"upstreams": {"acme": smtp_upstream(upstream)}, "bounces": {"notify": "none"}})
        await daemon.start()
        async with Client(daemon.port) as client:
            for command in (
                f"MAIL FROM:<{SENDER}> SMTPUTF8",
                "RCPT TO:<用户@example.org>",
                "RCPT TO:<a@example.org>",
                "DATA",
            ):
                assert (await client.say(command))[0] in (250, 354)
            client.writer.write(mail() + b".\r\n")
            assert (await client.reply())[0] == 250
        await daemon.wait_for_event("delivered", recipient="a@example.org")
        await daemon.wait_for_event("bounced", recipient="用户@example.org", stage="local")
        assert [each.recipients for each in upstream.accepted] == [["a@example.org"]]


async def test_more_recipients_than_a_transaction_takes(make_daemon: MakeDaemon) -> None:
    async with FakeUpstream({"RCPT": [*[None] * 4, "550 5.1.1 gone"]}) as upstream:
        section = smtp_upstream(upstream, limits={"recipients_per_message": 2})
        daemon = make_daemon({"upstreams": {"acme": section}, "bounces": {"notify": "none"}})
        await daemon.start()
        addresses = [f"{place}@example.org" for place in range(5)]
        number = await send_one(daemon.port, SENDER, *addresses)
        await daemon.wait_for_event("bounced", id=number)
        assert [each.recipients for each in upstream.accepted] == [addresses[:2], addresses[2:4]]
        assert upstream.connections == 1
        await drained(daemon)
        assert daemon.audit().final == {"delivered": 4, "bounced": 1}
