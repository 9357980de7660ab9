"""Rows of a segment ⇄ the values of core. Only this file knows the order of columns."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import orjson

from relayd.core.event import Event, EventKind
from relayd.core.ids import MessageId
from relayd.core.lifecycle import Stage
from relayd.core.mail import Body, Envelope, Message, Notify, Origin, Recipient, Ret
from relayd.spool.schema import STATE_CODE, STATE_OF
from relayd.spool.store import Attempt, Notice, Waiting

Row = tuple[Any, ...]

MESSAGE = "id, accepted, size, sender, from_domain, message_id, subject, campaign, credential, facts"
RECIPIENT = "message, n, address, notify, orcpt, lane, state, attempts, due, delayed, notice"
ATTEMPT = "message, at, took, upstream, endpoint, tls, stage, reply, transcript, recipients"
EVENT = "message, n, at, kind, detail"

_NOTIFY_TEXT = {
    frozenset(some): ",".join(sorted(some)) for size in range(len(Notify) + 1) for some in combinations(Notify, size)
}
_NOTIFY_SET = {text: some for some, text in _NOTIFY_TEXT.items()}


def _json(value: Mapping[str, Any]) -> str:
    """JSON text of a flat mapping; what UTF-8 cannot carry (a peer's stray octets) becomes "?"."""
    try:
        return orjson.dumps(value if type(value) is dict else dict(value)).decode()
    except orjson.JSONEncodeError:
        return orjson.dumps({key: _text(item) for key, item in value.items()}).decode()


def _text(value: Any) -> Any:
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) and not value.isascii() else value


def message_row(message: Message) -> Row:
    """The row of `message`."""
    envelope, origin = message.envelope, message.origin
    facts: dict[str, Any] = {"listener": origin.listener, "peer": origin.peer, "protocol": origin.protocol}
    if envelope.body is not Body.SEVEN_BIT:
        facts["body"] = envelope.body
    if envelope.smtputf8:
        facts["smtputf8"] = True
    if envelope.ret is not None:
        facts["ret"] = envelope.ret
    if envelope.envid is not None:
        facts["envid"] = envelope.envid
    if origin.helo:
        facts["helo"] = origin.helo
    if origin.network is not None:
        facts["network"] = origin.network
    if origin.tls is not None:
        facts["tls"] = origin.tls
    if origin.inbound:
        facts["inbound"] = True
    if message.priority:
        facts["priority"] = message.priority
    if message.labels:
        facts["labels"] = message.labels
    return (
        message.id,
        message.accepted_at,
        message.size,
        envelope.sender,
        message.from_domain,
        message.message_id,
        message.subject,
        message.campaign,
        origin.credential,
        orjson.dumps(facts).decode(),
    )


def message_of(row: Row) -> Message:
    """The value of a row of `MESSAGE` columns."""
    number, accepted, size, sender, from_domain, message_id, subject, campaign, credential, text = row
    facts = orjson.loads(text)
    get = facts.get
    ret = get("ret")
    return Message(
        id=number,
        accepted_at=accepted,
        envelope=Envelope(
            sender,
            Body.EIGHT_BIT_MIME if get("body") else Body.SEVEN_BIT,
            get("smtputf8", False),
            Ret(ret) if ret else None,
            get("envid"),
        ),
        origin=Origin(
            facts["listener"],
            facts["peer"],
            get("helo", ""),
            credential,
            get("network"),
            get("tls"),
            facts["protocol"],
            get("inbound", False),
        ),
        size=size,
        from_domain=from_domain,
        message_id=message_id,
        subject=subject,
        campaign=campaign,
        priority=get("priority", 0),
        labels=get("labels", {}),
    )


def recipient_row(message: MessageId, waiting: Waiting, urgency: int) -> Row:
    """The row of `recipient`."""
    recipient = waiting.recipient
    notify = recipient.notify
    return (
        message,
        waiting.n,
        recipient.address,
        _NOTIFY_TEXT[notify] if notify else None,
        recipient.orcpt,
        waiting.lane,
        STATE_CODE[waiting.state],
        waiting.attempts,
        waiting.due,
        1 if waiting.delayed else 0,
        None if waiting.notice is None else waiting.notice.value,
        urgency,
    )


def waiting_of(row: Row) -> Waiting:
    """The value of a row of `RECIPIENT` columns."""
    _, n, address, notify, orcpt, lane, state, attempts, due, delayed, notice = row
    return Waiting(
        n,
        Recipient(address, _NOTIFY_SET[notify or ""], orcpt),
        lane,
        STATE_OF[state],
        attempts,
        due,
        bool(delayed),
        None if notice is None else Notice(notice),
    )


def attempt_row(message: MessageId, attempt: Attempt) -> Row:
    """The row of `attempt`."""
    return (
        message,
        attempt.at,
        attempt.took,
        attempt.upstream,
        attempt.endpoint,
        attempt.tls,
        str(attempt.stage),
        _text(attempt.reply),
        _text(attempt.transcript),
        orjson.dumps(attempt.recipients).decode(),
    )


def attempt_of(row: Row) -> Attempt:
    """The value of a row of `ATTEMPT` columns."""
    _, at, took, upstream, endpoint, tls, stage, reply, transcript, recipients = row
    return Attempt(at, took, upstream, endpoint, tls, Stage(stage), reply, transcript, tuple(orjson.loads(recipients)))


def event_row(event: Event) -> Row:
    """The row of `event`; address and sender stand in other tables."""
    detail = _json(event.detail) if event.detail else None
    return (event.message, event.n, event.at, str(event.kind), detail)


def event_of(row: Row, recipient: str, sender: str, accepted: dict[str, Any]) -> Event:
    """The value of a row of `EVENT` columns; `accepted` is what `accepted_detail` says of the message."""
    message, n, at, name, text = row
    kind = EventKind(name)
    detail = accepted if kind is EventKind.ACCEPTED else orjson.loads(text) if text else {}
    return Event(at, message, n, kind, recipient, sender, detail)


def accepted_detail(message: Message) -> dict[str, Any]:
    """What an `accepted` event tells: all of it stands in the message's row, so it is not written again."""
    origin = message.origin
    detail: dict[str, Any] = {
        "listener": origin.listener,
        "peer": origin.peer,
        "protocol": origin.protocol,
        "size": message.size,
    }
    if message.message_id:
        detail["message_id"] = message.message_id
    if message.subject:
        detail["subject"] = message.subject
    if origin.credential is not None:
        detail["credential"] = origin.credential
    if origin.network is not None:
        detail["network"] = origin.network
    if origin.tls is not None:
        detail["tls"] = origin.tls
    if message.campaign is not None:
        detail["campaign"] = message.campaign
    return detail
