"""Makes what is kept of what was received: our headers added, the message's facts read, a lane for each recipient.

Clock reading, id and routing are given. Keeping it and handing it on is intake.py's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeVar

from relayd.config.models import Config, Role
from relayd.core import headers
from relayd.core.headers import HeaderFacts
from relayd.core.ids import MessageId, format_id
from relayd.core.lifecycle import State
from relayd.core.mail import Envelope, Message, Origin, Recipient
from relayd.core.quick import quick
from relayd.core.units import Millis
from relayd.intake.cidr import Peer
from relayd.intake.session import ClientSession
from relayd.intake.urgency import RoutePriority, Urgency
from relayd.spool.joining import Joiner
from relayd.spool.store import Delivery, Waiting

HEADER_MAX = 1024**2
"""Octets of a header at most."""
_NEAR = 64 * 1024
"""Octets in which nearly every header ends, and which are joined without a thought."""
_EMPTY_LINE = b"\r\n\r\n"
_T = TypeVar("_T")


@quick
@dataclass(frozen=True, slots=True)
class Kept:
    """What is written to the spool."""

    message: Message
    id_text: str
    waiting: tuple[Waiting, ...]
    """Recipients that no route fits have lane ""."""
    content: bytes


def protocol_word(session: ClientSession, *, smtputf8: bool) -> str:
    """The WITH word of Received (RFC 3848, RFC 6531 4.3). TLS and AUTH have words with EHLO only, so they imply it."""
    if not (session.esmtp or session.tls or session.credential):
        return "SMTP"
    return (
        ("UTF8SMTP" if smtputf8 else "ESMTP")
        + ("S" if session.tls is not None else "")
        + ("A" if session.credential is not None else "")
    )


@lru_cache(maxsize=1024)
def _text_of(peer: Peer) -> str:
    # writing an address out costs more than all else in an origin, and clients come again
    return str(peer)


def origin_of(session: ClientSession, envelope: Envelope) -> Origin:
    """Where a message of this session comes from."""
    helo, credential = session.helo, session.credential
    return Origin(
        session.listener.name,
        _text_of(session.peer),
        helo if helo.isprintable() else "",
        None if credential is None else credential.username,
        session.network,
        session.tls,
        protocol_word(session, smtputf8=envelope.smtputf8),
        session.listener.role is Role.INBOUND,
    )


class Preparer:
    """What a configuration says about preparing messages, made ready for the hot path."""

    def __init__(
        self,
        config: Config,
        lane_of: Callable[[Message, Recipient], str | None],
        priority_of: RoutePriority | None,
        joiner: Joiner,
    ) -> None:
        """`priority_of` is what the route of a recipient says."""
        self._lane_of = lane_of
        self._joiner = joiner
        self._one_apart = asyncio.Lock()
        self._hostname = config.hostname
        self._campaign = config.campaign_header
        self._urgency = Urgency(config, priority_of)
        self._drop = tuple(name for name in (config.campaign_header, config.priority_header) if name)
        self._routed_by = {name.lower() for route in config.routes if route.match for name in route.match.header or ()}
        self._labels = tuple(self._routed_by | {self._urgency.header})

    def facts(self, content: bytes) -> HeaderFacts:
        """What relayd wants to know of a header."""
        return headers.facts(content, self._campaign, self._labels)

    async def facts_of(self, content: bytes) -> HeaderFacts | None:
        """The same, in a thread where the header is long: line by line, one of a MiB takes an eighth of a second.

        None for one of more than HEADER_MAX octets: its fields would take forty times as much memory.
        """
        return self.facts(content) if headers.is_short(content) else await self._apart(self._far_facts, content)

    async def _apart(self, work: Callable[..., _T], *args: object, **others: object) -> _T:
        """In a thread, one at a time: several at once would keep the interpreter from the loop in turns."""
        async with self._one_apart:
            return await asyncio.to_thread(work, *args, **others)

    def _far_facts(self, content: bytes) -> HeaderFacts | None:
        if len(content) > HEADER_MAX:
            lines = content[: content.rfind(b"\r\n", 0, HEADER_MAX) + 2]
            if headers.scan(lines).end == len(lines):
                return None
        return self.facts(content)

    async def with_header(self, content: bytes, rest: list[bytes]) -> bytes:
        """The beginning of a big message with its whole header, taken off `rest`: a header is read in one piece.

        Where the first empty line is not near, that is all of it.
        """
        while rest and len(content) < _NEAR and _EMPTY_LINE not in content:
            content += rest.pop(0)
        if rest and _EMPTY_LINE not in content:
            pieces = [content, *rest]
            rest.clear()
            content = await self._joiner.joined(pieces)
        return content

    async def prepare(
        self,
        *,
        number: MessageId,
        now: Millis,
        origin: Origin,
        envelope: Envelope,
        recipients: Sequence[Recipient],
        content: bytes,
        facts: HeaderFacts,
        trace: bool,
        rest: list[bytes] | None = None,
    ) -> Kept:
        """Put Received (with `trace`), and Date and Message-ID where missing, in front; drop the headers meant for us.

        What came back to us is kept as it came, behind our Received: it goes nowhere. `content` holds the header
        (`with_header`), `rest` what follows it, if anything does; it is empty afterwards.
        """
        id_text = format_id(number)
        front = b""
        if trace:
            # an address beyond ASCII would make a header that not every upstream takes, for a clause that nobody needs
            alone = recipients[0].address if len(recipients) == 1 and recipients[0].address.isascii() else None
            front = headers.received(origin, hostname=self._hostname, id_text=id_text, at=now, recipient=alone)
        message_id = facts.message_id
        if not facts.has_date and not origin.inbound:
            front += headers.date_header(now)
        if not facts.has_message_id and not origin.inbound:
            front += headers.message_id_header(id_text, self._hostname)
            message_id = f"<{id_text}@{self._hostname}>"
        drop = () if origin.inbound else self._drop
        # the fields that are dropped are those that facts looks for
        pieces: list[bytes | memoryview] = [front, content]
        if not (facts.plain and front):
            pieces = await self._assembly(content, front, drop)
        if rest:
            pieces += rest
            rest.clear()
        kept = await self._joiner.joined(pieces)
        message = Message(
            number,
            now,
            envelope,
            origin,
            len(kept),
            facts.from_domain,
            message_id,
            facts.subject,
            facts.campaign,
            labels=self._kept_labels(facts),
        )
        header = facts.labels.get(self._urgency.header) if not origin.inbound else None
        urgency = self._urgency.of(message, header, recipients)
        if urgency:
            message = replace(message, priority=urgency)
        return Kept(message, id_text, tuple(self._waiting(message, recipients, now)), kept)

    async def _assembly(self, content: bytes, front: bytes, drop: Sequence[str]) -> list[bytes | memoryview]:
        if not front and not drop:
            return [content]
        if headers.is_short(content):
            return headers.assembly(content, prepend=front, drop=drop)
        return await self._apart(headers.assembly, content, prepend=front, drop=drop)

    def _kept_labels(self, facts: HeaderFacts) -> dict[str, str]:
        """The headers that routes look at."""
        if not facts.labels:
            return {}
        return {name: value for name, value in facts.labels.items() if name in self._routed_by}

    def _waiting(self, message: Message, recipients: Sequence[Recipient], now: Millis) -> list[Waiting]:
        lane_of, waiting = self._lane_of, []
        for n, given in enumerate(recipients):
            recipient = given
            if "@" not in given.address:  # postmaster, the one such that admission lets through
                recipient = replace(given, address=f"{given.address}@{self._hostname}")
            lane = lane_of(message, recipient) or ""
            waiting.append(Waiting(n, recipient, lane, State.QUEUED, 0, now))
        return waiting


def deliveries(kept: Kept) -> list[Delivery]:
    """One delivery for each lane. What has no lane waits on disk only."""
    first = kept.waiting[0].lane
    if len(kept.waiting) == 1 or all(waiting.lane == first for waiting in kept.waiting):
        return [Delivery(kept.message, kept.waiting, kept.content)] if first else []
    lanes: dict[str, list[Waiting]] = {}
    for waiting in kept.waiting:
        lanes.setdefault(waiting.lane, []).append(waiting)
    return [Delivery(kept.message, tuple(group), kept.content) for lane, group in lanes.items() if lane]
