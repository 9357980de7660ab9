"""relayd upstream test with tokens, beside a daemon: a revoked consent, and what is shown of it all."""

from __future__ import annotations

from typing import Any

from tests.endtoend.client import send_one
from tests.support.daemon import Daemon, Secret, smtp_upstream
from tests.support.fake_upstream import FakeUpstream
from tests.support.token_server import TokenServer

USER = "info@example.jp"


def by_token(fake: FakeUpstream, server: TokenServer) -> dict[str, Any]:
    section = smtp_upstream(fake) | {"username": USER}
    section.pop("password")
    section["oauth"] = {"client_id": "c", "token_url": server.url, "refresh_token": Secret("canary-first")}
    return section


async def test_a_revoked_consent_pauses_says_what_to_do_and_resumes_by_a_test(make_daemon: Any) -> None:
    async with (
        TokenServer() as server,
        FakeUpstream(tls="starttls", users={USER: "-"}, auth=["XOAUTH2"], require_auth=True) as fake,
    ):
        server.refuse = {"error": "invalid_grant"}
        # a pause so long that only the command can end it
        slow = {"relayd.delivery.gate:FIRST_PAUSE": 3_000_000, "relayd.delivery.gate:LONGEST_PAUSE": 3_000_000}
        log = {"format": "json", "level": "debug"}
        config = {"upstreams": {"team": by_token(fake, server)}, "log": log}
        daemon: Daemon = make_daemon(config, constants=slow)
        async with daemon:
            await send_one(daemon.port, USER, "b@c.example")
            event = await daemon.wait_for_event("deferred")
            assert event["upstream_trouble"]
            assert "run relayd upstream login team" in event["reply"]
            server.refuse = None
            first = await daemon.cli("upstream", "test", "team")
            assert first.code == 1
            fake.users[USER] = server.tokens[-1]
            done = await daemon.cli("upstream", "test", "team")
            assert done.code == 0, (done.out, done.err)
            assert "XOAUTH2" in done.out
            # what was put off stays so until its time; new mail goes at once
            await send_one(daemon.port, USER, "second@c.example")
            delivered = await daemon.wait_for_event("delivered", recipient="second@c.example")
            assert delivered["attempt"] == 1
            shown = await daemon.cli("config", "show")
            everything = daemon.everything_said() + first.out + first.err + done.out + done.err + shown.out
            assert "canary" not in everything


async def test_a_person_logs_in_once_and_the_daemon_works_with_it(make_daemon: Any) -> None:
    async with (
        TokenServer() as server,
        FakeUpstream(tls="starttls", users={USER: "-"}, auth=["XOAUTH2"], require_auth=True) as fake,
    ):
        section = by_token(fake, server)
        section["oauth"] = {"provider": "microsoft", "tenant": "t", "client_id": "c", "token_url": server.url}
        daemon: Daemon = make_daemon({"upstreams": {"team": section}})
        async with daemon:
            before = await daemon.cli("upstream", "test", "team")
            assert before.code == 1
            assert "relayd upstream login team" in before.out + before.err
            done = await daemon.cli("upstream", "login", "team")
            assert done.code == 0, (done.out, done.err)
            assert "ABCD-EFGH" in done.out + done.err
            assert "https://example.com/device" in done.out + done.err
            fake.users[USER] = server.tokens[-1]
            await send_one(daemon.port, USER, "b@c.example")
            await daemon.wait_for_event("delivered", recipient="b@c.example")
            assert "canary" not in daemon.everything_said() + done.out + done.err
