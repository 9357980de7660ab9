"""Decodes header text for people: RFC 2047 encoded words, raw 8-bit and ISO-2022-JP, as apps really write it.

For search and display only; nothing is decided by the result, and a header is never written back from it.
"""

from __future__ import annotations

import binascii
import re
from functools import lru_cache

MAX_INPUT = 8192
"""Octets of a header value that are looked at."""

_FOLD = re.compile(rb"\r\n(?=[ \t])")
_WORD = re.compile(rb"=\?([A-Za-z0-9_.:+-]{1,60})(?:\*[A-Za-z0-9-]*)?\?([bBqQ])\?([^?\r\n]*)\?=")
_INVISIBLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]+")
_SPACES = re.compile(r"  +")
_Q_OCTET = re.compile(rb"=([0-9A-Fa-f]{2})")
_JIS_SEGMENT = re.compile(rb"\x1b\$[@B]((?:[\x21-\x7e]{2})*)|\x1b\([BJ]")

_WIDER = {
    # what senders mean when they name the smaller set
    "shift_jis": "cp932",
    "sjis": "cp932",
    "x-sjis": "cp932",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "euc-kr": "cp949",
    "ks_c_5601-1987": "cp949",
    "iso-8859-1": "cp1252",
    "us-ascii": "utf-8",
    "ascii": "utf-8",
}
_NOT_CHARSETS = frozenset({"idna", "punycode", "unicodeescape", "rawunicodeescape", "undefined"})
"""Python's codecs that are no character sets, without marks: Python overlooks those, too ("-punycode")."""


def decode(value: bytes, limit: int) -> str:
    """The text of a header value, unfolded, without control and direction characters, at most `limit` characters."""
    trimmed = value.strip()
    if len(trimmed) <= limit and trimmed.isascii() and b"=?" not in trimmed:
        # what nearly every header is; the same result as below
        text = trimmed.decode("ascii")
        if text.isprintable() and "  " not in text:
            return text
    if len(value) > MAX_INPUT:
        value = value[:MAX_INPUT]
    if b"\r\n" in value:
        value = _FOLD.sub(b"", value)
    text = _with_words(value) if b"=?" in value else _plain(value)
    if not text.isprintable():
        text = _INVISIBLE.sub(" ", text)
    if "  " in text:
        text = _SPACES.sub(" ", text)
    return text.strip()[:limit].rstrip()


def _plain(value: bytes) -> str:
    if b"\x1b" in value:
        return _iso_2022_jp(value)
    return value.decode("utf-8", "replace")


def _with_words(value: bytes) -> str:
    """RFC 2047 6.2: white space between two encoded words is not shown.

    Neighbours of one charset are joined before decoding: many senders cut words inside a character.
    """
    out: list[str] = []
    charset, pending, position = "", b"", 0
    for match in _WORD.finditer(value):
        between = value[position : match.start()]
        position = match.end()
        octets = _octets(match[2], match[3])
        name = match[1].decode("ascii").lower()
        if octets is None:
            octets, name = match[0], "utf-8"
        if charset and (between.strip(b" \t") or name != charset):
            out.append(_text(pending, charset))
            pending = b""
        if between.strip(b" \t") or not charset:
            out.append(_plain(between))
        charset, pending = name, pending + octets
    if charset:
        out.append(_text(pending, charset))
    out.append(_plain(value[position:]))
    return "".join(out)


def _octets(encoding: bytes, text: bytes) -> bytes | None:
    """What an encoded word holds; None where it is not what it says it is."""
    if encoding in b"qQ":
        return _Q_OCTET.sub(lambda match: bytes((int(match[1], 16),)), text.replace(b"_", b" "))
    text = text.replace(b" ", b"").rstrip(b"=")
    try:
        return binascii.a2b_base64(text + b"=" * (-len(text) % 4))
    except binascii.Error:
        return None


def to_text(octets: bytes, charset: str) -> str:
    """The text of octets in a charset (lower case) that may be unknown or wrong; what cannot be decoded is replaced."""
    return _text(octets, charset)


def _text(octets: bytes, charset: str) -> str:
    if charset.startswith("iso-2022-jp"):
        return _iso_2022_jp(octets)
    try:
        return octets.decode(_codec(charset), "replace")
    except (LookupError, ValueError):
        return octets.decode("utf-8", "replace")


@lru_cache(maxsize=256)
def _codec(charset: str) -> str:
    charset = _WIDER.get(charset, charset)
    return "utf-8" if "".join(filter(str.isalnum, charset)) in _NOT_CHARSETS else charset


def _iso_2022_jp(octets: bytes) -> str:
    for codec in ("iso2022_jp", "iso2022_jp_ext"):
        try:
            return octets.decode(codec)
        except UnicodeError:
            continue

    # circled digits and other vendor characters, which the standard does not have but Japanese mail does
    def segment(match: re.Match[bytes]) -> bytes:
        pairs = match[1]
        return bytes(octet | 0x80 for octet in pairs).decode("euc_jis_2004", "replace").encode() if pairs else b""

    return _JIS_SEGMENT.sub(segment, octets).replace(b"\x1b", b"").decode("utf-8", "replace")
