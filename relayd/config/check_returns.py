"""Finds what contradicts itself about what comes back: mailboxes, and return paths without a domain."""

from __future__ import annotations

from collections.abc import Iterator

from relayd.config.fault import BRING, Fault, Loc, Positions, Severity
from relayd.config.models import Config, MailboxTLS
from relayd.core.bind import is_loopback

_WARNING = Severity.WARNING


def needs_domain(at: Positions, config: Config, loc: Loc, what: str) -> Iterator[Fault]:
    """What takes mail for return paths needs to know their domain."""
    if config.bounces.domain is None and at.sound(loc, ("bounces",), ("bounces", "domain")):
        problem = f"{what} needs bounces.domain, and none is given"
        yield at.fault(loc, problem, "Set bounces: {domain: bounce.example.com}, with an MX that leads here")


def check_mailboxes(at: Positions, config: Config) -> Iterator[Fault]:
    """Mailboxes of one name, and passwords that others could read."""
    if not at.sound(("bounces",), ("bounces", "mailboxes")):
        return
    seen: set[str] = set()
    for index, mailbox in enumerate(config.bounces.mailboxes):
        loc: Loc = ("bounces", "mailboxes", index)
        password = (*loc, "password")
        if mailbox.name in seen:
            yield at.fault((*loc, "name"), f"{mailbox.name!r} is there already", "Give each its own name")
        seen.add(mailbox.name)
        if at.open(password):
            yield at.fault(password, "the password is written in the file itself", BRING)
        if mailbox.tls is MailboxTLS.NONE and not is_loopback(mailbox.host):
            problem = f"the password crosses the network in the clear, and nobody proves to be {mailbox.host}"
            yield at.fault((*loc, "tls"), problem, "Set tls: implicit or starttls", _WARNING)
        if mailbox.tls is MailboxTLS.NONE and mailbox.ca_file is not None:
            problem = "does nothing with tls: none, which verifies no certificate"
            yield at.fault((*loc, "ca_file"), problem, "Set tls: implicit, or take it out", _WARNING)
