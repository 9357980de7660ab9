"""Octets to text: transfer encodings and character sets, as mail programs really write them.

Takes anything, raises nothing; what cannot be decoded is replaced. Header text is words.py's.
"""

from __future__ import annotations

import binascii
import re

from relayd.core import words

_NOT_BASE64 = bytes(
    octet for octet in range(256) if octet not in b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
)
_UU_BEGIN = re.compile(rb"^begin [0-7]{3,4} [^\n]{1,200}\n", re.MULTILINE)
_NAME = re.compile(r"[a-z0-9_.:-]{1,40}")


def transferred(octets: bytes, encoding: str) -> bytes:
    """The content behind a Content-Transfer-Encoding (lower case); unknown ones are taken as they are."""
    if encoding == "quoted-printable":
        return binascii.a2b_qp(octets)
    if encoding == "base64":
        return _base64(octets)
    if encoding in ("x-uuencode", "uuencode", "x-uue") or b"\nbegin 6" in octets[:4096]:
        return _uuencoded(octets)
    return octets


def _base64(octets: bytes) -> bytes:
    """Whatever of it is base64: stray characters and a cut end do not matter."""
    end = octets.find(b"=")
    if end >= 0:
        octets = octets[:end]
    octets = octets.translate(None, _NOT_BASE64)
    if len(octets) % 4 == 1:
        octets = octets[:-1]
    try:
        return binascii.a2b_base64(octets + b"=" * (-len(octets) % 4))
    except binascii.Error:
        return b""


def _uuencoded(octets: bytes) -> bytes:
    """What stands before the first uuencoded file, and the file behind it."""
    begin = _UU_BEGIN.search(octets)
    if begin is None:
        return octets
    out = [octets[: begin.start()]]
    for line in octets[begin.end() :].split(b"\n"):
        if line.rstrip() == b"end":
            break
        try:
            out.append(binascii.a2b_uu(line))
        except binascii.Error:
            continue
    return b"".join(out)


def text_of(octets: bytes, charset: str) -> str:
    """The text. A charset that does not fit what is there is guessed again: mail from Japan often names another."""
    if octets.isascii() and b"\x1b" not in octets:
        return octets.decode("ascii")
    charset = charset.lower()
    if b"\x1b" in octets and not charset.startswith("utf-"):
        return words.to_text(octets, "iso-2022-jp") if octets.isascii() else _guessed(octets.replace(b"\x1b", b""))
    if charset and charset not in ("us-ascii", "ascii", "iso-2022-jp", "utf-8") and _NAME.fullmatch(charset):
        text = words.to_text(octets, charset)
        if "\ufffd" not in text:
            return text
    return _guessed(octets)


def _guessed(octets: bytes) -> str:
    for codec in ("utf-8", "euc_jp", "cp932"):
        try:
            return octets.decode(codec)
        except UnicodeDecodeError:
            continue
    return octets.decode("utf-8", "replace")
