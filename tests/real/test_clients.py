"""The main job, with nothing of ours around relayd: real clients, an upstream with TLS and login, real verifiers."""

from __future__ import annotations

import asyncio
import smtplib
import ssl
import uuid

import pytest

from tests.real.checks import assert_signed, parsed
from tests.real.conftest import DOMAIN, SELECTORS, way_in
from tests.support import clients
from tests.support.capture import Captured
from tests.support.clients import CLIENTS, Letter, Way
from tests.support.daemon import Daemon
from tests.support.dns import ZoneServer
from tests.support.postfix import Postfix

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROUTES = dict(zip(CLIENTS, ("smtps", "submission", "alternative", "submission", "smtps"), strict=True))
"""Which way to Postfix each client's mail takes, so that all three are gone."""


async def arrival(postfix: Postfix, recipient: str) -> Captured:
    """The mail to this recipient, once it came out behind Postfix."""
    [mail] = await asyncio.to_thread(
        postfix.capture.wait_for, lambda mail: any(recipient in rcpt for rcpt in mail.rcpts)
    )
    return mail


@pytest.mark.parametrize("listener", ["submission", "local"])
@pytest.mark.parametrize("name", CLIENTS)
async def test_client(name: str, listener: str, relay: Daemon, postfix: Postfix, dns: ZoneServer) -> None:
    reason = clients.why_not(name)
    if reason:
        pytest.skip(reason)
    way = way_in(relay, listener, postfix)
    letter = Letter(f"app@{ROUTES[name]}.{DOMAIN}", f"{uuid.uuid4()}@example.org")
    done = await asyncio.to_thread(CLIENTS[name], way, letter)
    assert done.status == 0, done.output

    event = await relay.wait_for_event("delivered", recipient=letter.recipient)
    assert event["upstream"] == ROUTES[name]
    mail = await arrival(postfix, letter.recipient)
    message = parsed(mail.content)
    assert message["Subject"] == letter.subject
    assert message["From"] == letter.sender
    assert str(message.get_content()).strip() == letter.text
    for field in ("Date", "Message-ID"):
        assert len(message.get_all(field) or []) == 1
    by_postfix, by_relayd = (" ".join(field.split()) for field in message.get_all("Received") or [])
    assert "(Postfix) with ESMTPSA" in by_postfix
    word = "UTF8SMTP" if clients.says_smtputf8(name) else "ESMTP"
    expected = f"with {word}SA (TLSv1.3)" if listener == "submission" else f"with {word} id"
    assert f"(relayd {listener}) {expected}" in by_relayd
    assert_signed(mail.content, DOMAIN, SELECTORS, dns)


PATHS = [
    (listener, ipv6, route)
    for listener in ("submission", "smtps", "local")
    for ipv6 in (False, True)
    for route in ("smtps", "submission", "alternative")
]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: f"{path[0]}-ipv{6 if path[1] else 4}-{path[2]}")
async def test_every_door_and_every_way(
    path: tuple[str, bool, str], relay: Daemon, postfix: Postfix, dns: ZoneServer
) -> None:
    listener, ipv6, route = path
    recipient = f"{uuid.uuid4()}@example.org"
    sender = f"app@{route}.{DOMAIN}"
    content = (
        f"From: App <{sender}>\r\nTo: {recipient}\r\nSubject: =?iso-2022-jp?b?GyRCJDRDbUo4GyhC?=\r\n"
        "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=iso-2022-jp\r\n\r\n"
    ).encode() + "ご注文ありがとうございます。\r\n.\r\n..two dots \t \r\n\r\n\r\n".encode("iso-2022-jp")
    await asyncio.to_thread(submit, way_in(relay, listener, postfix, ipv6=ipv6), listener, sender, recipient, content)
    mail = await arrival(postfix, recipient)
    assert mail.content.endswith(content)
    assert_signed(mail.content, DOMAIN, SELECTORS, dns)
    literal = "[IPv6:::1]" if ipv6 else "[127.0.0.1]"
    assert literal in (parsed(mail.content).get_all("Received") or [])[1]


def submit(way: Way, listener: str, sender: str, recipient: str, content: bytes) -> None:
    """By the standard library's client, which changes no octet that is well-formed."""
    context = ssl.create_default_context(cafile=way.ca_file) if way.ca_file else None
    if listener == "smtps":
        client: smtplib.SMTP = smtplib.SMTP_SSL(way.host, way.port, context=context, timeout=30)
    else:
        client = smtplib.SMTP(way.host, way.port, timeout=30)
    with client:
        if listener == "submission":
            client.starttls(context=context)
        if way.username:
            client.login(way.username, way.password)
        client.sendmail(sender, [recipient], content)
