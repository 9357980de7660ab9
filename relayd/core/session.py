"""The seam between the dispatcher and whatever carries mail: one session takes one message at a time.

delivery/smtp.py, delivery/sandbox.py and inbound/session.py implement it; they report facts (outcomes), policy is
core/lifecycle.py's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from relayd.core.lifecycle import Outcome, OutcomeKind, Stage
from relayd.core.mail import Envelope, Recipient
from relayd.core.quick import quick


@quick
@dataclass(frozen=True, slots=True)
class Outgoing:
    """One transaction to make: final, signed content and the recipients that share it."""

    id: str
    """The message id as written in logs."""
    envelope: Envelope
    recipients: tuple[Recipient, ...]
    content: bytes
    front: bytes = b""
    """Whole header fields that go in front of a big content, CRLF included: together they would be a second copy."""


@quick
@dataclass(frozen=True, slots=True)
class Sent:
    """What became of it, one outcome for each recipient, in their order."""

    outcomes: tuple[Outcome, ...]
    stage: Stage
    """How far the dialogue came."""
    reply: str
    """The reply that decided, for the attempt's record."""
    transcript: str | None
    """The dialogue without secrets and without content; only when some recipient was not delivered."""
    dsn: bool
    """The upstream offered DSN (RFC 3461) and took over the duty to report success."""


_DELIVERED = OutcomeKind.DELIVERED  # a member is looked up by a function of its class each time


def all_delivered(outcomes: Iterable[Outcome]) -> bool:
    """The upstream has taken it for every recipient, as it nearly always does."""
    for outcome in outcomes:  # noqa: SIM110 - asked several times for each mail: all() and its generator cost thrice that
        if outcome.kind is not _DELIVERED:
            return False
    return True


class ConnectFailedError(Exception):
    """No usable session: name resolution, TCP, TLS, greeting, EHLO or AUTH failed. `outcome.kind` is TROUBLE."""

    def __init__(self, outcome: Outcome, transcript: str, endpoint: str) -> None:
        super().__init__(str(outcome.reply))
        self.outcome = outcome
        self.transcript = transcript
        self.endpoint = endpoint


class Session(Protocol):
    """An open, authenticated connection. Used by one coroutine at a time."""

    endpoint: str
    """host:port"""
    tls: str | None
    """TLS version, like "TLSv1.3"."""
    in_doubt: Sent | None
    """What a `send` leaves that was cancelled behind the final dot: the mail may have arrived. None: it has not."""

    @property
    def usable(self) -> bool:
        """Another message can be sent through it (not closed, not 421, within messages_per_connection)."""

    async def send(self, mail: Outgoing) -> Sent:
        """Make the transaction. Never raises for what the upstream does; cancellation closes the session."""

    async def probe(self) -> bool:
        """RSET or NOOP after idleness: is the upstream still there? Closes the session when not."""

    async def close(self) -> None:
        """QUIT where possible, and close. Never raises."""


class Connector(Protocol):
    """Opens sessions to one upstream."""

    async def open(self) -> Session:
        """Connect, secure, greet, log in. Raises ConnectFailedError."""
