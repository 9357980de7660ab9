"""Finds mail addresses and host names in free text, as reports write them. What is returned is never checked by DNS."""

from __future__ import annotations

import re

UNFIT = r"\x00-\x1f\x7f-\x9f\ud800-\udfff"
"""Controls, and octets that are no text, for a class of characters."""
_ATOM = rf"[^\s<>()\[\]\\,;:@\"'：；，、。「」『』（）＜＞【】{UNFIT}]{{1,64}}"
_LETTER = r"A-Za-z0-9\u00a0-\ud7ff\ue000-\uffff"
ADDRESS = (
    rf"(?:\"[^\"\n@{UNFIT}]{{1,64}}\"|{_ATOM}(?:'{_ATOM})?)"
    rf"@[{_LETTER}](?:[{_LETTER}_.-]{{0,252}}[{_LETTER}_-])?"
)
"""A mailbox (RFC 5321 4.1.2, with RFC 6531), loosely."""

_ADDRESS = re.compile(ADDRESS)
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,62}\.){1,8}[A-Za-z0-9-]{2,62}|\d{1,3}(?:\.\d{1,3}){3}")


def first_address(text: str) -> str:
    """The first address in the text, its domain in lower case; "" where there is none."""
    found = _ADDRESS.search(text[:2000])
    return tidy(found[0]) if found else ""


def tidy(address: str) -> str:
    """Without what stuck to it, domain in lower case."""
    local, _, domain = address.strip("<>").removeprefix("mailto:").rpartition("@")
    return f"{local}@{domain.rstrip('.').lower()}"


def host_of(text: str) -> str:
    """The first host name or IPv4 address in the text."""
    found = _HOST.search(text[:500])
    return found[0].lower() if found else ""
