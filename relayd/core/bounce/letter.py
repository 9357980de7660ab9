"""Reads the letter of a bounce, the part for people: which recipients it names, and what it says about each.

The wordings are wordings.py's. Whether the mail is a bounce at all is decided in explain.py.
"""

# ruff: noqa: E501 - patterns are read best in few lines
from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from relayd.core.bounce import wordings
from relayd.core.bounce.addresses import host_of, tidy
from relayd.core.lifecycle import Stage

MAX_LETTER = 16384
"""Characters of a letter that are read."""
MAX_RECIPIENTS = 100
_MAX_LINES = 400
_MAX_LINE = 600


def _shortest(texts: Iterable[str]) -> tuple[str, ...]:
    """Without those that hold another one: whatever has them has that, too. The most general first."""
    kept: list[str] = []
    for text in sorted(texts, key=len):
        if not any(each in text for each in kept):
            kept.append(text)
    return tuple(kept)


_ALL_OPENINGS = _shortest(opening for openings in wordings.OPENINGS.values() for opening in openings)
_REPLY = re.compile(
    r"(?:^|[\s:;'\"<\[(#,])(?P<code>[45][0-9]{2})(?:[ -]['\"]?#?(?P<status>[45]\.[0-9]{1,3}\.[0-9]{1,3})\b|(?=[ -]|$))"
)
_STATUS = re.compile(r"(?<![\d.])#?([245]\.[0-9]{1,3}\.[0-9]{1,3})(?![\d.])")
_SAID = re.compile(
    r"(?:said|returned|error|response|reason|reply|responded|message|rejected)[^\n:]{0,60}:", re.IGNORECASE
)
_HOST = re.compile(
    r"\bhost\s+([A-Za-z0-9._-]{1,255})\s*\[|while talking to\s+([A-Za-z0-9._-]{1,255})|rejected by the server for the recipient"
    r" domain \S{1,255} by ([A-Za-z0-9._-]{1,255})|^([a-z0-9._-]{1,255}) (?:\[[0-9a-f.:]{2,45}\] )?(?:did not like our|gave this error|does not like)",
    re.IGNORECASE | re.MULTILINE,
)
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


@dataclass(slots=True)
class Said:
    """What a letter says about one recipient."""

    recipient: str
    text: str = ""
    """As it stands there."""

    @property
    def reason(self) -> str:
        """In one line."""
        return one_line(self.text)

    @property
    def stage(self) -> Stage | None:
        """At which command the other side refused, where the reason tells."""
        return stage_of(self.text)

    @property
    def host(self) -> str:
        """The host that refused, where the reason tells."""
        return host_in(self.text)


@dataclass(slots=True)
class Letter:
    """A letter, read."""

    text: str
    """Without the returned mail."""
    said: list[Said]
    rest: str
    """Where the returned mail begins, if it is in the same part; else ""."""

    @property
    def opening(self) -> bool:
        """It has the words that bounces have."""
        return _has(_flat(self.text), _ALL_OPENINGS)

    @property
    def delayed(self) -> bool:
        """It tells of a delay."""
        return _has(_flat(self.text), wordings.DELAY)


@dataclass(frozen=True, slots=True)
class Codes:
    """The numbers that stand in a reason."""

    reply: int | None = None
    status: str = ""
    start: int = 0
    """Where the reply stands in the reason."""
    quoted: bool = False
    """They are another server's, quoted in brackets by the one that reports."""


def one_line(text: str, limit: int = 1000) -> str:
    """The text with controls and line ends made spaces, cut."""
    flat = " ".join(text[: limit * 2].split())
    if not flat.isprintable():
        flat = " ".join(_CONTROLS.sub(" ", flat).split())
    return flat[:limit]


@lru_cache(maxsize=16)  # one mail's reason is asked about more than once
def codes(text: str) -> Codes:
    """Reply code and enhanced status code of a reason. Where a reply quotes another server's, that one counts."""
    text = text[:2000]
    first = best = None
    for found in _REPLY.finditer(text):
        first = first or found
        if found["status"] and (best is None or text[found.start()] in "<["):
            best = found
    chosen = best or first
    reply = int(chosen["code"]) if chosen else None
    status = chosen["status"] or "" if chosen else ""
    if not status:
        other = _STATUS.search(text)
        status = other[1] if other else ""
    return Codes(
        reply,
        status,
        chosen.start() if chosen else 0,
        chosen is not None and chosen.start() > 0 and text[chosen.start()] in "<[",
    )


def read(text: str) -> Letter:
    """Read a letter."""
    rest = ""
    cut = end_of(text)
    if cut < len(text):
        text, rest = text[:cut], text[cut:]
    found = Letter(text[:MAX_LETTER], _listed(text[:MAX_LETTER]), rest)
    if not found.said and found.opening:
        found.said = _in_sentences(found.text)
    return found


def _flat(text: str) -> str:
    return " ".join(text.lower().replace("\u2019", "'").split())


def _has(text: str, wanted: tuple[str, ...]) -> bool:
    for each in wanted:  # noqa: SIM110 - half the time of any() over a generator
        if each in text:
            return True
    return False


def end_of(text: str) -> int:
    """Where in a letter the returned mail begins; its length where it does not."""
    position, seen = 0, False
    for line in text[:MAX_LETTER].split("\n"):
        start = line[:80].lstrip(" \t>").lower()
        if (
            seen
            and start
            and (start.startswith(wordings.ORIGINAL_STARTS) or (start[0] == "-" and wordings.RULED.match(start)))
        ):
            return position
        seen = seen or bool(start)
        position += len(line) + 1
    return len(text)


def _listed(text: str) -> list[Said]:
    """Recipients that stand at the start of a line, or behind a label, with the lines that follow them."""
    said: dict[str, list[str]] = {}
    current: list[str] | None = None
    labelled = False
    for line in [each[:_MAX_LINE].rstrip() for each in text.split("\n", _MAX_LINES)[:_MAX_LINES]]:
        found = None
        if "@" in line:
            found = wordings.LINE.match(line)
            if found is None and not line.lstrip().lower().startswith(("from", "reply-to", "message-id")):
                expanded = wordings.EXPANDED.search(line)
                found = expanded if expanded and not said else wordings.LABELLED.match(line)
        if found is not None and not _transcript(line):
            address = tidy(found["address"])
            if len(said) >= MAX_RECIPIENTS and address not in said:
                break
            current = said.setdefault(address, [])
            groups = found.groupdict()
            current.append(f"{groups.get('code') or ''}{(groups.get('rest') or '').lstrip(' >:;,.')}")
            labelled = True
        elif current is not None and line.strip():
            current.append(line.strip())
        elif current is not None and labelled and any(part.strip("()[] ") for part in current):
            current = current if current[-1].endswith(":") else None
    return [Said(address, "\n".join(lines)) for address, lines in said.items()]


def _transcript(line: str) -> bool:
    """A line of an SMTP dialogue or of a header is no list entry."""
    start = line.lstrip()[:12].lower()
    return start.startswith(("<<<", ">>> mail", ">>> rcpt", ">>> data", "from:", "message-id", "reply-to", "sender:"))


def _in_sentences(text: str) -> list[Said]:
    said: dict[str, Said] = {}
    flat = one_line(text, MAX_LETTER)
    for found in wordings.SENTENCE.finditer(flat[:8000]):
        address = tidy(found["address"])
        if flat[: found.start("address")].rstrip(" <(:\"'")[-4:].lower() == "from":
            continue
        if address not in said and len(said) < 10:
            said[address] = Said(address, flat[found.end() : found.end() + 1000])
    return list(said.values())


def stage_of(text: str) -> Stage | None:
    """At which command the other side refused, where the text tells."""
    lower = text[:2000].lower()
    for name, texts in wordings.STAGES:
        if _has(lower, texts):
            return Stage(name)
    return None


def host_in(text: str) -> str:
    """The host that refused, where the text tells."""
    found = _HOST.search(text[:2000])
    return host_of(next((name for name in found.groups() if name), "")) if found else ""


def reply_line(text: str) -> str:
    """The words of the other server somewhere in a letter: a line with a reply code, or what follows "said:"."""
    lines = [line[:_MAX_LINE] for line in text.split("\n", _MAX_LINES)[:_MAX_LINES]]
    best = ""
    for number, line in enumerate(lines):
        found = _REPLY.search(line)
        if found is None:
            continue
        starts = line.lstrip().startswith(("<<<", "Out:", found["code"]))
        if found["status"] or starts or found.start() == 0 or _SAID.search(line[: found.start() + 1]):
            reason = one_line(" ".join([line[found.start() :], *_until_blank(lines[number + 1 : number + 6])]))
            if found["status"]:
                return reason
            best = best or reason
    return best


def _until_blank(lines: list[str]) -> list[str]:
    out = []
    for line in lines:
        if not line.strip() or line.lstrip().startswith((">>>", "<<<", "...")):
            break
        out.append(line.strip())
    return out


_TRANSCRIPT = re.compile(r"^(?:>>> (?P<command>[^\n]{1,300})|<<< (?P<reply>[^\n]{0,600}))$", re.MULTILINE)


def refused_command(text: str) -> tuple[Stage | None, str]:
    """From a sendmail transcript: the command that was refused, and the reply.

    With pipelining sendmail shows replies to RCPT below DATA; the "no recipients" that follows gives that away.
    """
    command = ""
    for found in _TRANSCRIPT.finditer(text[:MAX_LETTER]):
        if found["command"]:
            command = found["command"].upper()
        elif found["reply"][:1] in ("4", "5"):
            for start, stage in (("MAIL", Stage.MAIL), ("RCPT", Stage.RCPT), ("DATA", Stage.DOT)):
                if command.startswith(start):
                    late = stage is Stage.DOT and re.search(
                        r"<<< 5\d\d [^\n]{0,40}(?:rcpt|recipients)", text, re.IGNORECASE
                    )
                    return (Stage.RCPT if late else stage), found["reply"]
            return (Stage.EHLO if command.startswith(("EHLO", "HELO")) else None), found["reply"]
    return None, ""
