"""Envelope addresses: what is one, its domain, and which pattern it fits."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.core import address
from relayd.core.address import AddressError, compile_pattern, domain_of, parse, to_ascii, validate

GOOD = [
    ("a@b", "a", "b"),
    ("a.b@example.com", "a.b", "example.com"),
    ("!#$%&'*+-/=?^_`{|}~@example.com", "!#$%&'*+-/=?^_`{|}~", "example.com"),
    ('"a b"@example.com', '"a b"', "example.com"),
    ('"a@b"@example.com', '"a@b"', "example.com"),
    ('"a\\"b"@example.com', '"a\\"b"', "example.com"),
    ('""@example.com', '""', "example.com"),
    ("a@[192.0.2.1]", "a", "[192.0.2.1]"),
    ("a@[IPv6:2001:db8::1]", "a", "[IPv6:2001:db8::1]"),
    ("a@[ipv6:::1]", "a", "[ipv6:::1]"),
    ("a@under_score.example", "a", "under_score.example"),
    ("a@xn--bcher-kva.example", "a", "xn--bcher-kva.example"),
    ("x" * 64 + "@example.com", "x" * 64, "example.com"),
]
UTF8 = [
    ("日本@例え.jp", "日本", "例え.jp"),
    ("a@bücher.example", "a", "bücher.example"),
    ('"日 本"@example.jp', '"日 本"', "example.jp"),
]


@pytest.mark.parametrize(("text", "local", "domain"), GOOD + UTF8)
def test_good(text: str, local: str, domain: str) -> None:
    found = parse(text, utf8=True)
    assert (found.local, found.domain, str(found)) == (local, domain, text)
    validate(text, utf8=True)


BAD = [
    ("", "no @"),
    ("a", "no @"),
    ("@example.com", "no local part"),
    ("a@", "no domain"),
    (".a@example.com", "local part of the address is malformed"),
    ("a..b@example.com", "local part of the address is malformed"),
    ("a b@example.com", "local part of the address is malformed"),
    ('"a@example.com', "local part of the address is malformed"),
    ('"a"b@example.com', "local part of the address is malformed"),
    ('"a\\"@example.com', "local part of the address is malformed"),
    ("a@b@example.com", "domain of the address is malformed"),
    ("a@example..com", "domain of the address is malformed"),
    ("a@-example.com", "domain of the address is malformed"),
    ("a@example.com.", "domain of the address is malformed"),
    ("a@exam ple.com", "domain of the address is malformed"),
    ("a@[192.0.2]", "literal"),
    ("a@[192.0.2.1", "literal"),
    ("a@[IPv6:2001:db8::1%eth0]", "literal"),
    ("a@[2001:db8::1]", "literal"),
    ("a@[]", "literal"),
    ("a@[", "literal"),
    ("x" * 65 + "@example.com", "longer than 64"),
    ("é" * 33 + "@example.com", "longer than 64"),
    ("a@" + "x" * 64 + ".example", "longer than 63"),
    ("a@" + ".".join(["x" * 63] * 4) + ".x", "longer than 255"),
    ("a@" + ".".join(["é" * 60] * 5), "longer than 255"),
    ("a@" + ".".join(["é" * 63] * 2), "not an internationalised"),
    ("x" * 64 + "@" + ".".join(["x" * 62] * 4), "longer than 254"),
    ("a\r\n@example.com", "control"),
    ("a@exam\0ple.com", "control"),
    ("a\u0085@example.com", "control"),
    ("a\u2028@example.com", "control"),
    ("a\ud800@example.com", "control"),
]


@pytest.mark.parametrize(("text", "problem"), BAD)
def test_bad(text: str, problem: str) -> None:
    for check in (parse, validate):
        with pytest.raises(AddressError, match=problem) as caught:
            check(text, utf8=True)
        assert len(text) < 3 or text not in caught.value.problem
        assert caught.value.reply(sender=True).enhanced == "5.1.7"
        assert caught.value.reply(sender=False).enhanced == "5.1.3"
        assert caught.value.reply(sender=True).code == 501


@pytest.mark.parametrize(("text", "local", "domain"), UTF8)
def test_utf8_needs_smtputf8(text: str, local: str, domain: str) -> None:
    with pytest.raises(AddressError) as caught:
        validate(text)
    assert (caught.value.reply(sender=True).code, caught.value.reply(sender=False).enhanced) == (553, "5.6.7")


_bits = st.sampled_from(
    ["a", "B", "7", ".", "..", "@", "-", "_", '"', "\\", "[", "]", ":", " ", "é", "\n", "x" * 40, "x" * 64]
)


@given(st.lists(_bits, max_size=8).map("".join), st.booleans())
def test_quick_check_answers_as_the_parser(text: str, utf8: bool) -> None:
    def answer(check: object) -> str | None:
        try:
            check(text, utf8=utf8)  # type: ignore[operator]
        except AddressError as error:
            return error.problem
        return None

    assert answer(validate) == answer(parse)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a@Example.COM", "example.com"),
        ('"x@y"@Example.COM', "example.com"),
        ("a@bücher.example", "xn--bcher-kva.example"),
        ("a@[192.0.2.1]", "[192.0.2.1]"),
        ("", ""),
        ("postmaster", ""),
        ("a@" + "é" * 300, "é" * 300),
    ],
)
def test_domain_of(text: str, expected: str) -> None:
    assert domain_of(text) == expected


def test_to_ascii() -> None:
    assert to_ascii("BÜCHER.example") == "xn--bcher-kva.example"
    assert to_ascii("例え。jp") == "xn--r8jz45g.jp"


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("*@shop.example.com", "info@shop.example.com", True),
        ("*@shop.example.com", "Info@SHOP.example.com", True),
        ("*@shop.example.com", "info@sub.shop.example.com", False),
        ("*@shop.example.com", "info@shop.example.com.evil.example", False),
        ("*@*.example.com", "info@sub.example.com", True),
        ("*@*.example.com", "info@example.com", False),
        ("INFO@example.com", "info@example.com", True),
        ("info@example.com", "xinfo@example.com", False),
        ("a?c@example.com", "abc@example.com", True),
        ("a?c@example.com", "ac@example.com", False),
        ("?*@example.com", "abc@example.com", True),
        ("a*b*c", "aXbYbZc", True),
        ("a*b*c", "aXbYbZ", False),
        ("a*a", "a", False),
        ("**a", "xa", True),
        ("*", "", True),
        ("*", "anything", True),
        ("", "", True),
        ("", "a", False),
        ("a.b@example.com", "axb@example.com", False),
        ("[a-z]@example.com", "q@example.com", False),
        ("*@bücher.example", "a@xn--bcher-kva.example", True),
        ("*@xn--bcher-kva.example", "a@BÜCHER.example", True),
        ("*@*.例え.jp", "a@b.xn--r8jz45g.jp", True),
        ("日本*@example.jp", "日本人@example.jp", True),
        ("a\nb*", "a\nbc", True),
    ],
)
def test_pattern(pattern: str, text: str, expected: bool) -> None:
    assert compile_pattern(pattern)(text) is expected


@given(st.text("ab*?", max_size=8), st.text("ab", max_size=12))
def test_patterns_as_a_plain_regex_would(pattern: str, text: str) -> None:
    source = pattern.replace("*", ".*").replace("?", ".")
    assert compile_pattern(pattern)(text) is (re.fullmatch(source, text) is not None)


def test_hostile_patterns_take_no_time() -> None:
    assert not compile_pattern("*a" * 40 + "b")("a" * 20_000)


def test_addresses_are_values() -> None:
    assert parse("a@b") == address.Address("a", "b")
