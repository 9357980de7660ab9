"""What was accepted: envelope, recipients, origin and message, as frozen values.

They hold what the client said; what became of it is in lifecycle.py and event.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from relayd.core.ids import MessageId
from relayd.core.quick import quick
from relayd.core.units import Millis

INBOUND = "@inbound"
"""The lane of mail that came back: it is read here and goes nowhere. No upstream can have this name."""


def upstream_of(lane: str) -> str:
    """The upstream that a lane waits for: each of its accounts has a lane of its own, UPSTREAM/ACCOUNT."""
    return lane.partition("/")[0]


class Body(StrEnum):
    """The BODY parameter of MAIL (RFC 6152)."""

    SEVEN_BIT = "7BIT"
    EIGHT_BIT_MIME = "8BITMIME"


class Ret(StrEnum):
    """How much of the message a failure report returns (RFC 3461 4.3)."""

    FULL = "FULL"
    HDRS = "HDRS"


class Notify(StrEnum):
    """When a report about a recipient is wanted (RFC 3461 4.1). An absent parameter is the empty set."""

    NEVER = "NEVER"
    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"
    DELAY = "DELAY"


@quick
@dataclass(frozen=True, slots=True)
class Recipient:
    """One RCPT: the address (without angle brackets), and its RFC 3461 parameters as they came."""

    address: str
    notify: frozenset[Notify] = frozenset()
    orcpt: str | None = None


@quick
@dataclass(frozen=True, slots=True)
class Envelope:
    """MAIL and its parameters. `sender` is "" for the null reverse-path."""

    sender: str
    body: Body = Body.SEVEN_BIT
    smtputf8: bool = False
    ret: Ret | None = None
    envid: str | None = None


@quick
@dataclass(frozen=True, slots=True)
class Origin:
    """Where a message came from: what admission knew and the Received header tells."""

    listener: str
    peer: str
    """The client's IP address, behind PROXY or XCLIENT the one they name."""
    helo: str = ""
    credential: str | None = None
    network: str | None = None
    """The named source allowlist that let the client in."""
    tls: str | None = None
    """TLS version, like "TLSv1.3"; None for a plain connection."""
    protocol: str = "ESMTP"
    """The WITH word of Received (RFC 3848): ESMTP, ESMTPS, ESMTPA, ESMTPSA, UTF8SMTPSA …"""
    inbound: bool = False
    """It came back to us (lane `INBOUND`): it is never signed, routed or reported about."""


@quick
@dataclass(frozen=True, slots=True)
class Message:
    """A message as the spool keeps it; its content (octets) travels and is stored beside it."""

    id: MessageId
    accepted_at: Millis
    envelope: Envelope
    origin: Origin
    size: int
    """Octets of the kept content, our own headers included."""
    from_domain: str = ""
    """Domain of the first From address (A-labels, lower case): the DKIM key is chosen by it."""
    message_id: str = ""
    """The Message-ID header's value, angle brackets included."""
    subject: str = ""
    """The decoded Subject, at most 200 characters: for people who search, never for decisions."""
    campaign: str | None = None
    priority: int = 0
    labels: dict[str, str] = field(default_factory=dict)
    """Header values that routes match on (lower-case name → value), kept so that routing never re-reads content."""
