"""Mail on less usual ways: clients that vanish, backlogs beyond memory, loops, fewer workers than there were."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.endtoend.client import Client, mail, send_one, subject_of
from tests.endtoend.conftest import MakeDaemon
from tests.endtoend.test_crashes import drained, taken
from tests.endtoend.test_random_kills import fixed_port
from tests.support.daemon import smtp_upstream
from tests.support.fake_upstream import FakeUpstream

SENDER = "app@example.com"


async def test_a_client_that_leaves_behind_the_dot_cancels_nothing(make_daemon: MakeDaemon) -> None:
    async with FakeUpstream() as upstream:
        daemon = make_daemon({"upstreams": {"acme": smtp_upstream(upstream)}})
        await daemon.start()
        subjects = [f"mail-{place}" for place in range(20)]
        for subject in subjects:
            client = Client(daemon.port)
            await client.connect()
            for command in (f"MAIL FROM:<{SENDER}>", f"RCPT TO:<{subject}@example.org>", "DATA"):
                assert (await client.say(command))[0] in (250, 354)
            client.writer.write(mail(subject) + b".\r\n")
            await client.writer.drain()
            client.writer.transport.abort() if subject.endswith("5") else client.writer.close()
        for subject in subjects:
            if not subject.endswith("5"):
                await daemon.wait_for_event("accepted", recipient=f"{subject}@example.org")
        await drained(daemon)
        found = taken(upstream)
        # a reset may overtake what was sent before it; nothing comes in part, and nothing twice
        assert set(found.values()) == {1}
        assert set(subjects) - set(found) <= {"mail-5", "mail-15"}
        assert await daemon.stop() == 0
        assert daemon.audit().clean


async def test_many_mails_in_one_write(make_daemon: MakeDaemon) -> None:
    async with FakeUpstream() as upstream:
        daemon = make_daemon({"upstreams": {"acme": smtp_upstream(upstream)}})
        await daemon.start()
        async with Client(daemon.port) as client:
            for place in range(30):
                content = mail(f"mail-{place}")
                head = f"MAIL FROM:<{SENDER}>\r\nRCPT TO:<a@example.org>\r\nBDAT {len(content)} LAST\r\n"
                client.writer.write(head.encode() + content)
            replies = [await client.reply() for _ in range(90)]
        assert {code for code, _ in replies} == {250}
        await drained(daemon)
        assert taken(upstream) == Counter(f"mail-{place}" for place in range(30))


async def test_a_backlog_larger_than_the_window_is_delivered_once_and_starves_nobody(make_daemon: MakeDaemon) -> None:
    async with FakeUpstream({"greeting": "554 5.3.2 closed"}) as upstream:
        section = smtp_upstream(upstream, limits={"connections": 2})
        daemon = make_daemon(
            {"upstreams": {"acme": section}, "spool": {"min_free": "0%", "window": 6}},
            constants={"relayd.delivery.gate:FIRST_PAUSE": 200, "relayd.delivery.gate:LONGEST_PAUSE": 200},
        )
        await daemon.start()
        async with Client(daemon.port) as client:
            for place in range(150):
                assert (await client.send(SENDER, ["a@example.org"], mail(f"old-{place}")))[0] == 250
        assert await daemon.stop() == 0
        await daemon.restart()
        upstream.script.clear()
        await daemon.wait_for_event("delivered")
        async with Client(daemon.port) as client:
            for place in range(20):
                assert (await client.send(SENDER, ["a@example.org"], mail(f"new-{place}")))[0] == 250
        await drained(daemon)
        assert set(taken(upstream).values()) == {1} and len(upstream.accepted) == 170
        assert await daemon.stop() == 0
        report = daemon.audit()
        assert report.clean and report.final == {"delivered": 170}


async def test_a_loop_ends(make_daemon: MakeDaemon) -> None:
    """The route leads back to ourselves: mail and report go round until their Received headers are too many."""
    listener = fixed_port()
    host, _, port = listener["bind"][0].partition(":")
    daemon = make_daemon(
        {
            "listeners": [listener],
            "upstreams": {"self": {"host": host, "port": int(port), "tls": "none"}},
            "limits": {"received_headers": 5},
        }
    )
    await daemon.start()
    number = await send_one(daemon.port, SENDER, "a@example.org")
    await daemon.wait_for_event("delivered", id=number)
    bounced = await daemon.wait_for_event("bounced", sender=SENDER)
    assert bounced["reply"].startswith("550 5.4.6")
    # the report meets the same end, and nobody is told of that
    await daemon.wait_for_event("bounced", sender="")
    await drained(daemon)
    assert await daemon.stop() == 0
    report = daemon.audit()
    assert report.clean and not report.owed
    assert report.final["bounced"] == 2 and report.accepted < 15


@pytest.mark.parametrize("worker_numbers", [(2, 1)])
async def test_mail_of_workers_that_are_no_more_is_adopted(
    make_daemon: MakeDaemon, worker_numbers: tuple[int, int]
) -> None:
    before, after = worker_numbers
    async with FakeUpstream({"MAIL": "451 4.3.0 not now"}) as upstream:
        base = {"upstreams": {"acme": smtp_upstream(upstream)}}
        daemon = make_daemon(base | {"workers": before})
        await daemon.start()
        for place in range(24):
            await send_one(daemon.port, SENDER, "a@example.org", content=mail(f"mail-{place}"))
        assert await daemon.stop() == 0
        assert len(list((daemon.data_dir / "spool").glob("*/*.db"))) == before
        upstream.script.clear()
        daemon.write_config(base | {"workers": after})
        await daemon.restart()
        await drained(daemon)
        assert taken(upstream) == Counter(f"mail-{place}" for place in range(24))
        listed = (await daemon.cli("queue", "stats", "--json")).json
        assert listed["kept"]["messages"] == 24
        assert await daemon.stop() == 0
        assert daemon.audit().final == {"delivered": 24}


async def test_the_body_goes_on_delivery_where_that_is_wanted(make_daemon: MakeDaemon) -> None:
    async with FakeUpstream() as upstream:
        daemon = make_daemon(
            {"upstreams": {"acme": smtp_upstream(upstream)}, "spool": {"min_free": "0%", "keep_body": "0s"}}
        )
        await daemon.start()
        number = await send_one(daemon.port, SENDER, "a@example.org", content=mail("private"))
        await daemon.wait_for_event("delivered", id=number)
        shown = await daemon.message(number)
        assert not shown["has_content"] and shown["subject"] == "private"
        done = await daemon.cli("message", "show", number, "--content")
        assert done.code == 1 and not done.out
        assert subject_of(upstream.accepted[0].content) == "private"
        assert await daemon.stop() == 0
        assert daemon.audit().clean
