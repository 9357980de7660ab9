"""An upstream's own trouble: mail stays queued, no attempt counts, no secret is shown in plain, it resumes by itself.

Each row is one trouble: how the fake upstream acts it, how it is mended while the daemon runs, and where we saw it.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.endtoend.client import send_one
from tests.endtoend.conftest import MakeDaemon
from tests.support.daemon import Daemon, smtp_upstream
from tests.support.fake_upstream import DROP, RESET, SILENCE, FakeUpstream, Garble, server_context
from tests.support.ports import free_port

QUICK = {"relayd.delivery.gate:FIRST_PAUSE": 150, "relayd.delivery.gate:LONGEST_PAUSE": 300}
PASSWORD = "canary-7f3e-password"
SECURE: dict[str, Any] = {"tls": "starttls", "users": {"relay": PASSWORD}, "require_auth": True}


def clear(upstream: FakeUpstream) -> None:
    upstream.script.clear()


def users_right(upstream: FakeUpstream) -> None:
    upstream.users["relay"] = PASSWORD


def offer_auth(upstream: FakeUpstream) -> None:
    upstream.auth = ["PLAIN"]


def offer_starttls(upstream: FakeUpstream) -> None:
    upstream.starttls = True


def good_certificate(upstream: FakeUpstream) -> None:
    upstream.context = server_context("good")


@dataclass(frozen=True)
class Trouble:
    """One row. `secure`: TLS and login hold besides."""

    name: str
    stage: str
    reply: str
    script: dict[str, Any] = field(default_factory=dict)
    begin: Callable[[FakeUpstream], None] = lambda _: None
    mend: Callable[[FakeUpstream], None] = clear
    implicit: bool = False
    timeouts: dict[str, str] = field(default_factory=dict)


def _wrong_password(upstream: FakeUpstream) -> None:
    upstream.users["relay"] = "another"


def _no_auth(upstream: FakeUpstream) -> None:
    upstream.auth = []


def _odd_auth(upstream: FakeUpstream) -> None:
    upstream.auth = ["GSSAPI"]


def _stripped(upstream: FakeUpstream) -> None:
    upstream.starttls = False


def _certificate(kind: Any) -> Callable[[FakeUpstream], None]:
    def use(upstream: FakeUpstream) -> None:
        upstream.context = server_context(kind)

    return use


TROUBLES = [
    Trouble("greeted with 554", "connect", "554 5.3.2", {"greeting": "554 5.3.2 closed"}),
    Trouble("greeted with 421", "connect", "421 4.3.2", {"greeting": "421 4.3.2 busy"}),
    Trouble("dropped before the greeting", "connect", "451 4.4.2", {"greeting": DROP}),
    Trouble("reset before the greeting", "connect", "451 4.4.", {"greeting": RESET}),
    Trouble("no greeting", "connect", "451 4.4.2", {"greeting": SILENCE}, timeouts={"greeting": "200ms"}),
    Trouble("a greeting that is none", "connect", "451 4.5.0", {"greeting": b"HTTP/1.1 400 Bad Request\r\n"}),
    Trouble("EHLO refused", "ehlo", "550 5.7.1", {"EHLO": "550 5.7.1 not you"}),
    Trouble("STARTTLS stripped", "tls", "454 4.7.0", begin=_stripped, mend=offer_starttls),
    Trouble("STARTTLS refused", "tls", "454 4.7.0", {"STARTTLS": "454 4.7.0 not now"}),
    Trouble("STARTTLS answered, and plain text behind it", "tls", "451 4.5.0", {"STARTTLS": b"220 go\r\n250 oh\r\n"}),
    Trouble("a handshake that is none", "tls", "45", {"handshake": Garble()}),
    Trouble("dropped in the handshake", "tls", "45", {"handshake": DROP}),
    Trouble("certificate expired", "tls", "454 4.7.5", begin=_certificate("expired"), mend=good_certificate),
    Trouble("certificate of another name", "tls", "454 4.7.5", begin=_certificate("wrong-name"), mend=good_certificate),
    Trouble(
        "certificate of an unknown CA", "tls", "454 4.7.5", begin=_certificate("unknown-ca"), mend=good_certificate
    ),
    Trouble(
        "implicit TLS, certificate expired",
        "tls",
        "454 4.7.5",
        begin=_certificate("expired"),
        mend=good_certificate,
        implicit=True,
    ),
    Trouble("login refused", "auth", "535 5.7.8", begin=_wrong_password, mend=users_right),
    Trouble("login put off", "auth", "454 4.7.0", {"AUTH": "454 4.7.0 later"}),
    Trouble("login needs another mechanism", "auth", "534 5.7.9", {"AUTH": "534 5.7.9 too weak"}),
    Trouble("login not offered", "auth", "454 4.7.0", begin=_no_auth, mend=offer_auth),
    Trouble("no mechanism that we know", "auth", "454 4.7.0", begin=_odd_auth, mend=offer_auth),
    Trouble("dropped at the login", "auth", "451 4.4.2", {"AUTH": DROP}),
    Trouble("sender refused", "mail", "550 5.7.1", {"MAIL": "550 5.7.1 sender not yours"}),
    Trouble("login asked for at MAIL", "mail", "530 5.7.0", {"MAIL": "530 5.7.0 log in"}),
    Trouble("login has run out at MAIL", "mail", "535 5.7.8", {"MAIL": "535 5.7.8 expired"}),
    Trouble("454 4.7.0 at MAIL", "mail", "454 4.7.0", {"MAIL": "454 4.7.0 not now"}),
]


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.name)
async def test_the_upstreams_trouble_is_not_the_mails(make_daemon: MakeDaemon, trouble: Trouble) -> None:
    secure = SECURE | ({"tls": "implicit"} if trouble.implicit else {})
    async with FakeUpstream(trouble.script, **secure) as upstream:
        section = smtp_upstream(upstream, timeouts=trouble.timeouts)
        trouble.begin(upstream)
        daemon = make_daemon({"upstreams": {"acme": section}}, constants=QUICK)
        await daemon.start()
        number = await send_one(daemon.port, "app@example.com", "a@example.org", "b@example.org")
        deferred = await daemon.wait_for_event("deferred", count=4, id=number)
        assert deferred["upstream_trouble"] and deferred["attempt"] == 0
        assert deferred["stage"] == trouble.stage
        assert deferred["reply"].startswith(trouble.reply), deferred["reply"]
        assert not upstream.mails
        _nothing_in_plain(upstream)
        trouble.mend(upstream)
        delivered = await daemon.wait_for_event("delivered", count=2, id=number)
        assert delivered["attempt"] == 1
        [mail] = upstream.accepted
        assert (mail.tls, mail.username) == ("TLSv1.3", "relay")
        _nothing_in_plain(upstream)
        assert PASSWORD not in daemon.everything_said()
        shown = (await daemon.cli("message", "show", number)).out
        assert PASSWORD not in shown and trouble.reply in shown
        assert await daemon.stop() == 0
        assert daemon.audit().clean


def _nothing_in_plain(upstream: FakeUpstream) -> None:
    """Neither credential nor mail crossed a connection that was not protected."""
    assert all(login.tls for login in upstream.logins)
    secured = False
    for command in upstream.commands:
        verb = command.split(" ")[0].upper()
        assert verb in ("EHLO", "STARTTLS", "QUIT") or upstream.logins or upstream.implicit, command
        secured = secured or verb == "STARTTLS"
    assert all(mail.tls for mail in upstream.mails)


@contextlib.asynccontextmanager
async def listening_later(port: int) -> AsyncIterator[FakeUpstream]:
    """An upstream on a port at which nobody listened until now."""
    upstream = FakeUpstream()
    upstream.wanted_port = port
    async with upstream:
        yield upstream


async def test_an_upstream_that_is_down_gets_its_mail_when_it_is_back(make_daemon: MakeDaemon) -> None:
    upstream = FakeUpstream()
    upstream.port = port = free_port()
    daemon = make_daemon({"upstreams": {"acme": smtp_upstream(upstream)}}, constants=QUICK)
    await daemon.start()
    numbers = {await send_one(daemon.port, "app@example.com", f"{place}@example.org") for place in range(20)}
    deferred = await daemon.wait_for_event("deferred", count=3)
    assert deferred["upstream_trouble"] and deferred["reply"].startswith("451 4.4.1")
    [status] = (await daemon.control("status"))["workers"]
    assert status["upstreams"]["acme"]["paused"]
    async with listening_later(port) as upstream:
        await daemon.wait_for_event("delivered", count=20)
        assert {event["id"] for event in daemon.events("delivered")} == numbers
        assert {event["attempt"] for event in daemon.events("delivered")} == {1}
        [status] = (await daemon.control("status"))["workers"]
        assert not status["upstreams"]["acme"]["paused"]
        # and down again, and back again
        upstream.hang_up()
    await send_one(daemon.port, "app@example.com", "again@example.org")
    await daemon.wait_for_event("deferred", recipient="again@example.org")
    async with listening_later(port):
        event = await daemon.wait_for_event("delivered", recipient="again@example.org")
        assert event["attempt"] == 1


async def test_while_an_upstream_is_in_trouble_one_message_probes_it(make_daemon: MakeDaemon) -> None:
    """A backlog does not knock on a closed door: each pause ends with one connection."""
    async with FakeUpstream({"greeting": "554 5.3.2 closed"}) as upstream:
        daemon = make_daemon({"upstreams": {"acme": smtp_upstream(upstream)}}, constants=QUICK)
        await daemon.start()
        for place in range(30):
            await send_one(daemon.port, "app@example.com", f"{place}@example.org")
        log = await daemon.wait_for_log("upstream in trouble", count=5)
        assert log["upstream"] == "acme"
        pauses = len(daemon.log("upstream in trouble"))
        # as many carriers as there were may have met the first trouble together
        assert upstream.connections <= pauses + 10
        clear(upstream)
        await daemon.wait_for_event("delivered", count=30)
        assert {event["attempt"] for event in daemon.events("delivered")} == {1}
        assert daemon.log("upstream.resumed")


async def test_the_real_pause_begins_at_five_seconds(make_daemon: MakeDaemon) -> None:
    async with FakeUpstream({"greeting": ["554 5.3.2 closed"]}) as upstream:
        daemon = make_daemon({"upstreams": {"acme": smtp_upstream(upstream)}})
        await daemon.start()
        await send_one(daemon.port, "app@example.com", "a@example.org")
        log = await daemon.wait_for_log("upstream in trouble")
        assert 5 <= log["next_try_seconds"] <= 6.3
        await daemon.wait_for_event("delivered")
        assert upstream.connections == 2


async def test_without_tls_the_configuration_must_say_so(make_daemon: MakeDaemon) -> None:
    """`tls: none` is the word for it; a login over it is refused by the config check unless that, too, is written."""
    async with FakeUpstream(auth_in_plain=True, users={"relay": PASSWORD}) as upstream:
        section = smtp_upstream(upstream) | {"tls": "required"}
        daemon = make_daemon({"upstreams": {"acme": section}}, constants=QUICK)
        await daemon.start()
        await send_one(daemon.port, "app@example.com", "a@example.org")
        event = await daemon.wait_for_event("deferred")
        assert event["stage"] == "tls" and event["upstream_trouble"]
        assert not upstream.logins and not upstream.mails
        await _reload(daemon, {"upstreams": {"acme": section | {"tls": "opportunistic"}}})
        event = await daemon.wait_for_event("deferred", stage="auth")
        # opportunistic encrypts where it can; a password is never shown without TLS
        assert not upstream.logins and not upstream.mails


async def _reload(daemon: Daemon, config: dict[str, Any]) -> None:
    daemon.write_config(config)
    done = await daemon.cli("reload")
    assert done.code == 0, done.err
