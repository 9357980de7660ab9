"""Finds the mail that a report is about: the header of the returned copy, wherever and however it came back."""

from __future__ import annotations

import re

from relayd.core.bounce.addresses import UNFIT
from relayd.core.bounce.mime import Part, header, opened

_TYPES = ("message/rfc822", "message/global", "message/partial")
_HEADER_TYPES = ("text/rfc822-headers", "text/rfc822-header", "message/rfc822-headers", "message/global-headers")
MESSAGE_ID = re.compile(rf"<[^<>\s{UNFIT}]{{1,400}}>")
_ID_LINE = re.compile(
    r"^[ \t>]{0,12}message-?id[ \t]{0,4}[:=]\s{0,8}"
    rf"(<[^<>\s{UNFIT}]{{1,400}}>|[^\s<>:@{UNFIT}]{{1,200}}@[^\s<>{UNFIT}]{{1,200}})",
    re.IGNORECASE | re.MULTILINE,
)
_FIRST_FIELD = re.compile(
    r"^(?:received|return-path|message-id|from|to|subject|date|x-[a-z0-9-]{1,40}|dkim-signature|arc-seal)[ \t]*:[ \t]",
    re.IGNORECASE | re.MULTILINE,
)


def fields_of(root: Part, rest: str) -> dict[str, str]:
    """The returned header: from a part made for it, else from `rest`, the end of the letter."""
    for part in root.walk():
        if part.type in _TYPES and part is not root:
            found = _first(_header_of(part))
            if found:
                return found
        elif part.type in _HEADER_TYPES:
            found = _in_text(part.text())
            if found:
                return found
    found = _in_text(rest) if rest else {}
    if not found.get("message-id"):
        for part in root.walk():
            name = (part.parameters.get("name") or "").lower()
            if part.type == "text/plain" and part is not root and "header" in name:
                found = _in_text(part.text()) or found
    return found


def _header_of(part: Part) -> list[tuple[str, str]]:
    encoding = part.value("content-transfer-encoding").strip().lower()
    if encoding in ("base64", "quoted-printable"):
        return opened(part).fields
    start = part.start
    while part.octets.startswith(b"\n", start, part.end):
        start += 1
    return header(part.octets, start, part.end)[0]


def _in_text(text: str) -> dict[str, str]:
    start = _FIRST_FIELD.search(text[:20000])
    if start is None:
        return {}
    octets = text[start.start() : start.start() + 65536].encode("utf-8", "surrogateescape")
    return _first(header(octets, 0, len(octets))[0])


def _first(fields: list[tuple[str, str]]) -> dict[str, str]:
    return dict(reversed(fields))


def message_id(fields: dict[str, str], letter: str) -> str:
    """The Message-ID of the returned header, or the one that the letter names."""
    value = fields.get("message-id", "")
    found = MESSAGE_ID.search(value) or MESSAGE_ID.search(f"<{value.partition(' ')[0]}>" if "@" in value else "")
    if found:
        return found[0]
    line = _ID_LINE.search(letter[:20000])
    if line is None:
        return ""
    return line[1] if line[1].startswith("<") else f"<{line[1]}>"
