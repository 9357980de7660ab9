"""Admission: the whole matrix against a table written down independently, the order of checks, sender patterns."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.config.models import Access
from relayd.core.address import compile_pattern
from relayd.intake import admission
from relayd.intake.admission import ConnectFacts, ContentFacts, MailFacts, RcptFacts, SenderPatterns
from relayd.intake.observer import Refusal

SENDERS = ["info@shop.example.com", "INFO@Shop.Example.COM", "info@example.com", "boss@example.com", ""]
PATTERNS = {
    "domain": ["*@shop.example.com", "info@example.com"],
    "any": ["*"],
    "null": ["<>", "boss@example.com"],
    "none-of-these": ["*@elsewhere.example"],
}
MAY_USE = {
    ("domain", "info@shop.example.com"),
    ("domain", "INFO@Shop.Example.COM"),
    ("domain", "info@example.com"),
    ("null", "boss@example.com"),
    ("null", ""),
} | {("any", sender) for sender in SENDERS}

# access mode, in a network, logged in → the reply to MAIL; "" is: go on
ACCESS = {
    ("network", True, True): "",
    ("network", True, False): "",
    ("network", False, True): "550 5.7.1",
    ("network", False, False): "550 5.7.1",
    ("auth", True, True): "",
    ("auth", True, False): "530 5.7.0",
    ("auth", False, True): "",
    ("auth", False, False): "530 5.7.0",
    ("network-or-auth", True, True): "",
    ("network-or-auth", True, False): "",
    ("network-or-auth", False, True): "",
    ("network-or-auth", False, False): "530 5.7.0",
    ("network-and-auth", True, True): "",
    ("network-and-auth", True, False): "530 5.7.0",
    ("network-and-auth", False, True): "550 5.7.1",
    ("network-and-auth", False, False): "550 5.7.1",
}


def mail_facts(**changes: object) -> MailFacts:
    facts = MailFacts(
        draining=False,
        disk_low=False,
        has_memory=True,
        require_tls=False,
        tls=True,
        access=Access.NETWORK,
        in_network=True,
        authenticated=False,
        size=0,
        size_limit=1000,
        sender="info@example.com",
        smtputf8=False,
        patterns=None,
        rate_exhausted=False,
    )
    for name, value in changes.items():
        setattr(facts, name, value)
    return facts


def code(refused: admission.Refused | None) -> str:
    return "" if refused is None else f"{refused.reply.code} {refused.reply.enhanced}"


def test_the_matrix_of_access_tls_network_credential_and_sender_lets_in_only_what_the_table_lets_in() -> None:
    for (access, network, auth), require_tls, tls, patterns, sender in itertools.product(
        ACCESS, (False, True), (False, True), PATTERNS, SENDERS
    ):
        expected = ACCESS[access, network, auth]
        if require_tls and not tls:
            expected = "530 5.7.0"
        elif not expected and auth and (patterns, sender) not in MAY_USE:
            expected = "553 5.7.1"
        facts = mail_facts(
            require_tls=require_tls,
            tls=tls,
            access=Access(access),
            in_network=network,
            authenticated=auth,
            sender=sender,
            patterns=SenderPatterns(PATTERNS[patterns]) if auth else None,
        )
        assert code(admission.mail(facts)) == expected, facts


WORST = {
    "draining": ({"draining": True}, "421 4.3.2", Refusal.DRAINING),
    "tls": ({"require_tls": True, "tls": False}, "530 5.7.0", Refusal.TLS_REQUIRED),
    "access": ({"access": Access.AUTH}, "530 5.7.0", Refusal.AUTH_REQUIRED),
    "size": ({"size": 1001}, "552 5.3.4", Refusal.SIZE),
    "syntax": ({"sender": "no at sign"}, "501 5.1.7", Refusal.SENDER_SYNTAX),
    "pattern": ({"patterns": SenderPatterns(["x@example.com"])}, "553 5.7.1", Refusal.SENDER_DENIED),
    "disk": ({"disk_low": True}, "452 4.3.1", Refusal.DISK),
    "memory": ({"has_memory": False}, "452 4.3.1", Refusal.MEMORY),
    "rate": ({"rate_exhausted": True}, "450 4.7.1", Refusal.RATE),
}


@pytest.mark.parametrize("name", WORST)
def test_mail_checks_speak_in_order(name: str) -> None:
    names = list(WORST)
    faults: dict[str, object] = {}
    for later in names[names.index(name) :]:
        faults |= WORST[later][0]
    refused = admission.mail(mail_facts(**faults))
    assert refused is not None
    assert (code(refused), refused.reason) == WORST[name][1:]


def test_a_sender_with_utf8_needs_smtputf8() -> None:
    facts = mail_facts(sender="営業@example.jp")
    assert code(admission.mail(facts)) == "553 5.6.7"
    facts.smtputf8 = True
    assert admission.mail(facts) is None


def test_the_declared_size_may_be_the_limit_itself() -> None:
    assert admission.mail(mail_facts(size=1000)) is None


def test_a_refused_sender_is_named() -> None:
    refused = admission.mail(mail_facts(patterns=SenderPatterns(["x@example.com"])))
    assert refused is not None
    assert "<info@example.com>" in refused.reply.text


@pytest.mark.parametrize(
    ("access", "network", "guessing", "draining", "expected"),
    [
        ("network", True, False, False, ""),
        ("network", False, False, False, "554 5.7.1"),
        ("network", True, True, False, ""),
        ("auth", False, False, False, ""),
        ("auth", True, True, False, "421 4.7.0"),
        ("network-or-auth", False, False, False, ""),
        ("network-or-auth", False, True, False, "421 4.7.0"),
        ("network-or-auth", True, True, False, ""),
        ("network-and-auth", True, False, False, ""),
        ("network-and-auth", False, False, False, "554 5.7.1"),
        ("network-and-auth", True, True, False, "421 4.7.0"),
        ("network", True, False, True, "421 4.3.2"),
        ("network", False, True, True, "421 4.3.2"),
    ],
)
def test_who_may_connect(access: str, network: bool, guessing: bool, draining: bool, expected: str) -> None:
    assert code(admission.connect(ConnectFacts(draining, Access(access), network, guessing))) == expected
    # a proxy that has not named its client yet is let in by no network, and told so at MAIL
    later = "" if expected == "554 5.7.1" else expected
    assert code(admission.connect(ConnectFacts(draining, Access(access), network, guessing, proxy=True))) == later


@pytest.mark.parametrize(
    ("address", "smtputf8", "count", "expected"),
    [
        ("a@example.com", False, 0, ""),
        ("a@example.com", False, 9, ""),
        ("a@example.com", False, 10, "452 4.5.3"),
        ("a", False, 0, "501 5.1.3"),
        ("a@", False, 0, "501 5.1.3"),
        ("a b@example.com", False, 0, "501 5.1.3"),
        ("", False, 0, "501 5.1.3"),
        ("a%elsewhere.example@example.com", False, 0, ""),
        ("postmaster", False, 0, ""),
        ("PostMaster", False, 0, ""),
        ("user@[192.0.2.1]", False, 0, ""),
        ("受信@example.jp", False, 0, "553 5.6.7"),
        ("受信@example.jp", True, 0, ""),
        ("a\r\nb@example.com", False, 0, "501 5.1.3"),
    ],
)
def test_who_may_be_a_recipient(address: str, smtputf8: bool, count: int, expected: str) -> None:
    assert code(admission.rcpt(RcptFacts(count, 10, address, smtputf8))) == expected


@pytest.mark.parametrize(
    ("size", "received", "expected"),
    [(1000, 49, ""), (1001, 0, "552 5.3.4"), (1, 50, "550 5.4.6"), (1, 51, "550 5.4.6"), (1001, 50, "552 5.3.4")],
)
def test_what_content_may_be_kept(size: int, received: int, expected: str) -> None:
    assert code(admission.content(ContentFacts(size, 1000, received, 50))) == expected


LETTERS = st.text("aAbB.*?é", min_size=1, max_size=4)
ADDRESSES = st.builds(lambda local, domain: f"{local}@{domain}", LETTERS, LETTERS)


@given(
    st.lists(st.one_of(ADDRESSES, LETTERS, st.just("*"), LETTERS.map("*@".__add__)), min_size=1, max_size=4), ADDRESSES
)
def test_the_quick_way_through_sender_patterns_gives_the_slow_ways_answer(patterns: list[str], sender: str) -> None:
    assert SenderPatterns(patterns).allow(sender) == any(compile_pattern(pattern)(sender) for pattern in patterns)


def test_sender_patterns_take_u_labels_for_a_labels() -> None:
    assert SenderPatterns(["*@bücher.example"]).allow("info@xn--bcher-kva.example")
    assert SenderPatterns(["*@xn--bcher-kva.example"]).allow("info@bücher.example")
    assert not SenderPatterns(["*@bücher.example"]).allow("info@bucher.example")
