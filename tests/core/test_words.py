"""Header text for people: encoded words as Japanese and other apps write them."""

from __future__ import annotations

import base64
from email.header import Header

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.core.words import decode


def _b(charset: str, octets: bytes) -> bytes:
    return b"=?" + charset.encode() + b"?B?" + base64.b64encode(octets) + b"?="


JAPANESE = "ご注文の確認"
CUT = "日本語".encode()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b" plain \r\n", "plain"),
        (b" folded\r\n  text\r\n", "folded text"),
        (b"=?utf-8?q?caf=C3=A9_au_lait?=", "café au lait"),
        (b"=?UTF-8?B?5pel5pys?=\r\n =?UTF-8?B?6Kqe?=", "日本語"),
        (_b("utf-8", CUT[:4]) + b" " + _b("utf-8", CUT[4:]), "日本語"),
        (_b("ISO-2022-JP", JAPANESE.encode("iso-2022-jp")), JAPANESE),
        (b"[shop] " + _b("ISO-2022-JP", JAPANESE.encode("iso-2022-jp")) + b" #12", f"[shop] {JAPANESE} #12"),
        (_b("iso-2022-jp", b"\x1b$B-!\x1b(B"), "①"),
        (_b("Shift_JIS", "①髙".encode("cp932")), "①髙"),
        (_b("euc-jp", JAPANESE.encode("euc-jp")), JAPANESE),
        (JAPANESE.encode("iso-2022-jp"), JAPANESE),
        (JAPANESE.encode(), JAPANESE),
        (b"=?iso-8859-1?q?=80?=", "€"),
        (b"=?utf-8*en?q?hello?=", "hello"),
        (b"=?utf-8?q?a?= =?iso-8859-1?q?=E9?= b =?utf-8?q?c?=", "aé b c"),
        (b"=?no-such-charset?q?abc?=", "abc"),
        (b"=?idna?q?abc?=", "abc"),
        (b"=?-punycode?q?maana-pta?=", "maana-pta"),
        (b"=?raw--unicode_escape?q?=5Cu0041?=", "\\u0041"),
        (b"=?utf-8?B?!!!!?=", ""),
        (b"=?utf-8?B?YWJj=?=", "abc"),
        (b"=?utf-8?q?unfinished", "=?utf-8?q?unfinished"),
        (b"=?utf-8?q?a=0D=0ABcc:_x?=", "a Bcc: x"),
        ("a\u202eb".encode(), "a b"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"x" * 300, "x" * 200),
    ],
)
def test_decode(value: bytes, expected: str) -> None:
    assert decode(value, 200) == expected


@given(st.text(st.characters(categories=("L", "N", "P"), exclude_characters="\u200e\u200f"), min_size=1, max_size=60))
def test_what_the_standard_library_encodes_comes_back(text: str) -> None:
    value = Header(text, "utf-8", header_name="Subject").encode(linesep="\r\n").encode()
    assert decode(value, 200) == text.strip()


@given(st.binary(max_size=300), st.integers(1, 50))
def test_any_input_gives_short_printable_text(value: bytes, limit: int) -> None:
    text = decode(value, limit)
    assert len(text) <= limit
    assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or 0xD800 <= ord(c) < 0xE000 for c in text)
