"""Finds the domain of a message's author in a From header (RFC 5322 3.4), however it is written.

Envelope addresses (RFC 5321) are address.py's. Nothing here raises: what cannot be read is "".
"""

from __future__ import annotations

import re
from functools import lru_cache

from relayd.core import address

MAX_INPUT = 65536
"""Octets of the header value that are looked at."""

MAX_AUTHORS = 20
"""Domains of one From value that are told; where there are more, "" stands for the rest."""

REMEMBERED = 200
"""Octets of the longest header value whose answer is kept for the next mail."""

_PLAIN = re.compile(
    rb"[ \t]*(?:\"[^\"\\\r\n]*\"[ \t]*<|[^\"()<>,:;@\\\[\]\r\n]*<|)[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]+@"
    rb"([A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*)(>?)[ \t\r\n]*"
)
"""The usual forms: a@b, <a@b>, Name <a@b>, "Name" <a@b>. All else is read token by token."""

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"?|\[(?:[^\]\\]|\\.)*\]?|[<>@,:;()]|\\.?|[^"\[<>@,:;()\\]+', re.DOTALL)
_IN_COMMENT = re.compile(r"[()]|\\.|[^()\\]+|\\", re.DOTALL)


def author_domain(value: bytes) -> str:
    """Domain (A-labels, lower case) of the first mailbox of a From value that has one; "" when there is none."""
    return next(iter(author_domains(value)), "")


def author_domains(value: bytes) -> tuple[str, ...]:
    """Domains of all mailboxes of a From value, in order, each once."""
    # an app writes the same From all day
    return _remembered(value) if len(value) <= REMEMBERED else _author_domains(value)


def _author_domains(value: bytes) -> tuple[str, ...]:
    match = _PLAIN.fullmatch(value)
    if match is not None and (match[2] == b">") == (b"<" in value):
        domain = match[1]
        # "xn--" and ordinary labels alike need no conversion, only length is left to check
        if len(domain) <= 255 and all(len(label) <= 63 for label in domain.split(b".")):
            return (domain.lower().decode("ascii"),)
    return _search(value[:MAX_INPUT])


@lru_cache(maxsize=1024)
def _remembered(value: bytes) -> tuple[str, ...]:
    return _author_domains(value)


def _search(value: bytes) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for mailbox in _mailboxes(_tokens(value.decode("utf-8", "surrogateescape"))):
        if "@" not in mailbox:
            continue
        if len(found) == MAX_AUTHORS:
            found[""] = None
            break
        after = mailbox[len(mailbox) - mailbox[::-1].index("@") :]
        domain = "".join(after).rstrip(".")
        try:
            found[address.to_ascii(domain)] = None
        except address.AddressError:
            continue
    return tuple(found)


def _tokens(text: str) -> list[str]:
    """Quoted strings, domain literals, specials and words; comments (which nest) and white space left out."""
    out: list[str] = []
    position, depth = 0, 0
    while position < len(text):
        match = (_IN_COMMENT if depth else _TOKEN).match(text, position)
        if match is None:  # cannot be: both patterns take any character
            break
        position, part = match.end(), match[0]
        if part == "(":
            depth += 1
        elif part == ")":
            depth = max(0, depth - 1)
        elif not depth:
            out.extend(part.split() if part[0] not in '"[' else [part])
    return out


def _mailboxes(tokens: list[str]) -> list[list[str]]:
    """The mailboxes as token lists: groups opened, display names and routes dropped."""
    out: list[list[str]] = []
    current: list[str] = []
    angle = False
    for part in tokens:
        if part == "<":
            current, angle = [], True
        elif part == ">" and angle:
            out.append(current)
            current, angle = [], False
        elif part == ":" or (angle and part == ","):
            # the end of a group's name or of a source route; both are no part of the address
            current = []
        elif part in {",", ";"}:
            out.append(current)
            current = []
        else:
            current.append(part)
    out.append(current)
    return out
