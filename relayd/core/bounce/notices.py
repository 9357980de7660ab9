"""Reads notices of Amazon SES that come as JSON in a mail (SNS by e-mail), instead of a report.

Other providers' webhooks are not mail, and not read here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from relayd.core.bounce.addresses import first_address

_LIMIT = 65536
_MOST = 100


@dataclass(frozen=True, slots=True)
class Notice:
    """What it says about one recipient."""

    type: str
    """bounce, complaint or delivery."""
    recipient: str
    action: str
    status: str
    diagnostic: str
    host: str
    message_id: str


def read(text: str) -> list[Notice]:
    """The notices in a letter; none where it is no such letter, or a broken one."""
    start = text.find('{"notificationType"', 0, _LIMIT)
    if start < 0:
        return []
    # long lines are wrapped on their way, in the middle of a word
    joined = text[start : start + _LIMIT].replace("\n ", "").replace("\n", " ")
    try:
        value, _ = json.JSONDecoder(strict=False).raw_decode(joined)
    except (ValueError, RecursionError):
        return []
    return list(_notices(value)) if isinstance(value, dict) else []


def _notices(value: dict[str, Any]) -> Iterator[Notice]:
    kind = _text(value, "notificationType").lower()
    body = value.get(kind)
    body = body if isinstance(body, dict) else {}
    about = _message_id(value.get("mail"))
    names = {"bounce": "bouncedRecipients", "complaint": "complainedRecipients", "delivery": "recipients"}
    recipients = body.get(names.get(kind, ""))
    for each in recipients[:_MOST] if isinstance(recipients, list) else ():
        fields = each if isinstance(each, dict) else {"emailAddress": each}
        address = first_address(_text(fields, "emailAddress"))
        diagnostic = (
            _text(fields, "diagnosticCode") or _text(body, "smtpResponse") or _text(body, "complaintFeedbackType")
        )
        host = _text(body, "reportingMTA").partition(";")[2].strip()
        yield Notice(kind, address, _text(fields, "action"), _text(fields, "status"), diagnostic, host, about)


def _message_id(mail: Any) -> str:
    headers = mail.get("commonHeaders") if isinstance(mail, dict) else None
    return _text(headers, "messageId") if isinstance(headers, dict) else ""


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    return value[:2000] if isinstance(value, str) else ""
