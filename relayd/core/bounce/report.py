"""Reads delivery reports (RFC 3464, 6533) and the field blocks of reports that follow it loosely.

What the fields mean is judged in explain.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from relayd.core import xtext
from relayd.core.bounce.addresses import first_address, host_of

MAX_RECIPIENTS = 100
_RECIPIENTS = ("final-recipient", "original-recipient", "x-actual-recipient")
MAX_LINES = 2000

_FIELD = re.compile(r"[> \t]{0,8}([A-Za-z][A-Za-z0-9-]{2,40})[ \t]*:[ \t]*(.*)")
_PER_RECIPIENT = frozenset(
    {
        "final-recipient", "original-recipient", "action", "status", "remote-mta", "diagnostic-code",
        "last-attempt-date", "will-retry-until", "final-log-id", "x-actual-recipient", "x-supplementary-info",
        "x-original-message-id", "x-display-name", "x-mailer-recipient",
    }
)  # fmt: skip
_PER_MESSAGE = frozenset(
    {"reporting-mta", "received-from-mta", "arrival-date", "original-envelope-id", "dsn-gateway", "original-message-id"}
)


@dataclass(slots=True)
class Block:
    """The fields of one recipient: lower-case name → value, folded lines joined."""

    fields: dict[str, str] = field(default_factory=dict)
    _recipient: str | None = None

    def get(self, name: str) -> str:
        """A field's value, "" where there is none."""
        return self.fields.get(name, "")

    @property
    def recipient(self) -> str:
        """The address the report is about: Final-Recipient where that is one, as it is what failed."""
        if self._recipient is None:
            found = (typed_address(self.fields[name]) for name in _RECIPIENTS if name in self.fields)
            self._recipient = next(filter(None, found), "")
        return self._recipient

    def put(self, name: str, value: str) -> None:
        """Set a field, the first of its name."""
        self.fields.setdefault(name, value)
        self._recipient = None

    def append(self, name: str, more: str) -> None:
        """Continue a field."""
        self.fields[name] += f" {more}"
        self._recipient = None

    @property
    def remote(self) -> str:
        """Name of the host that refused."""
        return host_of(self.get("remote-mta").partition(";")[2] or self.get("remote-mta"))


@dataclass(slots=True)
class Report:
    """All fields of a report."""

    message: dict[str, str] = field(default_factory=dict)
    blocks: list[Block] = field(default_factory=list)


def typed_address(value: str) -> str:
    """The address of `rfc822; a@b`, of its misspellings, and of the utf-8 type (RFC 6533 3)."""
    kind, semicolon, rest = value.partition(";")
    if not semicolon or "@" in kind:
        rest = value
    rest = rest.strip()
    if kind.strip().lower() == "utf-8":
        try:
            rest = xtext.decode_utf8(rest)
        except ValueError:
            return ""
    return first_address(rest)


def parse(text: str) -> Report:
    """The blocks, however they are parted: some senders leave out the empty lines, some put them between fields."""
    report = Report()
    block = Block()
    last = ""
    for line in text.split("\n", MAX_LINES)[:MAX_LINES]:
        if not line.strip():
            if _whole(block) and "action" in block.fields and "status" in block.fields:
                block = _closed(report, block)
            last = ""
            continue
        if line[0] in " \t" and last:
            _append(report, block, last, line.strip())
            continue
        found = _FIELD.fullmatch(line.rstrip())
        if found is None:
            if last:  # a continued line without its blank
                _append(report, block, last, line.strip())
            continue
        name, value = found[1].lower(), found[2].strip()[:4000]
        if name in _PER_MESSAGE:
            report.message.setdefault(name, value)
        elif name in _PER_RECIPIENT:
            again = name in block.fields and (name in ("final-recipient", "action", "status") or _whole(block))
            if again or (not last and name.endswith("-recipient") and _whole(block)):
                block = _closed(report, block)
            block.put(name, value)
        elif name.startswith("x-"):
            report.message.setdefault(name, value)
        last = name
        if len(report.blocks) >= MAX_RECIPIENTS:
            return report
    _closed(report, block)
    return report


def _whole(block: Block) -> bool:
    return bool(block.recipient) and ("action" in block.fields or "status" in block.fields)


def _closed(report: Report, block: Block) -> Block:
    """Put the block away where it says anything; a new one."""
    if block.recipient or ("action" in block.fields and "status" in block.fields) or "diagnostic-code" in block.fields:
        report.blocks.append(block)
    return Block()


def _append(report: Report, block: Block, name: str, more: str) -> None:
    if name in block.fields:
        if len(block.fields[name]) < 4000:
            block.append(name, more)
    elif name in report.message and len(report.message[name]) < 4000:
        report.message[name] += f" {more}"


def looks_like_one(text: str) -> bool:
    """Whether a text part holds the fields of a report, as some senders put them in their letter."""
    lower = text.lower()
    return "final-recipient:" in lower and ("\naction:" in lower or "\nstatus:" in lower or "diagnostic-code:" in lower)
