"""An operator's commands against a daemon at work."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.endtoend.client import mail, send_one
from tests.endtoend.conftest import MakeDaemon
from tests.endtoend.test_crashes import drained
from tests.support.daemon import Daemon, smtp_upstream
from tests.support.fake_upstream import FakeUpstream, Wait

SENDER = "app@example.com"
LATER: dict[str, Any] = {"RCPT": "450 4.2.1 later"}


async def _queue(daemon: Daemon, *args: str) -> Any:
    done = await daemon.cli("queue", *args, "--json")
    assert done.code == 0, done.err
    return done.json


async def test_hold_release_retry_fail_delete(make_daemon: MakeDaemon) -> None:
    async with FakeUpstream(LATER) as upstream:
        daemon = make_daemon({"upstreams": {"acme": smtp_upstream(upstream)}, "retry": {"schedule": "1h*"}})
        await daemon.start()
        names = ("held", "retried", "failed", "deleted", "left")
        ids = {name: await send_one(daemon.port, SENDER, f"{name}@example.org", content=mail(name)) for name in names}
        await daemon.wait_for_event("deferred", count=5)
        listed = await _queue(daemon, "list")
        assert {each["id"]: (each["state"], each["attempts"]) for each in listed} == dict.fromkeys(
            ids.values(), ("deferred", 1)
        )
        stats = await _queue(daemon, "stats")
        assert [(each["upstream"], each["state"], each["recipients"]) for each in stats["waiting"]] == [
            ("acme", "deferred", 5)
        ]

        assert (await _queue(daemon, "hold", ids["held"]))["recipients"] == 1
        held = await daemon.wait_for_event("held", id=ids["held"])
        assert held["by"]
        upstream.script.clear()
        # what is held is not meant by retry, however wide its filter
        assert (await _queue(daemon, "retry", "--recipient", "*ed@example.org"))["recipients"] == 3
        for name in ("retried", "failed", "deleted"):
            await daemon.wait_for_event("delivered", id=ids[name])
        assert (await _queue(daemon, "release", ids["held"]))["recipients"] == 1
        await daemon.wait_for_event("released", id=ids["held"])
        await daemon.wait_for_event("delivered", id=ids["held"])

        upstream.script.update(LATER)
        ids |= {name: await send_one(daemon.port, SENDER, f"{name}@example.org") for name in ("failed", "deleted")}
        await daemon.wait_for_event("deferred", count=7)
        upstream.script.clear()
        assert (await _queue(daemon, "fail", "--yes", "--reason", "a typing error", ids["failed"]))["recipients"] == 1
        bounced = await daemon.wait_for_event("bounced", id=ids["failed"])
        assert bounced["reason"] == "a typing error"
        assert (await _queue(daemon, "delete", "--yes", ids["deleted"]))["recipients"] == 1
        await daemon.wait_for_event("deleted", id=ids["deleted"])
        # the sender of the failed one is told, that of the deleted one is not
        await daemon.wait_for_event("delivered", recipient=SENDER)
        assert (await _queue(daemon, "retry", "--all"))["recipients"] == 1
        await daemon.wait_for_event("delivered", id=ids["left"])
        assert await _queue(daemon, "list") == []
        assert sum(each.sender == "" for each in upstream.accepted) == 1
        assert await daemon.stop() == 0
        report = daemon.audit()
        assert report.clean and report.final == {"delivered": 6, "bounced": 1, "deleted": 1}


async def test_mail_that_is_being_sent_is_left_alone(make_daemon: MakeDaemon) -> None:
    answer = asyncio.Event()
    async with FakeUpstream({"DOT": Wait(answer)}) as upstream:
        daemon = make_daemon({"upstreams": {"acme": smtp_upstream(upstream)}})
        await daemon.start()
        number = await send_one(daemon.port, SENDER, "a@example.org")
        await daemon.until(lambda: upstream.mails, "the upstream has the mail")
        for act in ("hold", "fail", "delete"):
            done = await _queue(daemon, act, "--yes", number)
            assert (done["recipients"], done["busy"]) == (0, 1)
        answer.set()
        await daemon.wait_for_event("delivered", id=number)
        assert await daemon.stop() == 0
        assert daemon.audit().final == {"delivered": 1}


async def test_mail_can_be_held_while_the_upstream_is_down(make_daemon: MakeDaemon) -> None:
    """The queue in memory must not send what the disk says is held."""
    async with FakeUpstream({"greeting": "554 5.3.2 closed"}) as upstream:
        daemon = make_daemon(
            {"upstreams": {"acme": smtp_upstream(upstream)}}, constants={"relayd.delivery.gate:FIRST_PAUSE": 200}
        )
        await daemon.start()
        ids = [await send_one(daemon.port, SENDER, f"{place}@example.org") for place in range(10)]
        await daemon.wait_for_event("deferred")
        # the one message that probes may be in hand at that moment
        await daemon.until(lambda: _all_held(daemon, ids[:5]), "five are held")
        upstream.script.clear()
        await daemon.wait_for_event("delivered", count=5)
        assert {event["id"] for event in daemon.events("delivered")} == set(ids[5:])
        assert daemon.audit().waiting == {"held": 5}
        await _queue(daemon, "release", "--all")
        await drained(daemon)
        assert len(upstream.accepted) == 10


async def _all_held(daemon: Daemon, ids: list[str]) -> bool:
    await _queue(daemon, "hold", *ids)
    return len(await _queue(daemon, "list", "--state", "held")) == len(ids)


async def test_acts_reach_the_mail_of_all_workers(make_daemon: MakeDaemon) -> None:
    async with FakeUpstream(LATER) as upstream:
        section = {"upstreams": {"acme": smtp_upstream(upstream)}, "retry": {"schedule": "1h*"}, "workers": 2}
        daemon = make_daemon(section)
        await daemon.start()
        for place in range(24):
            await send_one(daemon.port, SENDER, f"{place}@example.org")
        await daemon.wait_for_event("deferred", count=24)
        done = await _queue(daemon, "hold", "--all")
        assert done["recipients"] == 24 and not done["errors"]
        upstream.script.clear()
        assert (await _queue(daemon, "release", "--all"))["recipients"] == 24
        await daemon.wait_for_event("delivered", count=24)
        status = (await daemon.cli("status", "--json")).json["status"]
        assert [worker["state"] for worker in status["workers"]] == ["ready", "ready"]
        assert await daemon.stop() == 0
        assert daemon.audit().final == {"delivered": 24}


async def test_a_message_shows_its_whole_history(make_daemon: MakeDaemon) -> None:
    password = "canary-2b1c-password"
    script = {"RCPT": [None, "450 4.2.1 mailbox busy"]}
    async with FakeUpstream(script, tls="starttls", users={"relay": password}) as upstream:
        daemon = make_daemon({"upstreams": {"acme": smtp_upstream(upstream)}, "retry": {"schedule": "200ms*"}})
        await daemon.start()
        number = await send_one(daemon.port, SENDER, "a@example.org", "b@example.org", content=mail("history"))
        await daemon.wait_for_event("delivered", id=number, recipient="b@example.org")
        shown = await daemon.message(number)
        assert [(e["event"], e["recipient"]) for e in shown["events"]] == [
            ("accepted", "a@example.org"),
            ("accepted", "b@example.org"),
            ("delivered", "a@example.org"),
            ("deferred", "b@example.org"),
            ("delivered", "b@example.org"),
        ]
        first, second = shown["attempts"]
        assert "RCPT TO:<b@example.org>" in first["transcript"] and "450" in first["transcript"]
        assert first["tls"] == "TLSv1.3" and "mailbox busy" in first["transcript"]
        assert second["transcript"] is None and second["reply"].startswith("250 2.0.0 taken")
        assert (shown["subject"], shown["origin"]["listener"], shown["has_content"]) == ("history", "local", True)
        text = (await daemon.cli("message", "show", number)).out
        for word in ("mailbox busy", "Attempt 2", "history", "delivered"):
            assert word in text
        assert password not in text and password not in str(shown)
        kept = (await daemon.cli("message", "show", number, "--content")).out
        assert kept.endswith("on its way to you by now.\n") or kept.endswith("on its way to you by now.\r\n")


async def test_routes_are_explained(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(
        {
            "upstreams": {"acme": {"type": "sandbox"}, "other": {"type": "sandbox"}},
            "routes": [
                {"match": {"sender_domain": "shop.example.com", "campaign": "news*"}, "upstream": "acme"},
                {"upstream": "other"},
            ],
        }
    )
    await daemon.start()
    asked = ("route", "explain", "--from", "a@shop.example.com", "--to", "b@example.org", "--json")
    plain = (await daemon.cli(*asked)).json
    assert (plain["rule"], plain["upstream"]) == (2, "other")
    assert plain["rules"][0]["misses"]
    campaign = (await daemon.cli(*asked, "--header", "X-Relay-Campaign=newsletter")).json
    assert (campaign["rule"], campaign["upstream"]) == (1, "acme")
    # and what is explained is what happens
    content = mail(sender="a@shop.example.com").replace(b"Subject", b"X-Relay-Campaign: newsletter\r\nSubject")
    number = await send_one(daemon.port, "a@shop.example.com", "b@example.org", content=content)
    event = await daemon.wait_for_event("delivered", id=number)
    assert event["upstream"] == "acme"
    assert b"X-Relay-Campaign" not in (await daemon.cli("message", "show", number, "--content")).out.encode()


@pytest.mark.parametrize("certificate", ["good", "expired"])
async def test_an_upstream_is_tested(make_daemon: MakeDaemon, certificate: Any) -> None:
    async with FakeUpstream(tls="starttls", users={"relay": "a secret word"}, certificate=certificate) as upstream:
        daemon = make_daemon({"upstreams": {"acme": smtp_upstream(upstream)}})
        await daemon.start()
        done = await daemon.cli("upstream", "test", "acme")
        assert "a secret word" not in done.out + done.err
        if certificate == "good":
            assert done.code == 0 and "TLSv1.3" in done.out
            assert upstream.logins[0].tls
        else:
            assert done.code == 1 and "expired" in done.out + done.err
            assert not upstream.logins
        assert not upstream.mails


async def test_the_audit_finds_what_is_wrong(make_daemon: MakeDaemon) -> None:
    import sqlite3

    daemon = make_daemon()
    await daemon.start()
    await send_one(daemon.port, SENDER, "a@example.org")
    await daemon.wait_for_event("delivered")
    done = await daemon.cli("audit", "--json")
    assert done.code == 0 and done.json["clean"] and done.json["final"] == {"delivered": 1}
    assert await daemon.stop() == 0
    [segment] = (daemon.data_dir / "spool" / "000").glob("*.db")
    with sqlite3.connect(segment) as db:
        db.execute("DELETE FROM event WHERE kind = 'delivered'")
    db.close()
    done = await daemon.cli("audit")
    assert done.code == 1 and "no event tells how it ended" in done.err
