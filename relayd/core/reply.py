"""One SMTP reply (RFC 5321 4.2) with its enhanced status code (RFC 3463): the way failures travel in relayd."""

from __future__ import annotations

import re
from dataclasses import dataclass

from relayd.core.quick import quick

_ENHANCED = re.compile(r"([245]\.[0-9]{1,3}\.[0-9]{1,3})(?:\s+|$)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


@quick
@dataclass(frozen=True, slots=True)
class Reply:
    """A reply as we give or get it. `text` has no control characters; its lines are split by \\n."""

    code: int
    enhanced: str
    text: str

    @property
    def positive(self) -> bool:
        """2yz or 3yz."""
        return self.code < 400

    @property
    def permanent(self) -> bool:
        """5yz."""
        return self.code >= 500

    def __str__(self) -> str:
        """One line for logs and reports."""
        text = self.text.replace("\n", " ")
        return f"{self.code} {self.enhanced} {text}".strip() if self.enhanced else f"{self.code} {text}".strip()

    def wire(self) -> bytes:
        """The octets to send, CRLF included, every line carrying code and enhanced code (RFC 2034)."""
        prefix = f"{self.enhanced} " if self.enhanced else ""
        *others, last = self.text.split("\n")
        front = "".join(f"{self.code}-{prefix}{line}\r\n" for line in others) if others else ""
        return f"{front}{self.code} {prefix}{last}\r\n".encode()


def parse_reply(code: int, text: str, *, limit: int = 2000) -> Reply:
    """A peer's reply as a value: control characters become spaces, text over `limit` characters is cut."""
    if len(text) <= limit and text.isprintable():
        lines = [text.strip()]  # as nearly always: one line, and nothing in it to be cleaned
    else:
        lines = [_CONTROL.sub(" ", line).strip() for line in text[:limit].replace("\r\n", "\n").split("\n")]
    match = _ENHANCED.match(lines[0])
    if match is None or match[1][0] != str(code)[0]:
        return Reply(code, "", "\n".join(lines))
    enhanced = match[1]
    if len(lines) == 1:
        return Reply(code, enhanced, lines[0][len(enhanced) :].lstrip())
    stripped = [line[len(enhanced) :].lstrip() if line.startswith(enhanced) else line for line in lines]
    return Reply(code, enhanced, "\n".join(stripped))
