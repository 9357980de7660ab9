"""Reads complaints: RFC 5965 (ARF), and the forms of those who do not quite follow it.

Which recipient complained is often hidden on purpose; then what is left of the returned mail has to tell.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from relayd.core.bounce.addresses import ADDRESS, first_address, tidy
from relayd.core.bounce.mime import Part
from relayd.core.classes import ReplyClass

_FIELD = re.compile(r"^([A-Za-z][A-Za-z0-9-]{1,40})[ \t]*:[ \t]*([^\n]{0,1000})", re.MULTILINE)
_ADDRESS = re.compile(ADDRESS)
_AGENT = re.compile(r"^user-agent[ \t]*:", re.MULTILINE)
_LETTER = (
    "email abuse report for an email", "e-mail abuse report for an e-mail", "spam report for an email",
    "opt-out report for an email", "complaint about message from", "junk e-mail report", "junk email report",
    "is a spam complaint",
)  # fmt: skip
_SUBJECT = re.compile(
    r"^(?:complaint about message from|abuse report|spam report|complaint from|feedback report)\b", re.IGNORECASE
)
_OTHERS = {
    "auth-failure": ReplyClass.AUTHENTICATION_FAILED,  # RFC 6591
    "dmarc": ReplyClass.AUTHENTICATION_FAILED,
    "not-spam": ReplyClass.DELIVERED,  # RFC 6430
    "virus": ReplyClass.VIRUS,
}
"""Reports of the same form in which nobody asks for less mail."""


@dataclass(frozen=True, slots=True)
class Complaint:
    """A complaint about one mail."""

    type: str
    """abuse, fraud, opt-out …, in lower case."""
    recipients: tuple[str, ...]
    reporter: str
    """User-Agent."""

    @property
    def cls(self) -> ReplyClass:
        """The class: complaint, where a recipient does not want such mail."""
        return _OTHERS.get(self.type, ReplyClass.COMPLAINT)


def read(root: Part, letter: str, original: Mapping[str, str]) -> Complaint | None:
    """The complaint, None where the mail is none."""
    part = next((each for each in root.walk() if each.type == "message/feedback-report"), None)
    if part is None and (b"Feedback-Type:" in root.octets or b"feedback-type:" in root.octets):
        part = _in_text(root)
    if part is None:
        return _formless(root, letter, original)
    fields: dict[str, list[str]] = {}
    for name, value in _FIELD.findall(part.text(20000)):
        fields.setdefault(name.lower(), []).append(value.strip())
    named = [
        first_address(value) for name in ("original-rcpt-to", "removal-recipient") for value in fields.get(name, ())
    ]
    recipients = tuple(dict.fromkeys(address for address in named if address))
    kind = next(iter(fields.get("feedback-type", ())), "abuse").split(";")[0].strip().lower()
    agent = next(iter(fields.get("user-agent", ())), "")
    return Complaint(kind, recipients[:100] or _of_original(original), agent)


def _in_text(root: Part) -> Part | None:
    """The part that has the fields without the type."""
    for part in root.walk():
        text = part.text(4000).lower() if part.type.startswith(("text/", "message/feedback")) else ""
        if "feedback-type:" in text and _AGENT.search(text):
            return part
    return None


def _formless(root: Part, letter: str, original: Mapping[str, str]) -> Complaint | None:
    """Forms without the fields: Outlook's (X-HmXmrOriginalRecipient in the returned mail), and letters."""
    hidden = first_address(original.get("x-hmxmroriginalrecipient", ""))
    about = root.value("from").lower()
    if hidden and ("staff@hotmail" in about or "complaint" in root.value("subject").lower() or "junk" in about):
        return Complaint("abuse", (hidden,), "")
    lower = letter[:4000].lower()
    if original and (
        any(each in lower for each in _LETTER) or (_abuse_desk(about) and _SUBJECT.search(root.text_value("subject")))
    ):
        return Complaint("abuse", _of_original(original), "")
    return None


def _abuse_desk(author: str) -> bool:
    return any(word in author for word in ("abuse", "complaint", "fbl", "feedback", "staff@", "scomp@", "spam"))


def _of_original(original: Mapping[str, str]) -> tuple[str, ...]:
    """Whom the returned mail went to."""
    for name in ("x-hmxmroriginalrecipient", "x-apparently-to", "delivered-to", "x-original-to", "envelope-to", "to"):
        found = _ADDRESS.search(original.get(name, "")[:2000])
        if found:
            return (tidy(found[0]),)
    return ()
