"""Who says how urgent a mail is, and that the header which says so stays here."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from relayd.core.mail import Envelope, Origin, Recipient
from relayd.core.priority import Priority, priority_of, read_priority
from relayd.intake.submission import Kept, Preparer
from relayd.intake.urgency import urgency_of
from relayd.spool.joining import Joiner
from tests.intake.conftest import CRM_HASH, SHOP_HASH, make_config

HIGH, NORMAL, BULK = Priority.HIGH, Priority.NORMAL, Priority.BULK
MAIL = b"From: a@shop.example.com\r\nSubject: x\r\nMessage-ID: <1@shop>\r\nDate: Mon, 1 Sep 2025 10:00:00 +0000\r\n"


@pytest.mark.parametrize(
    ("header", "credential", "routes", "expected"),
    [
        (None, None, [], NORMAL),
        (None, None, [None, BULK], NORMAL),
        (None, None, [BULK, BULK], BULK),
        (None, None, [BULK, HIGH], HIGH),
        (None, NORMAL, [HIGH], NORMAL),
        (None, HIGH, [BULK], HIGH),
        (HIGH, None, [BULK], HIGH),
        (BULK, None, [HIGH], BULK),
        (BULK, HIGH, [], BULK),
        (HIGH, BULK, [HIGH], BULK),
        (HIGH, NORMAL, [], NORMAL),
    ],
)
def test_header_then_credential_then_route(
    header: Priority | None, credential: Priority | None, routes: list[Priority | None], expected: Priority
) -> None:
    assert priority_of(urgency_of(header, credential, routes)) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("high", HIGH), (" Bulk ", BULK), ("NORMAL", NORMAL), ("urgent", None), ("", None), ("1", None)],
)
def test_what_the_header_may_say(text: str, expected: Priority | None) -> None:
    assert read_priority(text) is expected


CONFIG = make_config(
    credentials=[
        {"username": "shop", "password": SHOP_HASH, "priority": "high"},
        {"username": "crm", "password": CRM_HASH, "priority": "bulk"},
    ],
    routes=[
        {"match": {"recipient_domain": "vip.example"}, "upstream": "sandbox", "priority": "high"},
        {"upstream": "sandbox", "priority": "bulk"},
    ],
)


def prepared(header: bytes, *to: str, credential: str | None = None, inbound: bool = False) -> Kept:
    def by_route(message: object, recipient: Recipient) -> Priority | None:
        return CONFIG.routes[0 if recipient.address.endswith("vip.example") else 1].priority

    preparer = Preparer(CONFIG, lambda message, recipient: "sandbox", by_route, Joiner())
    content = MAIL + header + b"\r\nHello\r\n"
    origin = Origin("submission", "192.0.2.9", "app", credential)
    return asyncio.run(
        preparer.prepare(
            number=1 << 40,
            now=1_750_000_000_000,
            origin=replace(origin, inbound=inbound),
            envelope=Envelope("a@shop.example.com"),
            recipients=[Recipient(address) for address in to],
            content=content,
            facts=preparer.facts(content),
            trace=False,
        )
    )


def test_the_header_is_heard_and_does_not_leave() -> None:
    kept = prepared(b"X-PRIORITY-lane: high\r\n", "r@example.org")
    assert (kept.message.priority, kept.message.labels) == (1, {})
    assert kept.content == MAIL + b"\r\nHello\r\n"
    assert prepared(b"X-Priority-Lane: soonest\r\n", "r@example.org").message.priority == -1


def test_the_most_urgent_recipient_decides_for_all() -> None:
    assert prepared(b"", "r@example.org").message.priority == -1
    assert prepared(b"", "r@example.org", "r@vip.example").message.priority == 1


def test_a_credential_speaks_for_its_app_and_is_its_limit() -> None:
    assert prepared(b"", "r@vip.example", credential="crm").message.priority == -1
    assert prepared(b"X-Priority-Lane: high\r\n", "r@example.org", credential="crm").message.priority == -1
    assert prepared(b"X-Priority-Lane: normal\r\n", "r@example.org", credential="shop").message.priority == 0


def test_what_came_back_has_no_say() -> None:
    kept = prepared(b"X-Priority-Lane: high\r\n", "r@vip.example", inbound=True)
    assert kept.message.priority == 0
    assert b"X-Priority-Lane: high\r\n" in kept.content
