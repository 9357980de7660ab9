"""xtext, the encoding of ENVID and ORCPT (RFC 3461 4), and its cousin for UTF-8 addresses (RFC 6533 3)."""

from __future__ import annotations

import re

_PLAIN = re.compile(r"[!-*,-<>-~]*")
_HEX = re.compile(r"\+([0-9A-Fa-f]{2})")
_UTF8_NOT_PLAIN = re.compile(r"[^!-*,-<>-\[\]-~]")
_EMBEDDED = re.compile(r"\\x\{([0-9A-Fa-f]{1,6})\}")
_ADDRESS_TYPE = re.compile(r"[A-Za-z0-9-]{1,64}")


def decode(text: str) -> str:
    """The text behind xtext; it may hold anything, control characters too. Raises ValueError."""
    if not _PLAIN.fullmatch(_HEX.sub("", text)):
        raise ValueError("not xtext (RFC 3461 4)")
    octets = _HEX.sub(lambda match: chr(int(match[1], 16)), text).encode("latin-1")
    return octets.decode("utf-8", "replace")


def encode_utf8(address: str) -> str:
    """The utf-8-addr-xtext of an address: ASCII only, for mail that may not carry UTF-8 (RFC 6533 3)."""
    return _UTF8_NOT_PLAIN.sub(lambda match: f"\\x{{{ord(match[0]):X}}}", address)


def decode_utf8(text: str) -> str:
    """The address behind utf-8-addr-xtext or utf-8-addr-unitext. Raises ValueError where it is neither."""

    def point(match: re.Match[str]) -> str:
        return chr(int(match[1], 16))

    rest = _EMBEDDED.sub("", text)
    if "\\" in rest or "+" in rest or "=" in rest or any(ord(letter) <= 32 or ord(letter) == 127 for letter in rest):
        raise ValueError("not a UTF-8 address (RFC 6533 3)")
    decoded = _EMBEDDED.sub(point, text)
    decoded.encode()  # surrogates are no characters; UnicodeEncodeError is a ValueError
    return decoded


def parse_orcpt(value: str) -> tuple[str, str]:
    """Address type (lower case) and decoded address of an ORCPT parameter (RFC 3461 4.2). Raises ValueError."""
    kind, semicolon, address = value.partition(";")
    if not semicolon or not _ADDRESS_TYPE.fullmatch(kind) or not address:
        raise ValueError("not an address type and an address (RFC 3461 4.2)")
    kind = kind.lower()
    return kind, decode_utf8(address) if kind == "utf-8" else decode(address)
