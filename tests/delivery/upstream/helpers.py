"""One mail to try things with, and the way to a session."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from relayd.core.mail import Envelope, Recipient
from relayd.core.session import Outgoing, Sent
from relayd.delivery.smtp import SMTPConnector, SMTPSession
from relayd.delivery.tls import ClientContexts
from tests.support.fake_upstream import FakeUpstream

CONTENT = b"From: a@example.com\r\nSubject: hello\r\n\r\nHello.\r\n"


def short(stage: str, *, silent: bool = True) -> dict[str, float]:
    """Time-outs for tests of silence: only the one that is tried is short, and a slow machine changes no outcome.

    `command` covers several replies; those before the silent one need their time. Where something is said after all
    (not `silent`), all are long: what is said late would be taken for silence.
    """
    long = dict.fromkeys(("connect", "tls", "greeting", "command", "data", "dot"), 30.0)
    return long | ({stage: 1.0 if stage == "command" else 0.2} if silent else {})


def outgoing(
    *recipients: str | Recipient, content: bytes = CONTENT, envelope: Envelope | None = None, ident: str = "m1"
) -> Outgoing:
    """A mail, to one recipient unless said otherwise."""
    named = tuple(Recipient(one) if isinstance(one, str) else one for one in recipients or ("b@example.net",))
    return Outgoing(ident, envelope or Envelope("a@example.com"), named, content)


def connector(upstream: FakeUpstream, **overrides: Any) -> SMTPConnector:
    """A connector to the fake upstream."""
    return SMTPConnector("fake", upstream.config(**overrides), "relay.test", ClientContexts())


@asynccontextmanager
async def session(upstream: FakeUpstream, **overrides: Any) -> AsyncIterator[SMTPSession]:
    """An open session, closed at the end."""
    opened = await connector(upstream, **overrides).open()
    try:
        yield opened
    finally:
        await opened.close()


async def send(upstream: FakeUpstream, mail: Outgoing | None = None, **overrides: Any) -> Sent:
    """One mail over a session of its own."""
    async with session(upstream, **overrides) as opened:
        return await opened.send(mail or outgoing())


def kinds(sent: Sent) -> Sequence[str]:
    """The outcomes' kinds, as words."""
    return [outcome.kind.value for outcome in sent.outcomes]


def codes(sent: Sent) -> Sequence[str]:
    """The outcomes' codes, as in 550 5.1.1."""
    return [f"{outcome.reply.code} {outcome.reply.enhanced}" for outcome in sent.outcomes]
