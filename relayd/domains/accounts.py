"""Sender accounts: an id, an address on a verified domain, and whether it can receive replies. Pure."""

from __future__ import annotations

import re

from relayd.core.address import AddressError, parse, to_ascii
from relayd.core.units import Millis
from relayd.domains.changes import DomainError, shown
from relayd.domains.records import Answer, Status, nearest
from relayd.spool.domains import Everything, SenderAccount

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def check_id(name: str) -> None:
    """Raises DomainError, which names the character that is not allowed."""
    if _ID.fullmatch(name):
        return
    if not name:
        raise DomainError("a sender account needs an id")
    wrong = next((letter for letter in name if not _ID.fullmatch(letter)), "")
    if not wrong:
        raise DomainError("an id has 64 characters at most")
    kind = "a full-width or non-ASCII character" if not wrong.isascii() else "a character"
    shown_wrong = wrong if wrong.isprintable() else f"U+{ord(wrong):04X}"
    raise DomainError(
        f"{name!r} cannot be the id of a sender account: {shown_wrong!r} is {kind} that ids do not have; "
        "use ASCII letters, digits and . _ - only"
    )


def make(name: str, address: str, everything: Everything, now: Millis) -> SenderAccount:
    """A new account. Raises DomainError: a faulty id or address, or a domain that is not verified."""
    check_id(name)
    try:
        found = parse(address, utf8=True)
        domain = to_ascii(found.domain)
    except AddressError as error:
        raise DomainError(f"{address!r} is not an address: {error.problem}") from None
    if any(account.id == name for account in everything.accounts):
        raise DomainError(f"there is a sender account {name} already")
    known = {each.name: each for each in everything.domains}
    owner = known.get(nearest(domain, known.get))
    if owner is None or not owner.state.vouched:
        verified = ", ".join(shown(each.name) for each in everything.domains if each.state.vouched)
        raise DomainError(
            f"{shown(domain)} is not a verified sender domain: "
            + (f"verified are {verified}" if verified else "none is verified yet (relayd domain add)")
        )
    return SenderAccount(name, f"{found.local}@{domain}", now)


def reply_trouble(account: SenderAccount, mx: Answer) -> str:
    """Why replies to the account will not arrive, from the MX answer of its domain; "" where they may."""
    domain = shown(account.address.rpartition("@")[2])
    if mx.status in {Status.NODATA, Status.NXDOMAIN}:
        return f"{domain} has no MX record: replies to {account.address} will not arrive"
    if mx.status is Status.FOUND and [text.partition(" ")[2] for text in mx.records] == ["."]:
        return f"{domain} has a null MX: it refuses all mail, replies to {account.address} will not arrive"
    return ""
