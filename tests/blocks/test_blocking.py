"""Which failures block, which never do, and for which mail a block holds."""

from __future__ import annotations

from typing import Any

import pytest

from relayd.core.blocking import (
    DAY,
    EVERYTHING,
    Block,
    ScopeKind,
    covers,
    default_rules,
    failure_class,
    key_of,
    may_block,
    read_scope,
    read_target,
    refusal,
    scope_of,
    suppression,
)
from relayd.core.classes import CLASSES, Actor, ReplyClass
from relayd.core.classes import Blocks as ClassBlocks
from relayd.core.event import Event, EventKind
from tests.support.mail import NOW, make_message


def event(kind: EventKind, **detail: Any) -> Event:
    if "cls" in detail:
        detail["class"] = detail.pop("cls")
    return Event(NOW, 1, 0, kind, "a@example.org", "shop@example.com", detail)


def block(**others: Any) -> Block:
    values: dict[str, Any] = {
        "id": 7,
        "target": "a@example.org",
        "scope": EVERYTHING,
        "cls": "user-unknown",
        "reason": "550 5.1.1 No such user",
        "by": "auto",
        "since": NOW,
        "until": None,
        "message": None,
    }
    return Block(**values | others)


@pytest.mark.parametrize(
    ("told", "cls"),
    [
        (event(EventKind.BOUNCED, cls="user-unknown", stage="rcpt"), "user-unknown"),
        (event(EventKind.BOUNCED, cls="user-unknown", stage="dot"), "user-unknown"),
        # the sender was refused, or nothing was sent: says nothing about the address
        (event(EventKind.BOUNCED, cls="user-unknown", stage="mail"), None),
        (event(EventKind.BOUNCED, cls="address-syntax", stage="local"), None),
        (event(EventKind.BOUNCED, cls="policy", by="root"), None),
        (event(EventKind.DEFERRED, cls="mailbox-full", stage="rcpt"), None),
        (event(EventKind.DEFERRED, cls="login-refused", stage="auth", upstream_trouble=True), None),
        (event(EventKind.BOUNCED, cls="user-unknown", stage="rcpt", upstream_trouble=True), None),
        (event(EventKind.DELIVERED), None),
        # what came back later
        (event(EventKind.BOUNCED, cls="user-unknown", source="bounce", action="failed"), "user-unknown"),
        (event(EventKind.NOTED, cls="user-unknown", source="bounce", action="failed"), "user-unknown"),
        (event(EventKind.POSTPONED, cls="mailbox-full", source="bounce", action="delayed"), None),
        (event(EventKind.POSTPONED, cls="mailbox-full", source="bounce"), "mailbox-full"),
        (event(EventKind.COMPLAINED, cls="complaint", source="complaint"), "complaint"),
        (event(EventKind.REPLIED, cls="vacation", source="auto-reply"), None),
        (event(EventKind.CONFIRMED, cls="delivered", source="delivery-report"), None),
    ],
)
def test_what_an_event_says_about_the_address(told: Event, cls: str | None) -> None:
    assert failure_class(told) == cls


def test_every_class_has_the_default_rule_that_its_table_says() -> None:
    rules = default_rules()
    for cls, facts in CLASSES.items():
        rule = rules.get(cls.value)
        assert (rule is None) == (facts.blocks is ClassBlocks.NEVER)
        if rule is not None:
            assert (rule.after == 1) == (facts.blocks is ClassBlocks.AT_ONCE)
    assert (rules["mailbox-full"].after, rules["mailbox-full"].within) == (5, 14 * DAY)
    assert rules["user-unknown"].expires is None
    assert rules["filtered"].scope is ScopeKind.SENDER_DOMAIN


def test_no_fault_of_an_upstream_or_of_the_senders_policy_may_block() -> None:
    for cls, facts in CLASSES.items():
        if facts.actor is Actor.UPSTREAM:
            assert not may_block(cls.value)
    for cls in (
        ReplyClass.POLICY,
        ReplyClass.SENDER_REJECTED,
        ReplyClass.SPAM_DETECTED,
        ReplyClass.CONTENT_REJECTED,
        ReplyClass.AUTHENTICATION_FAILED,
        ReplyClass.VACATION,
        ReplyClass.DELIVERED,
    ):
        assert not may_block(cls.value)
    assert may_block("user-unknown") and may_block("complaint")
    assert not may_block("no-such-class")


@pytest.mark.parametrize(
    ("written", "target"),
    [
        ("A@Example.ORG", "a@example.org"),
        (" <a@example.org> ", "a@example.org"),
        ("*@Example.org", "*@example.org"),
        ("*@*.example.org", "*@*.example.org"),
        ("a@例え.jp", "a@xn--r8jz45g.jp"),
        ("*@例え.jp", "*@xn--r8jz45g.jp"),
    ],
)
def test_targets_are_read_in_any_case_and_script(written: str, target: str) -> None:
    assert read_target(written) == target
    assert read_target(target) == target


@pytest.mark.parametrize(
    "written", ["", "nobody", "a@", "@example.org", "a@*.example.org", "*@", "*@*", "*@a b", "a@b\nc"]
)
def test_what_is_no_target_is_refused_in_words(written: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        read_target(written)


@pytest.mark.parametrize("address", ["", "@", "a", "a@例え.jp", "a@\udcff.jp", "é@EXAMPLE.org"])
def test_any_text_has_a_key(address: str) -> None:
    assert key_of(address) == key_of(key_of(address))


def test_scopes() -> None:
    campaign = make_message(sender="news@Shop.example.com", campaign="weekly")
    plain = make_message(sender="", from_domain="shop.example.com")
    assert scope_of(ScopeKind.EVERYTHING, campaign) == EVERYTHING
    assert scope_of(ScopeKind.SENDER_DOMAIN, campaign) == "sender:shop.example.com"
    assert scope_of(ScopeKind.STREAM, campaign) == "stream:weekly"
    assert scope_of(ScopeKind.STREAM, plain) == "sender:shop.example.com"
    for scope in (EVERYTHING, "sender:shop.example.com", "stream:weekly"):
        assert read_scope(scope) == scope
        assert covers(scope, campaign)
    assert covers("sender:shop.example.com", plain)
    assert not covers("stream:weekly", plain)
    assert not covers("sender:example.com", campaign)
    for wrong in ("", "all", "sender:", "stream: ", "sender:a b", "everything:x"):
        with pytest.raises(ValueError, match="not a scope"):
            read_scope(wrong)


def test_the_sender_reads_a_reply_with_the_status_of_the_class() -> None:
    assert refusal(block()) == "550 5.1.1 Not sent: the address is blocked (user-unknown)"
    assert refusal(block(cls="complaint")).startswith("550 5.7.1 ")
    assert refusal(block(cls="manual")).startswith("550 5.7.1 ")
    detail = suppression(block())
    assert (detail["class"], detail["reason"], detail["since"]) == ("user-unknown", "550 5.1.1 No such user", NOW)


def test_a_block_holds_until_it_is_lifted_or_its_time_is_up() -> None:
    assert block().holds(NOW + 10**12)
    assert block(until=NOW + 1).holds(NOW)
    assert not block(until=NOW).holds(NOW)
    assert not block(ended=NOW).holds(NOW)
