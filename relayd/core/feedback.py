"""What came back about a mail, as one value: a bounce, complaint, auto-reply or delivery report about one recipient.

inbound/ finds and reads it, lifecycle.py says what it changes, inbound/apply.py writes that down.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from relayd.core.ids import MessageId
from relayd.core.units import Millis


class FactKind(StrEnum):
    """What sort of mail it was."""

    BOUNCE = "bounce"
    COMPLAINT = "complaint"
    AUTO_REPLY = "auto-reply"
    DELIVERY_REPORT = "delivery-report"
    """Tells of success (RFC 3464: delivered, relayed, expanded)."""


class Action(StrEnum):
    """RFC 3464 2.3.3."""

    FAILED = "failed"
    DELAYED = "delayed"
    DELIVERED = "delivered"
    RELAYED = "relayed"
    EXPANDED = "expanded"


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that became known about one recipient after the mail had left us."""

    message: MessageId | None
    """None: it names no mail of ours."""
    n: int | None
    """The recipient's place in the message; None where only its address is known."""
    kind: FactKind
    cls: str
    """Class of core/classes.py."""
    action: Action | None
    """None where the report does not say."""
    hard: bool
    """The address will not work again by itself."""
    status: str
    """RFC 3463 code; "" where there is none."""
    diagnostic: str
    """The other side's words, one line, without control characters."""
    digest: str
    """Of the mail that told it, in hexadecimal digits: two facts of one digest come from one mail."""
    at: Millis
    """When we learned it."""
    recipient: str = ""
    """The address that the report names; it may not be the one that was mailed (forwarding)."""
    remote_mta: str = ""
    """Host name of the system that the report is about; "" where it does not say."""
    rewritten: bool = False
    """The mail left with a return path of ours (VERP): nobody but us has told its sender."""
