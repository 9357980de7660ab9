"""What came back about a mail that had left: one fact about one recipient, and what became of the fact.

inbound/session.py finds facts in bounces, complaints and auto-replies; inbound/apply.py writes them down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from relayd.core.ids import MessageId
from relayd.core.units import Millis


class FeedbackKind(StrEnum):
    """What the mail that brought the fact was."""

    BOUNCE = "bounce"
    COMPLAINT = "complaint"
    AUTO_REPLY = "auto-reply"
    DELIVERY_REPORT = "delivery-report"
    """Success or delay: delivered, relayed, expanded, delayed (RFC 3464 2.3.3)."""


class Applied(StrEnum):
    """What became of a fact."""

    NEW = "new"
    """It is written, in the segment of its message."""
    DUPLICATE = "duplicate"
    """It was known already: nothing has changed."""
    UNKNOWN = "unknown"
    """There is no such message or recipient (any more): nothing has changed."""


class FactError(Exception):
    """The fact could not be written down now; trying again later may help."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact about recipient `n` of one of our messages."""

    message: MessageId
    n: int
    kind: FeedbackKind
    cls: str
    """Class of core/classes.py."""
    at: Millis
    """When we received it."""
    source: str
    """Digest of the mail that told us: the same mail twice is one fact."""
    action: str = ""
    """RFC 3464 2.3.3: failed, delayed, delivered, relayed, expanded; "" where the mail does not say."""
    hard: bool = False
    status: str = ""
    """RFC 3463 code, like 5.1.1; "" where unknown."""
    reply_code: int | None = None
    """SMTP reply code of the remote system."""
    diagnostic: str = ""
    """The remote system's words, without control characters."""
    remote_mta: str = ""
    recipient: str = ""
    """The address as the report names it; a forwarder's may differ from ours."""
    inbound: str = ""
    """Id, as logs write it, under which the mail that told us is kept."""
    rewritten: bool = False
    """The mail left with a return path of ours (VERP): nobody but us can tell its sender."""

    def to_dict(self) -> dict[str, Any]:
        """For the way to another worker, as JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Fact:
        """What `to_dict` wrote. Raises ValueError for anything else."""
        try:
            fact = cls(**{**values, "kind": FeedbackKind(values["kind"])})
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a fact: {error}") from None
        numbers = (fact.message, fact.n, fact.at)
        texts = (fact.cls, fact.source, fact.action, fact.status, fact.diagnostic, fact.remote_mta, fact.recipient)
        if (
            not all(type(number) is int and 0 <= number < 1 << 63 for number in numbers)
            or not all(type(text) is str for text in (*texts, fact.inbound))
            or type(fact.hard) is not bool
            or type(fact.rewritten) is not bool
            or not (fact.reply_code is None or type(fact.reply_code) is int)
        ):
            raise ValueError("not a fact: a value is of the wrong type")
        return fact
