"""Connecting, TLS, EHLO and AUTH: what fails is the upstream's trouble, and neither mail nor password goes astray."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from relayd.core.lifecycle import OutcomeKind, Stage
from relayd.core.session import ConnectFailedError
from relayd.delivery.smtp import SMTPConnector
from relayd.delivery.tls import ClientContexts
from tests.delivery.upstream.helpers import connector, kinds, outgoing, send, session, short
from tests.support.fake_upstream import (
    DROP,
    RESET,
    SILENCE,
    Action,
    Certificate,
    Drop,
    FakeUpstream,
    Garble,
    Split,
    ca_file,
)

USERS = {"shop": "canary-password"}
CANARIES = ("canary-password", "c2hvcABjYW5hcnktcGFzc3dvcmQ=", "Y2FuYXJ5LXBhc3N3b3Jk", "AHNob3AAY2FuYXJ5LXBhc3N3b3Jk")


async def failure(upstream: FakeUpstream, **overrides: Any) -> ConnectFailedError:
    """Opening fails, as trouble, and tells no secret."""
    with pytest.raises(ConnectFailedError) as caught:
        await connector(upstream, **overrides).open()
    error = caught.value
    assert error.outcome.kind is OutcomeKind.TROUBLE
    assert error.outcome.reply.code >= 400
    for canary in CANARIES:
        assert canary not in f"{error} {error.transcript}"
    assert upstream.mails == []
    return error


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
async def test_login_and_mail_go_over_tls_only(tls: Any) -> None:
    async with FakeUpstream(tls=tls, users=USERS, require_auth=True) as upstream, session(upstream) as opened:
        assert opened.tls == "TLSv1.3"
        assert kinds(await opened.send(outgoing())) == ["delivered"]
        assert (upstream.mails[0].tls, upstream.mails[0].username) == ("TLSv1.3", "shop")
        assert [login.tls for login in upstream.logins] == ["TLSv1.3"]
        seen = opened.seen()
        assert seen.mechanism == "PLAIN"
        assert "organizationName" in seen.certificate["subject"]
        for canary in CANARIES:
            assert canary not in seen.transcript


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5"])
async def test_each_mechanism_logs_in(mechanism: str) -> None:
    async with FakeUpstream(tls="starttls", users={"ü": "pass wörd"}, auth=[mechanism]) as upstream:
        async with session(upstream) as opened:
            assert opened.seen().mechanism == mechanism
        assert [(login.mechanism, login.password) for login in upstream.logins] == [(mechanism, "pass wörd")]


async def test_the_strongest_mechanism_is_tried_first_and_a_refused_one_gives_way() -> None:
    offered = ["LOGIN", "PLAIN", "CRAM-MD5"]
    async with FakeUpstream(tls="starttls", users=USERS, auth=offered) as upstream, session(upstream) as opened:
        assert opened.seen().mechanism == "CRAM-MD5"
    script = {"AUTH": ["535 5.7.8 no such secret", "504 5.5.4 not that one"]}
    async with FakeUpstream(script, tls="starttls", users=USERS, auth=offered) as upstream:
        async with session(upstream) as opened:
            assert opened.seen().mechanism == "LOGIN"
        assert [login.mechanism for login in upstream.logins] == ["CRAM-MD5", "PLAIN", "LOGIN"]


async def test_a_wrong_password_is_shown_once() -> None:
    async with FakeUpstream(tls="starttls", users=USERS) as upstream:
        error = await failure(upstream, password="canary-password2")
        assert (error.outcome.stage, error.outcome.reply.code) == (Stage.AUTH, 535)
        assert len(upstream.logins) == 1


async def test_a_server_that_repeats_the_password_is_not_quoted() -> None:
    script = {"AUTH": "535 5.7.8 canary-password and AHNob3AAY2FuYXJ5LXBhc3N3b3Jk are wrong"}
    async with FakeUpstream(script, tls="starttls", users=USERS) as upstream:
        error = await failure(upstream)
        assert "******** and ******** are wrong" in error.outcome.reply.text


AUTH_TROUBLE: list[tuple[Action, int]] = [
    ("454 4.7.0 later", 454),
    ("534 5.7.9 too weak", 534),
    ("421 4.3.2 bye", 421),
    ("334 more", 451),
    ("250 what", 451),
    (DROP, 451),
    (SILENCE, 451),
    (b"nonsense\r\n", 451),
]


@pytest.mark.parametrize(("action", "code"), AUTH_TROUBLE)
async def test_trouble_with_auth(action: Action, code: int) -> None:
    async with FakeUpstream({"AUTH": action}, tls="starttls", users=USERS, auth=["PLAIN"]) as upstream:
        error = await failure(upstream, timeouts=short("command", silent=action == SILENCE))
        assert error.outcome.stage is Stage.AUTH
        assert error.outcome.reply.code // 100 * 100 == code // 100 * 100
        assert not any(command.startswith("MAIL") for command in upstream.commands)


@pytest.mark.parametrize("auth", [(), ("GSSAPI",)])
async def test_auth_not_offered_never_sends_without(auth: tuple[str, ...]) -> None:
    async with FakeUpstream(tls="starttls", users=USERS, auth=auth) as upstream:
        error = await failure(upstream)
        assert error.outcome.stage is Stage.AUTH
        assert not any(command.startswith(("MAIL", "AUTH")) for command in upstream.commands)


async def test_required_tls_that_is_not_offered_ends_before_anything_is_said() -> None:
    """STARTTLS stripped from the EHLO reply (CVE-2016-0772 and its kin): no credential and no mail."""
    async with FakeUpstream(users=USERS, auth_in_plain=True) as upstream:
        error = await failure(upstream, tls="required", ca_file=ca_file())
        assert (error.outcome.stage, error.outcome.reply.enhanced) == (Stage.TLS, "4.7.0")
        assert upstream.logins == []
        assert [command.split()[0] for command in upstream.commands] == ["EHLO"]


STARTTLS_TROUBLE: list[Action] = [
    "454 4.7.0 not now",
    "502 5.5.1 what",
    "250 what",
    DROP,
    RESET,
    SILENCE,
    b"220",
    Drop("220 go ahead"),
    b"220 go ahead\r\n250 injected\r\n",
    b"220 go ahead\r\n250-inj",
]


@pytest.mark.parametrize("action", STARTTLS_TROUBLE)
async def test_starttls_refused_broken_or_injected(action: Action) -> None:
    """CVE-2021-38371: what a man in the middle appends to the 220 is not taken for the answer to a later command."""
    async with FakeUpstream({"STARTTLS": action}, tls="starttls", users=USERS) as upstream:
        error = await failure(upstream, timeouts=short("tls"))
        assert error.outcome.stage is Stage.TLS
        assert upstream.logins == []


async def test_a_reply_injected_ahead_of_the_handshake_does_not_survive() -> None:
    script = {"STARTTLS": b"220 go ahead\r\n250-fake.test\r\n250 AUTH PLAIN\r\n235 welcome\r\n"}
    async with FakeUpstream(script, tls="starttls", users=USERS, auth=()) as upstream:
        error = await failure(upstream)
        assert error.outcome.reply.enhanced == "4.5.0"


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
@pytest.mark.parametrize("action", [DROP, RESET, SILENCE, Garble(), Garble(b"220 plain\r\n")], ids=repr)
async def test_a_broken_handshake(tls: Any, action: Action) -> None:
    async with FakeUpstream({"handshake": action}, tls=tls, users=USERS) as upstream:
        error = await failure(upstream, timeouts=short("tls"))
        assert error.outcome.stage is Stage.TLS
        assert upstream.logins == []


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
@pytest.mark.parametrize(
    ("certificate", "words"),
    [("expired", "expired"), ("wrong-name", "mismatch"), ("unknown-ca", "issuer certificate")],
)
async def test_a_certificate_that_is_not_to_be_trusted(tls: Any, certificate: Certificate, words: str) -> None:
    async with FakeUpstream(tls=tls, certificate=certificate, users=USERS) as upstream:
        error = await failure(upstream)
        assert (error.outcome.stage, error.outcome.reply.enhanced) == (Stage.TLS, "4.7.5")
        assert words in error.outcome.reply.text
        assert upstream.logins == []


async def test_what_an_upstream_shows_has_no_control_characters() -> None:
    script = {"greeting": b"220 \x1b[31mred\x07\r\n", "EHLO": b"250-x\r\n250 X-\x1bEVIL \x9b\x00y\r\n"}
    async with FakeUpstream(script) as upstream, session(upstream) as opened:
        assert all(ord(letter) >= 32 for letter in str(opened.seen().extensions) + opened.seen().greeting)


async def test_tls_name_is_the_name_that_counts() -> None:
    async with FakeUpstream(tls="starttls", certificate="wrong-name", users=USERS) as upstream:
        assert kinds(await send(upstream, tls_name="elsewhere.test")) == ["delivered"]


async def test_a_missing_ca_file_is_trouble() -> None:
    async with FakeUpstream(tls="starttls", users=USERS) as upstream:
        error = await failure(upstream, ca_file="/nonexistent/ca.pem")
        assert error.outcome.stage is Stage.TLS
        assert upstream.connections == 0


async def test_capabilities_from_before_tls_are_forgotten() -> None:
    """SIZE 1 said in plain must not count once TLS speaks."""
    script = {"EHLO": ["250 fake.test\nSIZE 1\nSTARTTLS\nAUTH PLAIN"]}
    fake = FakeUpstream(script, tls="starttls", extensions=["SIZE 1000000"], users=USERS)
    async with fake as upstream, session(upstream) as opened:
        assert opened.offers.size == 1_000_000


async def test_opportunistic_takes_any_certificate_and_logs_in_over_tls() -> None:
    async with FakeUpstream(tls="starttls", certificate="expired", users=USERS) as upstream:
        assert kinds(await send(upstream, tls="opportunistic", ca_file=None)) == ["delivered"]
        assert upstream.mails[0].tls is not None


async def test_opportunistic_without_starttls_sends_mail_but_no_login() -> None:
    async with FakeUpstream() as upstream:
        assert kinds(await send(upstream, tls="opportunistic")) == ["delivered"]
    async with FakeUpstream(users=USERS, auth_in_plain=True) as upstream:
        error = await failure(upstream, tls="opportunistic")
        assert (error.outcome.stage, upstream.logins) == (Stage.AUTH, [])


async def test_opportunistic_goes_on_in_plain_after_454() -> None:
    async with FakeUpstream({"STARTTLS": "454 4.7.0 not now"}, tls="starttls") as upstream:
        assert kinds(await send(upstream, tls="opportunistic")) == ["delivered"]
        assert upstream.mails[0].tls is None


async def test_tls_none_logs_in_plain_as_the_config_says() -> None:
    async with FakeUpstream(users=USERS, auth_in_plain=True, require_auth=True) as upstream:
        assert kinds(await send(upstream)) == ["delivered"]
        assert [login.tls for login in upstream.logins] == [None]


GREETINGS: list[tuple[Action, int]] = [
    ("554 5.3.2 go away", 554),
    ("421 4.3.2 too many connections", 421),
    ("450 4.3.2 later", 450),
    ("250 what", 451),
    (DROP, 451),
    (RESET, 451),
    (SILENCE, 451),
    (b"HTTP/1.1 400 Bad Request\r\n\r\n", 451),
    (b"220 " + b"x" * 10_000, 451),
]


@pytest.mark.parametrize(("action", "code"), GREETINGS)
async def test_greetings_that_are_none(action: Action, code: int) -> None:
    async with FakeUpstream({"greeting": action}) as upstream:
        error = await failure(upstream, timeouts=short("greeting", silent=action == SILENCE))
        assert error.outcome.stage is Stage.CONNECT
        assert error.outcome.reply.code == code or error.outcome.reply.code // 100 == code // 100


@pytest.mark.parametrize("action", ["550 5.7.1 no", "421 4.3.2 bye", DROP, SILENCE, b"250-a\r\n" * 300, b"\r\n"])
async def test_ehlo_refused(action: Action) -> None:
    async with FakeUpstream({"EHLO": action}) as upstream:
        error = await failure(upstream, timeouts=short("command", silent=action == SILENCE))
        assert error.outcome.stage is Stage.EHLO


async def test_helo_where_nothing_of_ehlo_is_needed() -> None:
    async with FakeUpstream({"EHLO": "502 5.5.1 what"}) as upstream:
        assert kinds(await send(upstream)) == ["delivered"]
        assert upstream.commands[1] == "HELO relay.test"


@pytest.mark.parametrize("tls", ["none", "starttls"])
async def test_a_long_greeting_in_single_octets_is_no_fault(tls: Any) -> None:
    async with FakeUpstream({"greeting": Split("220 fake.test\nwelcome\nhere")}, tls=tls) as upstream:
        assert kinds(await send(upstream)) == ["delivered"]


async def test_the_name_in_ehlo_is_ours_or_the_upstreams_for_us() -> None:
    async with FakeUpstream() as upstream:
        await send(upstream)
        await send(upstream, hostname="other.test")
        assert [command for command in upstream.commands if command.startswith("EHLO")] == [
            "EHLO relay.test",
            "EHLO other.test",
        ]


async def test_nobody_listening_and_a_name_that_does_not_resolve() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        upstream = FakeUpstream()
        upstream.port = taken.getsockname()[1]
        error = await failure(upstream)
        assert (error.outcome.stage, error.outcome.reply.enhanced) == (Stage.CONNECT, "4.4.1")
        assert error.endpoint == f"127.0.0.1:{upstream.port}"
        error = await failure(upstream, host="no-such-host.invalid")
        assert error.outcome.reply.enhanced in ("4.4.3", "4.4.1", "4.4.2")


async def test_the_second_address_is_tried_when_the_first_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    async with FakeUpstream() as upstream:
        import asyncio

        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo("127.0.0.1", upstream.port, type=socket.SOCK_STREAM)
        dead = [(*info[:4], ("127.0.0.9", upstream.port)) for info in found]

        async def two(*_args: object, **_kwargs: object) -> list[Any]:
            return [*dead, *found]

        with monkeypatch.context() as patch:
            if hasattr(loop, "__dict__"):
                patch.setattr(loop, "getaddrinfo", two)
            assert kinds(await send(upstream)) == ["delivered"]


async def test_contexts_are_made_once() -> None:
    contexts = ClientContexts()
    async with FakeUpstream(tls="starttls") as upstream:
        first = await contexts.get(upstream.config())
        assert await contexts.get(upstream.config()) is first
        assert await contexts.get(upstream.config(tls="opportunistic", ca_file=None)) is not first
        opened = await SMTPConnector("x", upstream.config(), "relay.test", contexts).open()
        await opened.close()
