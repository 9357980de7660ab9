"""The far end of the lane "@inbound": a mail that came back is read, and what it says is handed to those it concerns.

To the dispatcher it is a session like any other: what cannot be done now is deferred and tried again.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable

from relayd.core import headers
from relayd.core.bounce.verdict import Action, Findings, Kind, Verdict
from relayd.core.classes import ReplyClass
from relayd.core.feedback import Applied, Fact, FactError, FeedbackKind
from relayd.core.ids import parse_id, time_of
from relayd.core.lifecycle import Outcome, OutcomeKind, Stage
from relayd.core.mail import INBOUND
from relayd.core.reply import Reply
from relayd.core.session import Outgoing, Sent
from relayd.core.units import Millis
from relayd.inbound.archive import Archive
from relayd.inbound.filing import Filing, FilingError
from relayd.inbound.match import Match, Matcher
from relayd.inbound.observer import InboundObserver

LARGE = 32 * 1024
"""Octets from which a mail is read off the loop."""

_KINDS = {
    Kind.BOUNCE: FeedbackKind.BOUNCE,
    Kind.COMPLAINT: FeedbackKind.COMPLAINT,
    Kind.AUTO_REPLY: FeedbackKind.AUTO_REPLY,
    Kind.DELIVERY_REPORT: FeedbackKind.DELIVERY_REPORT,
}


class InboundConnector:
    """Opens sessions; there is nothing to connect to."""

    def __init__(
        self,
        examine: Callable[[bytes], Findings],
        matcher: Matcher,
        archive: Archive,
        filing: Filing,
        observer: InboundObserver,
    ) -> None:
        self.examine = examine
        self.matcher = matcher
        self.archive = archive
        self.filing = filing
        self.observer = observer

    async def open(self) -> InboundSession:
        """A session."""
        return InboundSession(self)


class InboundSession:
    """See core/session.py for the contract."""

    def __init__(self, connector: InboundConnector) -> None:
        self.endpoint = INBOUND
        self.tls: str | None = None
        self.sent = 0
        self.in_doubt: Sent | None = None
        self._connector = connector
        self._open = True

    @property
    def usable(self) -> bool:
        """Until it is closed."""
        return self._open

    async def probe(self) -> bool:
        """It does not go away."""
        return self._open

    async def close(self) -> None:
        """Nothing is held."""
        self._open = False

    async def send(self, mail: Outgoing) -> Sent:
        """Read the mail, hand on what it says, or file it. All of it is done again where a part could not be."""
        self.sent += 1
        try:
            reply = Reply(250, "2.0.0", await self._process(mail))
            outcome = Outcome(OutcomeKind.DELIVERED, Stage.LOCAL, reply, ReplyClass.DELIVERED.value)
        except (FactError, FilingError) as error:
            reply = Reply(451, "4.3.0", str(error))
            outcome = Outcome(OutcomeKind.DEFERRED, Stage.LOCAL, reply, ReplyClass.SYSTEM_ERROR.value)
        return Sent((outcome,) * len(mail.recipients), Stage.LOCAL, str(reply), None, dsn=False)

    async def _process(self, mail: Outgoing) -> str:
        """What was made of it, in a few words."""
        connector = self._connector
        content = mail.content
        if len(content) < LARGE:
            findings = connector.examine(content)
        else:
            findings = await asyncio.to_thread(connector.examine, content)
        matches = await connector.matcher.match(mail, findings)
        done = []
        for fact in _facts(mail, matches):
            done.append((fact.kind, await connector.archive.apply(fact)))
        known = any(applied is not Applied.UNKNOWN for _, applied in done)
        if not known:
            await connector.filing.file(mail)
            connector.observer.filed()
            if findings.kind is not Kind.NOT_A_REPORT:
                connector.observer.unmatched(findings.kind.value)
        connector.observer.read(findings.kind.value)
        for kind, applied in done:
            connector.observer.fact(kind, applied)
        what = ", ".join(applied.value for _, applied in done) or "about no mail of ours"
        return f"Read as {findings.kind.value} ({what})" if known else f"Filed: {findings.kind.value}"


def _facts(mail: Outgoing, matches: list[Match]) -> list[Fact]:
    source, at = digest(mail.content), time_of(parse_id(mail.id))
    return [_fact(match, match.verdict, source=source, at=at, inbound=mail.id) for match in matches]


def _fact(match: Match, verdict: Verdict, *, source: str, at: Millis, inbound: str) -> Fact:
    return Fact(
        message=match.message,
        n=match.n,
        kind=_KINDS[verdict.kind],
        cls=verdict.cls.value,
        at=at,
        source=source,
        action=verdict.action.value if verdict.action is not Action.NONE else "",
        hard=verdict.hard,
        status=verdict.status,
        reply_code=verdict.reply_code,
        diagnostic=verdict.diagnostic,
        remote_mta=verdict.remote_mta,
        recipient=verdict.recipient,
        inbound=inbound,
        rewritten=match.signed,
    )


def digest(content: bytes) -> str:
    """The same for one mail however often and by whatever way it comes: trace fields in front of it differ."""
    block = headers.scan(content)
    hashed = hashlib.sha256()
    for name, start, end in block.fields:
        if name in (b"message-id", b"date", b"from", b"subject"):
            hashed.update(content[start:end].strip() + b"\0")
    hashed.update(b"\0" + content[block.body :].rstrip())
    return hashed.hexdigest()[:32]
