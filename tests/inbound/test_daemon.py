"""Bounces come back to the daemon: told once, by whichever worker they reach; what we did not sign changes nothing."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Mapping
from typing import Any

from relayd.core.ids import parse_id, slot_of
from tests.endtoend.client import Client, id_of, mail, send_one, subject_of
from tests.endtoend.conftest import MakeDaemon
from tests.support.bounces import auto_reply, complaint, letter, report
from tests.support.daemon import Daemon, local, smtp_upstream
from tests.support.fake_upstream import FakeUpstream

DOMAIN = "bounce.example.com"
SENDER = "app@example.com"


def returning(upstream: FakeUpstream, *, verp: bool = True, **others: Any) -> dict[str, Any]:
    """A daemon that sends by the upstream and takes bounces at "mx"."""
    mx = {"name": "mx", "role": "inbound", "bind": ["127.0.0.1:0"], "tls": "none"}
    return {
        "listeners": [local(), mx],
        "upstreams": {"acme": smtp_upstream(upstream, return_path="verp" if verp else "keep")},
        "bounces": {"notify": "none", "domain": DOMAIN},
        "web": {"bind": ["127.0.0.1:0"]},
    } | others


async def come_back(daemon: Daemon, recipient: str, content: bytes, sender: str = "") -> tuple[int, str]:
    """Send a mail to the inbound listener; its reply."""
    async with Client(daemon.port_of("mx")) as client:
        return await client.send(sender, [recipient], content)


async def metrics(daemon: Daemon) -> Mapping[str, float]:
    """The metrics page, counters only as far as a test needs them."""
    url = f"http://{daemon.addresses('web')[0]}/metrics"
    text = await asyncio.to_thread(lambda: urllib.request.urlopen(url).read().decode())
    lines = [line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


async def states(daemon: Daemon, number: str) -> list[str]:
    return [recipient["state"] for recipient in (await daemon.message(number))["recipients"]]


async def test_each_recipient_leaves_with_a_return_path_of_its_own(make_daemon: MakeDaemon) -> None:
    async with FakeUpstream() as upstream:
        daemon = make_daemon(returning(upstream))
        await daemon.start()
        people = [f"{name}@example.org" for name in ("a", "b", "c")]
        await send_one(daemon.port, SENDER, *people, content=mail("verp"))
        await daemon.wait_for_event("delivered", count=3)
        await send_one(daemon.port, "", "d@example.org", content=mail("null"))
        await daemon.wait_for_event("delivered", count=4)
        *verp, null = upstream.accepted
        assert [taken.recipients for taken in verp] == [[address] for address in people]
        paths = [taken.sender for taken in verp]
        assert len(set(paths)) == 3
        for path in paths:
            local_part, _, domain = path.partition("@")
            assert domain == DOMAIN
            assert local_part.startswith("b+") and len(local_part) <= 64 and local_part == local_part.lower()
        assert len({taken.content for taken in verp}) == 1
        assert null.sender == ""


async def test_success_is_reported_to_the_sender_and_a_bounce_too(make_daemon: MakeDaemon) -> None:
    """The upstream's own reports go to our return path: what the sender asked for is ours to tell."""
    async with FakeUpstream() as upstream:
        bounces = {"notify": "sender", "domain": DOMAIN}
        daemon = make_daemon(returning(upstream, bounces=bounces))
        await daemon.start()
        async with Client(daemon.port) as client:
            for command in (f"MAIL FROM:<{SENDER}>", "RCPT TO:<a@example.org> NOTIFY=SUCCESS,FAILURE", "DATA"):
                assert (await client.say(command))[0] in (250, 354)
            client.writer.write(mail("hello") + b".\r\n")
            number = id_of(await client.reply())
        await daemon.wait_for_event("delivered", id=number)
        await daemon.until(lambda: len(upstream.accepted) == 2, "relayed")
        told = upstream.accepted[1]
        assert (told.sender, told.recipients) == ("", [SENDER])
        assert b"Action: relayed" in told.content
        path = upstream.accepted[0].sender
        assert (await come_back(daemon, path, report("a@example.org", to=path)))[0] == 250
        await daemon.wait_for_event("bounced", id=number)
        await daemon.until(lambda: len(upstream.accepted) == 3, "bounced")
        assert upstream.accepted[2].recipients == [SENDER]
        assert b"Action: failed" in upstream.accepted[2].content


async def test_a_bounce_is_told_once(make_daemon: MakeDaemon) -> None:
    async with FakeUpstream() as upstream:
        daemon = make_daemon(returning(upstream))
        await daemon.start()
        number = await send_one(daemon.port, SENDER, "a@example.org", "b@example.org", content=mail("hello"))
        await daemon.wait_for_event("delivered", count=2)
        path = upstream.accepted[1].sender
        # the report names another address: it was forwarded. The return path says whom it is about.
        bounce = report("elsewhere@example.net", to=path, original=mail("hello"))
        # upper case: some systems fold it
        assert (await come_back(daemon, path.upper(), bounce))[0] == 250
        event = await daemon.wait_for_event("bounced", id=number)
        assert (event["recipient"], event["class"]) == ("b@example.org", "user-unknown")
        assert await states(daemon, number) == ["delivered", "bounced"]
        for _ in range(2):
            assert (await come_back(daemon, path, bounce))[0] == 250
        await daemon.wait_for_event("delivered", count=5)  # the bounces themselves, read to the end
        assert len(daemon.events("bounced")) == 1
        found = await metrics(daemon)
        assert found['relayd_inbound_total{kind="bounce"}'] == 3
        assert found['relayd_inbound_facts_total{kind="bounce",result="new"}'] == 1
        assert found['relayd_inbound_facts_total{kind="bounce",result="duplicate"}'] == 2
        assert await daemon.stop() == 0
        assert daemon.audit().clean


async def test_what_we_did_not_issue_is_refused(make_daemon: MakeDaemon) -> None:
    async with FakeUpstream() as upstream:
        daemon = make_daemon(returning(upstream))
        await daemon.start()
        number = await send_one(daemon.port, SENDER, "a@example.org")
        await daemon.wait_for_event("delivered")
        path = upstream.accepted[0].sender
        forged = path[:5] + ("a" if path[5] != "a" else "b") + path[6:]
        others = ("app@example.com", f"info@{DOMAIN}", "someone@example.org", f"b+@{DOMAIN}", "b+x@example.org")
        for address in (forged, *others):
            answer = await come_back(daemon, address, report("a@example.org"))
            assert (answer[0], answer[1][:5]) == (550, "5.1.1"), address
        async with Client(daemon.port_of("mx")) as client:
            hello = await client.say("EHLO mx.example.org")
            assert "AUTH" not in hello[1] and "DSN" not in hello[1]
            assert f"SIZE {16 * 1024**2}" in hello[1]
            assert (await client.say("AUTH PLAIN AGEAYg=="))[0] in (502, 503, 504, 538)
        assert await states(daemon, number) == ["delivered"]
        found = await metrics(daemon)
        assert found['relayd_refused_total{listener="mx",reason="forged"}'] == 2
        assert found['relayd_refused_total{listener="mx",reason="unknown-recipient"}'] == 4
        assert len(upstream.accepted) == 1


async def test_an_expired_return_path_is_refused(make_daemon: MakeDaemon) -> None:
    from relayd.core.token import ReturnPaths

    async with FakeUpstream() as upstream:
        daemon = make_daemon(returning(upstream))
        await daemon.start()
        number = await send_one(daemon.port, SENDER, "a@example.org")
        event = await daemon.wait_for_event("delivered")
        assert event["id"] == number
        secret = (daemon.data_dir / "secret").read_bytes().strip()
        paths = ReturnPaths(DOMAIN, secret, 86_400_000)
        import time

        now = time.time_ns() // 1_000_000
        assert paths.read(upstream.accepted[0].sender, now) is not None
        old = paths.address(parse_id(number), 0, now - 3 * 86_400_000)
        assert (await come_back(daemon, old, report("a@example.org")))[0] == 550
        assert (await come_back(daemon, paths.address(parse_id(number), 0, now), report("a@example.org")))[0] == 250
        await daemon.wait_for_event("bounced", id=number)


async def test_it_comes_to_the_worker_that_does_not_have_the_mail(make_daemon: MakeDaemon) -> None:
    async with FakeUpstream() as upstream:
        daemon = make_daemon(returning(upstream, workers=2))
        await daemon.start()
        crossed: set[bool] = set()
        count = 0
        while len(crossed) < 2 and count < 60:  # which worker gets a connection is the kernel's choice
            count += 1
            recipient = f"r{count}@example.org"
            number = await send_one(daemon.port, SENDER, recipient)
            await daemon.wait_for_event("delivered", id=number)
            bounce = report(recipient, message_id=f"<{recipient}>")
            answer = await come_back(daemon, upstream.accepted[-1].sender, bounce)
            await daemon.wait_for_event("bounced", id=number)
            crossed.add(slot_of(parse_id(id_of(answer))) != slot_of(parse_id(number)))
        assert crossed == {True, False}
        assert len(daemon.events("bounced")) == count

        async def counted() -> bool:  # the other worker's figures are shown within a second
            found = await metrics(daemon)
            return found.get('relayd_inbound_facts_total{kind="bounce",result="new"}') == count

        await daemon.until(counted, "every fact is counted once")


async def test_reports_are_matched_by_what_they_return(make_daemon: MakeDaemon) -> None:
    """Without VERP: by our Received field, by a Message-ID of ours, by one that the app gave."""
    async with FakeUpstream() as upstream:
        daemon = make_daemon(returning(upstream, verp=False))
        await daemon.start()
        people = [f"{name}@example.org" for name in ("a", "b")]
        received = await send_one(daemon.port, SENDER, *people, content=mail("received"))
        given = await send_one(daemon.port, SENDER, *people, content=mail("given"))
        without = mail("ours").replace(b"Message-ID: <ours@example.com>\r\n", b"")
        ours = await send_one(daemon.port, SENDER, *people, content=without)
        await daemon.wait_for_event("delivered", count=6)
        postmaster = f"postmaster@{DOMAIN}"
        # they go out beside each other
        by_subject = {subject_of(taken.content): taken.content for taken in upstream.accepted}
        assert len(by_subject) == len(upstream.accepted) == 3
        returned = by_subject["received"].replace(b"Message-ID: <received@example.com>\r\n", b"")
        assert (await come_back(daemon, postmaster, report("B@example.org", original=returned)))[0] == 250
        await daemon.wait_for_event("bounced", id=received, recipient="b@example.org")
        bare = b"Message-ID: <given@example.com>\r\n"
        assert (await come_back(daemon, postmaster, report("a@example.org", original=bare)))[0] == 250
        await daemon.wait_for_event("bounced", id=given, recipient="a@example.org")
        bare = f"Message-ID: <{ours}@relay.test>\r\n".encode()
        assert (await come_back(daemon, postmaster, report("b@example.org", original=bare)))[0] == 250
        await daemon.wait_for_event("bounced", id=ours, recipient="b@example.org")
        # nobody of that name was written to: it changes nothing
        other = report("c@example.org", original=b"Message-ID: <given@example.com>\r\n")
        assert (await come_back(daemon, postmaster, other))[0] == 250
        await daemon.wait_for_event("delivered", count=10)
        assert len(daemon.events("bounced")) == 3
        assert (await metrics(daemon))['relayd_inbound_unmatched_total{kind="bounce"}'] == 1


async def test_complaints_auto_replies_and_letters(make_daemon: MakeDaemon) -> None:
    async with FakeUpstream() as upstream:
        daemon = make_daemon(returning(upstream))
        await daemon.start()
        number = await send_one(daemon.port, SENDER, "a@example.org", content=mail("hello"))
        await daemon.wait_for_event("delivered")
        path, sent = upstream.accepted[0].sender, upstream.accepted[0].content
        assert (await come_back(daemon, f"abuse@{DOMAIN}", complaint("a@example.org", original=sent)))[0] == 250
        await daemon.wait_for_event("complained", id=number)
        assert (await come_back(daemon, path, auto_reply("a@example.org", to=path)))[0] == 250
        await daemon.wait_for_event("replied", id=number)
        question = letter(to=f"postmaster@{DOMAIN}")
        answer = await come_back(daemon, "postmaster", question, "somebody@example.net")
        assert answer[0] == 250, answer
        await daemon.wait_for_event("delivered", count=4)
        [kept] = (await daemon.cli("inbound", "list", "--json")).json
        assert (kept["sender"], kept["subject"]) == ("somebody@example.net", "A question")
        shown = await daemon.cli("inbound", "show", str(kept["number"]), "--content")
        assert shown.out.replace("\r\n", "\n").endswith(question.decode().replace("\r\n", "\n"))
        assert shown.out.startswith("Received: ")
        done = await daemon.cli("inbound", "export", str(daemon.directory / "filed"))
        assert done.code == 0 and len(list((daemon.directory / "filed").glob("*.eml"))) == 1
        assert len(upstream.accepted) == 1, "nothing is relayed"


async def test_nothing_is_lost_when_it_is_killed(make_daemon: MakeDaemon) -> None:
    async with FakeUpstream() as upstream:
        daemon = make_daemon(returning(upstream))
        await daemon.start()
        for count in range(20):
            await send_one(daemon.port, SENDER, f"r{count}@example.org")
        await daemon.wait_for_event("delivered", count=20)
        for taken in upstream.accepted:
            [recipient] = taken.recipients
            assert (await come_back(daemon, taken.sender, report(recipient, message_id=f"<{recipient}>")))[0] == 250
        await daemon.kill9()
        await daemon.restart()
        # by the spool: a line of the mail log may be lost with the process, after the commit that it tells of
        await daemon.until(lambda: _all_bounced(daemon), "all bounced")
        assert await daemon.stop() == 0
        assert daemon.audit().clean


async def _all_bounced(daemon: Daemon) -> bool:
    listed = (await daemon.cli("queue", "list", "--state", "bounced", "--json")).json
    return len(listed) == 20
