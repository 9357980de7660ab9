"""Composes delivery status notifications: RFC 3464 in the multipart of RFC 6522, RFC 6533 where addresses need it.

Pure: which report is owed is settle's, sending it is notices'. Words for people are report_text.py's.
"""

from __future__ import annotations

import binascii
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from relayd.core import report_text, xtext
from relayd.core.headers import format_date, scan
from relayd.core.ids import format_id
from relayd.core.mail import Message, Notify, Recipient, Ret
from relayd.core.reply import Reply
from relayd.core.units import Millis

FULL_LIMIT = 100 * 1024
"""Octets of a message up to which a failure report returns all of it."""
HEADERS_LIMIT = 64 * 1024
"""Octets of returned headers, and of the text about recipients."""
MAX_LINE = 998
"""Octets (RFC 5322 2.1.1)."""
FOLD_AT = 78

_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]+")
_NOT_HOST = re.compile(r"[^A-Za-z0-9._:\[\]-]")
_STATUS = re.compile(r"[245]\.[0-9]{1,3}\.[0-9]{1,3}")
_STRAY = re.compile(rb"[\0\r\n]")
_LONG_LINE = re.compile(rb"[^\n]{1000,}")


class Kind(StrEnum):
    """What a report tells: the Action field of RFC 3464 2.3.3."""

    FAILED = "failed"
    DELAYED = "delayed"
    RELAYED = "relayed"
    """Handed to a system that reports no success (RFC 3461 5.2.2)."""
    DELIVERED = "delivered"


_WORD = {
    Kind.FAILED: Notify.FAILURE,
    Kind.DELAYED: Notify.DELAY,
    Kind.RELAYED: Notify.SUCCESS,
    Kind.DELIVERED: Notify.SUCCESS,
}
_UNASKED = frozenset({Kind.FAILED, Kind.DELAYED})
"""What a sender is told that said nothing about it."""
_DIGIT = {Kind.FAILED: "5", Kind.DELAYED: "4", Kind.RELAYED: "2", Kind.DELIVERED: "2"}


@dataclass(frozen=True, slots=True)
class Fate:
    """What a report tells about one recipient."""

    recipient: Recipient
    reply: Reply | None = None
    """The last reply about it: the upstream's, or ours for what never got one."""
    remote: str = ""
    """Host name of the upstream that gave the reply; "" when the reply is worded by us."""
    attempted_at: Millis | None = None
    retry_until: Millis | None = None
    """For delay notices: when we give up."""


def wanted(notify: frozenset[Notify], kind: Kind) -> bool:
    """Whether the sender wants this report about a recipient (RFC 3461 4.1). To the null sender none ever goes."""
    if not notify:
        return kind in _UNASKED
    return _WORD[kind] in notify


def compose(
    kind: Kind, message: Message, fates: Sequence[Fate], content: bytes | None, *, hostname: str, now: Millis
) -> bytes:
    """The whole report, CRLF line ends, to be sent from "" to the message's envelope sender.

    `content` is the kept message, None where it is gone. The report is 8-bit or needs SMTPUTF8 only where the message
    did: ask `content.isascii()` of the result, and whether the sender's address is ASCII. Raises ValueError for a
    message from the null sender, and for no fates.
    """
    if not message.envelope.sender or not fates:
        raise ValueError("a report needs a sender to go to and a recipient to tell of")
    hostname = _NOT_HOST.sub("?", hostname)
    utf8 = message.envelope.smtputf8
    parts = [
        _text_part(kind, message, fates, hostname),
        _status_part(kind, message, fates, hostname, utf8=utf8),
        *_returned(kind, message, content, utf8=utf8),
    ]
    boundary = _boundary(parts)
    eight_bit = not all(map(bytes.isascii, parts))
    head = _head(kind, message, fates, hostname=hostname, now=now, boundary=boundary, eight_bit=eight_bit)
    divider = b"--" + boundary
    body = b"".join(divider + b"\r\n" + part + b"\r\n" for part in parts)
    return head + b"\r\n" + body + divider + b"--\r\n"


def _boundary(parts: Sequence[bytes]) -> bytes:
    """A delimiter that no part contains, the same for the same parts."""
    number = zlib.crc32(b"".join(parts))
    while True:
        boundary = b"=_relayd_%08x" % number
        if not any(boundary in part for part in parts):
            return boundary
        number = (number + 1) & 0xFFFFFFFF


def _head(
    kind: Kind,
    message: Message,
    fates: Sequence[Fate],
    *,
    hostname: str,
    now: Millis,
    boundary: bytes,
    eight_bit: bool,
) -> bytes:
    told = zlib.crc32("\n".join(fate.recipient.address for fate in fates).encode("utf-8", "replace"))
    name = f"{format_id(message.id)}.{kind}.{now}.{told:08x}"
    fields = [
        _field("From", f"Mail Delivery System <MAILER-DAEMON@{hostname}>"),
        _field("To", f"<{_clean(message.envelope.sender)}>"),
        _field("Subject", report_text.SUBJECTS[kind]),
        _field("Date", format_date(now)),
        _field("Message-ID", f"<{name}@{hostname}>"),
        _field("Auto-Submitted", "auto-replied"),
        b"MIME-Version: 1.0\r\n",
        b'Content-Type: multipart/report; report-type=delivery-status;\r\n\tboundary="%b"\r\n' % boundary,
    ]
    if message.message_id.isascii() and re.fullmatch(r"<[!-;=?-~]{1,250}>", message.message_id):
        fields.insert(5, _field("In-Reply-To", message.message_id))
        fields.insert(6, _field("References", message.message_id))
    if eight_bit:
        fields.append(b"Content-Transfer-Encoding: 8bit\r\n")
    return b"".join(fields)


def _text_part(kind: Kind, message: Message, fates: Sequence[Fate], hostname: str) -> bytes:
    told = [
        report_text.Told(
            _clean(fate.recipient.address),
            _clean(str(fate.reply)) if fate.reply else "",
            _clean(fate.remote),
            temporary=fate.reply is not None and not fate.reply.permanent,
            until=None if fate.retry_until is None else format_date(fate.retry_until),
        )
        for fate in fates
    ]
    text = report_text.write(
        kind.value,
        told,
        hostname=hostname,
        subject=_clean(message.subject),
        arrived=format_date(message.accepted_at),
        name=format_id(message.id),
    )
    body = binascii.b2a_qp(text.replace("\n", "\r\n").encode(), istext=True)
    # quoted-printable rather than base64: the English half, and what the upstream said, stay legible anywhere
    return (
        b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n"
        b"Content-Description: Notification\r\n\r\n" + body
    )


def _status_part(kind: Kind, message: Message, fates: Sequence[Fate], hostname: str, *, utf8: bool) -> bytes:
    groups = [_about_message(message, hostname)]
    groups += [_about_recipient(kind, message, fate, utf8=utf8) for fate in fates]
    body = b"\r\n".join(groups)
    subtype = b"delivery-status" if body.isascii() else b"global-delivery-status"
    encoding = b"" if body.isascii() else b"Content-Transfer-Encoding: 8bit\r\n"
    return b"Content-Type: message/" + subtype + b"\r\n" + encoding + b"Content-Description: Report\r\n\r\n" + body


def _about_message(message: Message, hostname: str) -> bytes:
    fields = []
    if message.envelope.envid:
        fields.append(_field("Original-Envelope-Id", _envelope_id(message.envelope.envid)))
    fields.append(_field("Reporting-MTA", f"dns; {hostname}"))
    fields.append(_field("Arrival-Date", format_date(message.accepted_at)))
    return b"".join(fields)


def _about_recipient(kind: Kind, message: Message, fate: Fate, *, utf8: bool) -> bytes:
    fields = []
    if fate.recipient.orcpt:
        original = _original(fate.recipient.orcpt, utf8=utf8)
        if original:
            fields.append(_field("Original-Recipient", original))
    fields.append(_field("Final-Recipient", _typed(fate.recipient.address, utf8=utf8)))
    fields.append(_field("Action", kind.value))
    fields.append(_field("Status", status(kind, fate.reply)))
    if fate.remote:
        fields.append(_field("Remote-MTA", f"dns; {_NOT_HOST.sub('?', fate.remote)[:255]}"))
    if fate.reply is not None:
        # what we worded ourselves is no SMTP reply: nobody said it (RFC 3464 2.3.6)
        said = _clean(str(fate.reply))
        said = said if utf8 else _ascii(said)
        fields.append(_field("Diagnostic-Code", f"{'smtp' if fate.remote else 'X-relayd'}; {said}"))
    if fate.attempted_at is not None:
        fields.append(_field("Last-Attempt-Date", format_date(fate.attempted_at)))
    fields.append(_field("Final-Log-ID", format_id(message.id)))
    if kind is Kind.DELAYED and fate.retry_until is not None:
        fields.append(_field("Will-Retry-Until", format_date(fate.retry_until)))
    return b"".join(fields)


def status(kind: Kind, reply: Reply | None) -> str:
    """The Status field (RFC 3464 2.3.4): the reply's, its first digit made to fit the action."""
    digit = _DIGIT[kind]
    if reply is None or not _STATUS.fullmatch(reply.enhanced):
        # an expired message failed over a temporary reason; without any, RFC 3463's "other" has to do
        return "4.0.0" if kind is Kind.FAILED and reply is not None and 400 <= reply.code < 500 else f"{digit}.0.0"
    if kind is Kind.FAILED and reply.enhanced[0] == "4":
        return reply.enhanced
    return digit + reply.enhanced[1:]


def _envelope_id(envid: str) -> str:
    try:
        decoded = xtext.decode(envid)
    except ValueError:
        return _ascii(_clean(envid))
    # RFC 3464 2.2.1 wants it decoded; what would break the field stays encoded
    return decoded if decoded.isascii() and decoded.isprintable() else _ascii(_clean(envid))


def _original(orcpt: str, *, utf8: bool) -> str:
    """ORCPT as Original-Recipient shows it (RFC 3464 2.3.1, RFC 6533 3); "" where it makes none."""
    try:
        kind, address = xtext.parse_orcpt(orcpt)
    except ValueError:
        return ""
    if kind == "utf-8":
        address = address if address.isprintable() else _clean(address)
        return f"utf-8; {address}" if utf8 else f"utf-8; {xtext.encode_utf8(address)}"
    if address.isascii() and address.isprintable():
        return f"{kind}; {address}"
    return f"{kind}; {_ascii(_clean(orcpt.partition(';')[2]))}"


def _typed(address: str, *, utf8: bool) -> str:
    address = _clean(address)
    if address.isascii():
        return f"rfc822; {address}"
    return f"utf-8; {address}" if utf8 else f"utf-8; {xtext.encode_utf8(address)}"


def _returned(kind: Kind, message: Message, content: bytes | None, *, utf8: bool) -> list[bytes]:
    """The part with the message or its header. RET speaks of failures only (RFC 3461 4.3): else the header."""
    if content is None:
        return []
    if kind is Kind.FAILED and message.envelope.ret is not Ret.HDRS and _fits(content):
        subtype = b"message/global" if utf8 and not _header_of(content).isascii() else b"message/rfc822"
        returned = content
    else:
        returned = _header_of(content)
        subtype = b"message/global-headers" if utf8 and not returned.isascii() else b"text/rfc822-headers"
    encoding = b"" if returned.isascii() else b"Content-Transfer-Encoding: 8bit\r\n"
    head = b"Content-Type: " + subtype + b"\r\n" + encoding + b"Content-Description: Message\r\n\r\n"
    return [head + returned]


def _fits(content: bytes) -> bool:
    """The message can stand in a report as it is."""
    if len(content) > FULL_LIMIT or b"\0" in content or _LONG_LINE.search(content):
        return False
    return content.count(b"\r\n") == content.count(b"\n") == content.count(b"\r")


def _header_of(content: bytes) -> bytes:
    """The fields of a message as text that fits into mail: whole lines, none over 998 octets, no NUL."""
    header = b"".join(content[start:end] for _, start, end in scan(content).fields)[:HEADERS_LIMIT]
    lines = [_STRAY.sub(b"", line)[:MAX_LINE] for line in header.split(b"\r\n")]
    return b"".join(line + b"\r\n" for line in lines if line)


def _clean(text: str) -> str:
    """Without control characters and such as turn the direction of text: nothing that could start a new line."""
    return _UNSEEN.sub(" ", text).strip()


def _ascii(text: str) -> str:
    return "".join(letter if letter.isascii() else f"\\x{{{ord(letter):X}}}" for letter in text)


def _field(name: str, value: str) -> bytes:
    """A header field, folded at spaces so that lines keep to 78 columns where they can and to 998 octets always."""
    first, *rest = [piece for word in _clean(value).split(" ") for piece in _pieces(word)]
    lines = [f"{name}: {first}"]
    for piece in rest:
        if not piece or len(lines[-1]) + 1 + len(piece) <= FOLD_AT:
            lines[-1] += f" {piece}"
        else:
            lines.append(f"\t{piece}")
    return ("\r\n".join(lines) + "\r\n").encode()


def _pieces(word: str) -> list[str]:
    # 240 characters are under 998 octets in UTF-8, whatever they are
    size = 900 if word.isascii() else 240
    return [word[start : start + size] for start in range(0, len(word), size)] or [""]
