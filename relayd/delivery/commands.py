"""MAIL and RCPT with their parameters, as far as an upstream offers them, and what it cannot take at all.

Decides on values only; sending is smtp.py's.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass

from relayd.core.address import AddressError, to_ascii
from relayd.core.classify import classify
from relayd.core.lifecycle import Outcome, OutcomeKind, Stage
from relayd.core.mail import Notify, Recipient
from relayd.core.reply import Reply
from relayd.core.session import Outgoing

TOO_BIG = Reply(552, "5.3.4", "The message is larger than the next mail server takes")
NEEDS_8BIT = Reply(554, "5.6.3", "The message has 8-bit content, which the next mail server does not take")
UTF8_ADDRESS = Reply(550, "5.6.7", "The address has non-ASCII characters, which the next mail server does not take")
UTF8_HEADER = Reply(550, "5.6.9", "The header has non-ASCII characters, which the next mail server does not take")
BAD_SENDER = Reply(550, "5.1.7", "The sender address cannot be written in SMTP")
BAD_RECIPIENT = Reply(550, "5.1.3", "The recipient address cannot be written in SMTP")

BIG = 1 << 20
"""Octets that are looked at without a pause."""

# nothing that could end the path or the command early; quoted local parts may hold spaces and brackets
_PATH = re.compile(r'(?:[^\x00-\x20"<>\x7f]*|"(?:[^\x00-\x1f"\\\x7f]|\\[\x20-\x7e])*"@[^\x00-\x20"<>\x7f]+)')
_PARAMETER = re.compile(r"[\x21-\x7e\u00a0-\U0010ffff]*")
_NOTIFY_ORDER = (Notify.NEVER, Notify.SUCCESS, Notify.FAILURE, Notify.DELAY)


@dataclass(frozen=True, slots=True)
class Offers:
    """What an upstream said in EHLO that changes how we speak to it."""

    pipelining: bool = False
    eight_bit: bool = False
    smtputf8: bool = False
    dsn: bool = False
    size: int | None = None
    """Octets it takes at most; 0: it gave no limit; None: SIZE is not offered (RFC 1870)."""

    @classmethod
    def of(cls, extensions: Mapping[str, str]) -> Offers:
        """From extension names in lower case and their parameters."""
        size = extensions.get("size")
        limit = None if size is None else int(size) if size.isascii() and size.isdigit() and len(size) < 20 else 0
        return cls(
            "pipelining" in extensions, "8bitmime" in extensions, "smtputf8" in extensions, "dsn" in extensions, limit
        )


@dataclass(slots=True)
class Plan:
    """The commands of one transaction; recipients that cannot be named to this upstream are refused here."""

    mail: bytes
    rcpts: list[bytes]
    places: list[int]
    """Of each RCPT: which recipient it is."""
    refused: dict[int, Outcome]
    """Recipient → why it is not even tried."""


def refusal(reply: Reply) -> Outcome:
    """A refusal that we decide, before anything is sent."""
    return Outcome(
        OutcomeKind.REJECTED, Stage.LOCAL, reply, classify(reply.code, reply.enhanced, reply.text, Stage.LOCAL)
    )


async def is_eight_bit(content: bytes) -> bool:
    """Whether there is any octet beyond ASCII, in a big content: other sessions have their turn while it looks."""
    for place in range(0, len(content), BIG):
        if not content[place : place + BIG].isascii():
            return True
        await asyncio.sleep(0)
    return False


def plan(mail: Outgoing, offers: Offers, *, eight_bit: bool) -> Plan:
    """Write the envelope for this upstream, or refuse what it cannot take. `eight_bit` is what the content is."""
    reply, utf8 = _obstacle(mail, offers, eight_bit=eight_bit)
    envelope = mail.envelope
    sender = _path(envelope.sender, offers)
    if reply is None and sender is None:
        reply = BAD_SENDER if _PATH.fullmatch(envelope.sender) is None else UTF8_ADDRESS
    if reply is not None or sender is None:
        outcome = refusal(reply or BAD_SENDER)
        return Plan(b"", [], [], dict.fromkeys(range(len(mail.recipients)), outcome))
    rcpts: list[bytes] = []
    places: list[int] = []
    refused: dict[int, Outcome] = {}
    ascii_only = sender.isascii()
    for place, recipient in enumerate(mail.recipients):
        address = recipient.address
        path = address if address.isascii() and _PATH.fullmatch(address) else _path(address, offers)
        if not path:
            refused[place] = refusal(BAD_RECIPIENT if _PATH.fullmatch(address) is None or not address else UTF8_ADDRESS)
            continue
        ascii_only = ascii_only and path.isascii()
        parameters = _rcpt_parameters(recipient, utf8=offers.smtputf8) if offers.dsn else ""
        rcpts.append(f"RCPT TO:<{path}>{parameters}\r\n".encode())
        places.append(place)
    parameters = _mail_parameters(mail, offers, eight_bit=eight_bit, utf8=utf8 or not ascii_only)
    return Plan(f"MAIL FROM:<{sender}>{parameters}\r\n".encode(), rcpts, places, refused)


def _obstacle(mail: Outgoing, offers: Offers, *, eight_bit: bool) -> tuple[Reply | None, bool]:
    """Why the message as such cannot be sent there, and whether its header asks for SMTPUTF8."""
    content = mail.content
    if offers.size and len(mail.front) + len(content) > offers.size:
        return TOO_BIG, False
    if not eight_bit:
        return None, False
    # RFC 6531 3.4: the parameter goes with what needs it. A client that never spoke of SMTPUTF8 and has raw octets
    # in its header sends old-fashioned 8-bit mail, which goes on as such.
    utf8 = mail.envelope.smtputf8 and not _header(content).isascii()
    if utf8 and not offers.smtputf8:
        return UTF8_HEADER, False
    return (None if offers.eight_bit else NEEDS_8BIT), utf8


def _header(content: bytes) -> bytes:
    end = content.find(b"\r\n\r\n")
    return content if end < 0 else content[:end]


def _path(address: str, offers: Offers) -> str | None:
    """The address as it may stand in a path, or None. Without SMTPUTF8 a domain goes as A-labels (RFC 5890)."""
    if _PATH.fullmatch(address) is None:
        return None
    if address.isascii() or offers.smtputf8:
        return address
    local, at, domain = address.rpartition("@")
    try:
        return local + at + to_ascii(domain) if local.isascii() else None
    except AddressError:
        return None


def _mail_parameters(mail: Outgoing, offers: Offers, *, eight_bit: bool, utf8: bool) -> str:
    envelope = mail.envelope
    out = "" if offers.size is None else f" SIZE={len(mail.front) + len(mail.content)}"
    if offers.eight_bit and (eight_bit or utf8 or envelope.body == "8BITMIME"):
        out += " BODY=8BITMIME"
    if utf8:
        out += " SMTPUTF8"
    if offers.dsn:
        if envelope.ret is not None:
            out += f" RET={envelope.ret.value}"
        if envelope.envid and _PARAMETER.fullmatch(envelope.envid) and envelope.envid.isascii():
            out += f" ENVID={envelope.envid}"
    return out


def _rcpt_parameters(recipient: Recipient, *, utf8: bool) -> str:
    out = ""
    if recipient.notify:
        out = " NOTIFY=" + ",".join(word.value for word in _NOTIFY_ORDER if word in recipient.notify)
    orcpt = recipient.orcpt
    if orcpt and _PARAMETER.fullmatch(orcpt):
        if not orcpt.isascii() and not utf8:
            # RFC 6533 3: the utf-8 address type has a writing for 7-bit transports
            orcpt = "".join(letter if letter.isascii() else f"\\x{{{ord(letter):X}}}" for letter in orcpt)
        out += f" ORCPT={orcpt}"
    return out
