"""A scriptable Door: says what it is told to, remembers what it was asked. For tests of listeners."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pydantic import SecretStr

from relayd.config.models import Credential
from relayd.core.mail import Envelope, Recipient
from relayd.core.reply import Reply
from relayd.intake.memory import MemoryBudget
from relayd.intake.session import ClientSession
from relayd.spool.company import Company
from relayd.spool.joining import Joiner

KEPT = Reply(250, "2.0.0", "Kept as 0000000000000")


def known(session: ClientSession) -> Reply | None:
    """For `on_connect`: the client comes from a network that may send."""
    session.network = "home"
    return None


WRONG_LOGIN = Reply(535, "5.7.8", "Authentication failed")


@dataclass(frozen=True)
class Submission:
    """One message that was submitted, with what was known about the client at that moment."""

    envelope: Envelope
    recipients: tuple[Recipient, ...]
    content: bytes
    peer: str
    helo: str
    esmtp: bool
    tls: str | None
    username: str | None


@dataclass
class FakeDoor:
    """Takes everything, unless told otherwise by the attributes named on_…"""

    memory: MemoryBudget = field(default_factory=lambda: MemoryBudget(64 * 1024**2))
    joiner: Joiner = field(default_factory=Joiner)
    company: Company = field(default_factory=Company)
    logins: dict[str, str] = field(default_factory=dict)
    on_connect: Callable[[ClientSession], Reply | None] = lambda session: None
    on_mail: Callable[[Envelope, int], Reply | None] = lambda envelope, size: None
    on_rcpt: Callable[[Recipient, int], Reply | None] = lambda recipient, count: None
    on_submit: Callable[[bytes], Reply] = lambda content: KEPT
    gate: asyncio.Event | None = None
    """When set: submit waits for it, as for a slow disk."""

    connects: list[str] = field(default_factory=list)
    attempts: list[tuple[str, str]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    submissions: list[Submission] = field(default_factory=list)
    waiting: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while a submission waits for the gate."""

    def connect(self, session: ClientSession) -> Reply | None:
        self.connects.append(str(session.peer))
        return self.on_connect(session)

    async def authenticate(self, session: ClientSession, username: str, password: str) -> Reply:
        await asyncio.sleep(0)
        self.attempts.append((username, password))
        if self.logins.get(username) != password:
            return WRONG_LOGIN
        session.credential = Credential(username=username, password=SecretStr("$argon2id$x"))
        return Reply(235, "2.7.0", "Welcome")

    def mail(self, session: ClientSession, envelope: Envelope, size: int) -> Reply | None:
        self.sizes.append(size)
        return self.on_mail(envelope, size)

    def rcpt(self, session: ClientSession, envelope: Envelope, recipient: Recipient, count: int) -> Reply | None:
        return self.on_rcpt(recipient, count)

    async def submit(
        self,
        session: ClientSession,
        envelope: Envelope,
        recipients: Sequence[Recipient],
        content: bytes,
        rest: list[bytes] | None = None,
    ) -> Reply:
        content += b"".join(rest or ())
        if self.gate is not None:
            self.waiting.set()
            await self.gate.wait()
        reply = self.on_submit(content)
        if reply.positive:
            username = session.credential.username if session.credential else None
            submission = Submission(
                envelope,
                tuple(recipients),
                content,
                str(session.peer),
                session.helo,
                session.esmtp,
                session.tls,
                username,
            )
            self.submissions.append(submission)
        return reply
