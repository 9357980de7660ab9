"""Events: one fact in a recipient's history. Written in the transaction that made it true, read by all who report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from relayd.core.ids import MessageId
from relayd.core.quick import quick
from relayd.core.units import Millis


class EventKind(StrEnum):
    """What happened to a recipient."""

    ACCEPTED = "accepted"
    DEFERRED = "deferred"
    DELIVERED = "delivered"
    BOUNCED = "bounced"
    EXPIRED = "expired"
    SUPPRESSED = "suppressed"
    HELD = "held"
    RELEASED = "released"
    UNCERTAIN = "uncertain"
    DELAYED = "delayed"
    """A delay notice went to the sender."""
    RETRIED = "retried"
    """An operator asked for an attempt at once."""
    DELETED = "deleted"
    MOVED = "moved"
    """The routes, looked at again, chose another upstream."""
    POSTPONED = "postponed"
    """A system behind the upstream reported that it cannot deliver yet."""
    NOTED = "noted"
    """A failure was reported of a recipient that had ended already: nothing changes."""
    COMPLAINED = "complained"
    """The recipient reported the mail as spam."""
    REPLIED = "replied"
    """The recipient's system answered automatically."""
    CONFIRMED = "confirmed"
    """A system behind the upstream reported success."""


@quick
@dataclass(frozen=True, slots=True)
class Event:
    """One fact about one recipient (`n`: its place among the message's recipients, from 0).

    `detail` holds only str, int, float, bool and None: upstream, stage, reply, class, attempt, due, reason, by …
    """

    at: Millis
    message: MessageId
    n: int
    kind: EventKind
    recipient: str
    sender: str = ""
    detail: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)
