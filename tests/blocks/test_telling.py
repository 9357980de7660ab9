"""What is written about a suppressed recipient, who hears of it, and what the support desk reads of each end."""

from __future__ import annotations

from typing import Any

import pytest

from relayd.core.blocking import EVERYTHING, Block
from relayd.core.classes import CLASSES, ReplyClass
from relayd.core.event import Event, EventKind
from relayd.core.ids import format_id
from relayd.core.lifecycle import State
from relayd.core.mail import Notify, Recipient
from relayd.core.retry import parse_schedule
from relayd.core.telling import tell
from relayd.delivery.settle import Policy, suppress
from relayd.spool.store import Notice
from tests.support.mail import NOW, make_message, make_waiting

BLOCK = Block(7, "a@example.org", EVERYTHING, "user-unknown", "550 5.1.1 nobody", "auto", NOW - 5, None, 1 << 40)


def policy(*, notify: bool = True) -> Policy:
    return Policy(parse_schedule("1m*"), 1000, 0, notify, 1000)


@pytest.mark.parametrize(
    ("sender", "notify", "tell_senders", "owed"),
    [
        ("shop@example.com", set(), True, Notice.FAILURE),
        ("shop@example.com", {Notify.FAILURE}, True, Notice.FAILURE),
        ("shop@example.com", {Notify.NEVER}, True, None),
        ("shop@example.com", {Notify.SUCCESS}, True, None),
        ("shop@example.com", set(), False, None),
        ("", set(), True, None),
    ],
)
def test_the_sender_of_a_suppressed_mail_hears_of_it_where_it_wants_to(
    sender: str, notify: set[Notify], tell_senders: bool, owed: Notice | None
) -> None:
    waiting = make_waiting(recipient=Recipient("a@example.org", frozenset(notify)), attempts=2)
    change = suppress(make_message(sender=sender), waiting, BLOCK, policy(notify=tell_senders), NOW)
    assert (change.after.state, change.after.due, change.after.notice) == (State.SUPPRESSED, None, owed)
    assert change.after.attempts == 2
    assert change.event.kind is EventKind.SUPPRESSED
    assert change.event.detail["cause"] == format_id(1 << 40)
    assert change.event.detail["class"] == "user-unknown"


def event(kind: EventKind, **detail: Any) -> Event:
    return Event(NOW, 1, 0, kind, "a@example.org", "", {key.rstrip("_"): value for key, value in detail.items()})


ACCEPTED = event(EventKind.ACCEPTED)
FULL = event(EventKind.DEFERRED, class_="mailbox-full", reply="452 4.2.2 full")
POSTPONED = event(EventKind.POSTPONED, class_="greylisted")
ENDS = [
    (State.QUEUED, [ACCEPTED], "", ["first attempt"]),
    (State.DEFERRED, [ACCEPTED, FULL], "mailbox-full", ["tried again by itself", "mailbox is full"]),
    (State.HELD, [ACCEPTED, FULL, event(EventKind.HELD, by="root")], "", ["operator holds"]),
    (State.UNCERTAIN, [ACCEPTED, event(EventKind.UNCERTAIN, class_="network-error")], "network-error", ["may have"]),
    (State.DELIVERED, [ACCEPTED, event(EventKind.DELIVERED, class_="delivered")], "delivered", ["accepted the mail"]),
    (
        State.DELIVERED,
        [ACCEPTED, event(EventKind.DELIVERED), event(EventKind.REPLIED, class_="vacation")],
        "vacation",
        ["answers automatically"],
    ),
    (
        State.DELIVERED,
        [ACCEPTED, event(EventKind.DELIVERED), POSTPONED],
        "greylisted",
        ["reported a delay", "second try"],
    ),
    (
        State.DELIVERED,
        [ACCEPTED, event(EventKind.DELIVERED), event(EventKind.CONFIRMED, class_="delivered")],
        "delivered",
        ["confirmed that it delivered"],
    ),
    (
        State.DELIVERED,
        [ACCEPTED, FULL, POSTPONED, event(EventKind.CONFIRMED, class_="delivered", action="relayed")],
        "delivered",
        ["passed the mail on"],
    ),
    (
        State.DELIVERED,
        [ACCEPTED, event(EventKind.CONFIRMED, class_="delivered"), POSTPONED],
        "greylisted",
        ["reported a delay", "second try"],
    ),
    (State.BOUNCED, [ACCEPTED, event(EventKind.BOUNCED, class_="user-unknown")], "user-unknown", ["no such mailbox"]),
    (State.BOUNCED, [ACCEPTED, event(EventKind.BOUNCED, class_="policy", by="root")], "policy", ["operator ended"]),
    (State.EXPIRED, [ACCEPTED, FULL, event(EventKind.EXPIRED, class_="expired")], "expired", ["time allowed", "full"]),
    (
        State.SUPPRESSED,
        [ACCEPTED, event(EventKind.SUPPRESSED, class_="user-unknown")],
        "user-unknown",
        ["address is blocked", "no such mailbox"],
    ),
    (
        State.SUPPRESSED,
        [ACCEPTED, event(EventKind.SUPPRESSED, class_="manual")],
        "manual",
        ["address is blocked", "operator blocked"],
    ),
    (State.DELETED, [ACCEPTED, event(EventKind.DELETED, by="root")], "", ["operator deleted"]),
]


@pytest.mark.parametrize(("state", "events", "cls", "parts"), ENDS)
def test_each_end_has_its_sentences(state: State, events: list[Event], cls: str, parts: list[str]) -> None:
    told = tell(state, events)
    assert told.cls == cls
    assert len(told.sentences) == len(parts)
    for sentence, part in zip(told.sentences, parts, strict=True):
        assert part in sentence.en
        assert sentence.ja and not sentence.ja.isascii()
    assert told.at == NOW


def test_every_class_can_be_told() -> None:
    for cls in ReplyClass:
        told = tell(State.BOUNCED, [ACCEPTED, event(EventKind.BOUNCED, class_=cls.value)])
        assert told.facts is CLASSES[cls]
        assert [sentence.en for sentence in told.sentences] == [CLASSES[cls].sentence_en]
