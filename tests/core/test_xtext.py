"""xtext is read, and UTF-8 addresses are written and read."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.core import xtext

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@given(text)
def test_what_clients_write_as_xtext_is_read(value: str) -> None:
    octets = value.encode()
    encoded = "".join(chr(each) if 33 <= each <= 126 and each not in b"+=" else f"+{each:02X}" for each in octets)
    assert xtext.decode(encoded) == value


@given(text)
def test_round_trip_of_utf8_addresses(value: str) -> None:
    encoded = xtext.encode_utf8(value)
    assert re.fullmatch(r"(?:[!-*,-<>-\[\]-~]|\\x\{[0-9A-F]{1,6}\})*", encoded)
    assert xtext.decode_utf8(encoded) == value


@given(st.text(max_size=40))
def test_any_input_is_decoded_or_refused(value: str) -> None:
    for decode in (xtext.decode, xtext.decode_utf8, xtext.parse_orcpt):
        try:
            decode(value)
        except ValueError:
            continue


@pytest.mark.parametrize(
    ("given_", "expected"), [("a+2Bb", "a+b"), ("a+3Db", "a=b"), ("a+2bb", "a+b"), ("", ""), ("+0D+0A", "\r\n")]
)
def test_decode(given_: str, expected: str) -> None:
    assert xtext.decode(given_) == expected


@pytest.mark.parametrize("value", ["a=b", "a+b", "a+", "a b", "ä", "+G0", "a\n"])
def test_not_xtext(value: str) -> None:
    with pytest.raises(ValueError, match="not xtext"):
        xtext.decode(value)


def test_orcpt() -> None:
    assert xtext.parse_orcpt("rfc822;Bob+2BShop@Example.com") == ("rfc822", "Bob+Shop@Example.com")
    assert xtext.parse_orcpt("UTF-8;\\x{65E5}\\x{672C}@example.jp") == ("utf-8", "日本@example.jp")
    assert xtext.parse_orcpt("utf-8;日本@example.jp") == ("utf-8", "日本@example.jp")


@pytest.mark.parametrize(
    "value",
    ["", "rfc822", "rfc822;", ";a@b", "x y;a", "utf-8;a+2Bb", "utf-8;\\x{D800}", "utf-8;\\x{110000}", "utf-8;a b"],
)
def test_not_orcpt(value: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        xtext.parse_orcpt(value)
