"""Builders of mail values with sensible defaults, for tests of any part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from relayd.core.event import Event, EventKind
from relayd.core.ids import IdMint, MessageId, time_of
from relayd.core.lifecycle import Stage, State
from relayd.core.mail import Envelope, Message, Origin, Recipient
from relayd.core.units import Millis
from relayd.spool.store import Attempt, Change, Notice, Settlement, Waiting
from tests.support.clock import START

NOW: Millis = START
"""Where tests' clocks begin."""

CONTENT = (
    b"From: Shop <shop@example.com>\r\nTo: someone@example.org\r\nSubject: Your order\r\n"
    b"Message-ID: <1@example.com>\r\nDate: Sun, 22 Nov 2026 01:00:00 +0000\r\n\r\nThank you.\r\n"
)

_MINT = IdMint(0)


def make_message(
    id: MessageId | None = None,
    *,
    sender: str = "shop@example.com",
    content: bytes = CONTENT,
    envelope: Envelope | None = None,
    origin: Origin | None = None,
    **others: Any,
) -> Message:
    """A message accepted when its id says. Without an id: of slot 0 at NOW."""
    number = _MINT.next(NOW) if id is None else id
    others.setdefault("accepted_at", time_of(number))
    others.setdefault("size", len(content))
    others.setdefault("from_domain", sender.rpartition("@")[2].lower())
    others.setdefault("message_id", "<1@example.com>")
    others.setdefault("subject", "Your order")
    return Message(
        id=number,
        envelope=envelope or Envelope(sender),
        origin=origin or Origin("submission", "192.0.2.17", "client.example.com", "shop", None, "TLSv1.3", "ESMTPSA"),
        **others,
    )


def make_waiting(
    n: int = 0,
    address: str | None = None,
    *,
    lane: str = "acme",
    state: State = State.QUEUED,
    due: Millis | None = NOW,
    recipient: Recipient | None = None,
    **others: Any,
) -> Waiting:
    """A recipient that is due at once unless said otherwise."""
    if recipient is None:
        recipient = Recipient(address if address is not None else f"person{n}@example.org")
    if state.final or state is State.HELD:
        due = None
    return Waiting(n, recipient, lane, state, due=due, **others)


_KIND_OF = {
    State.QUEUED: EventKind.RELEASED,
    State.DEFERRED: EventKind.DEFERRED,
    State.UNCERTAIN: EventKind.UNCERTAIN,
    State.HELD: EventKind.HELD,
    State.DELIVERED: EventKind.DELIVERED,
    State.BOUNCED: EventKind.BOUNCED,
    State.EXPIRED: EventKind.EXPIRED,
    State.SUPPRESSED: EventKind.SUPPRESSED,
    State.DELETED: EventKind.DELETED,
}


def make_change(
    message: Message,
    before: Waiting,
    state: State,
    *,
    at: Millis = NOW,
    due: Millis | None = None,
    notice: Notice | None = None,
    delayed: bool | None = None,
    lane: str | None = None,
    kind: EventKind | None = None,
    **detail: str | int | float | bool | None,
) -> Change:
    """The recipient's next standing, with the event that goes with it."""
    after = replace(
        before,
        state=state,
        due=due,
        attempts=before.attempts + 1,
        notice=notice,
        delayed=before.delayed if delayed is None else delayed,
        lane=before.lane if lane is None else lane,
    )
    event = Event(
        at, message.id, before.n, kind or _KIND_OF[state], before.recipient.address, message.envelope.sender, detail
    )
    return Change(after, event)


def make_attempt(
    ns: Sequence[int] = (0,), *, at: Millis = NOW, reply: str = "250 2.0.0 Ok: queued as 4F2A1", **others: Any
) -> Attempt:
    """An attempt at acme over TLS that came to the final dot."""
    values: dict[str, Any] = {
        "took": 12,
        "upstream": "acme",
        "endpoint": "smtp.acme.example:587",
        "tls": "TLSv1.3",
        "stage": Stage.DOT,
        "transcript": None,
    }
    values.update(others)
    return Attempt(at=at, reply=reply, recipients=tuple(ns), **values)


def make_settlement(message: Message, before: Sequence[Waiting], state: State, **others: Any) -> Settlement:
    """One attempt that brought all these recipients to `state`."""
    return Settlement(
        message.id,
        tuple(make_change(message, waiting, state, **others) for waiting in before),
        make_attempt([waiting.n for waiting in before]),
    )
