"""Who may do what: ordered checks from facts to a refusal. Pure; intake.py gathers the facts and counts the refusals.

Each command has a table: the first check that refuses speaks. Texts tell a client what to mend, and no secrets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from relayd.config.models import Access
from relayd.core.address import AddressError, compile_pattern, validate
from relayd.core.reply import Reply
from relayd.intake.observer import Refusal


@dataclass(frozen=True, slots=True)
class Refused:
    """A refusal: what to count and what to answer."""

    reason: Refusal
    reply: Reply


class SenderPatterns:
    """The envelope senders of a credential; compared without case, U-labels and A-labels alike."""

    __slots__ = ("_all", "_domains", "_exact", "_others", "anything", "null")

    def __init__(self, patterns: Iterable[str]) -> None:
        given = list(patterns)
        self.anything = "*" in given
        self.null = self.anything or "<>" in given
        """The null reverse-path is allowed: apps that send bounces or auto-replies need it."""
        self._all = tuple(compile_pattern(pattern) for pattern in given if pattern != "<>")
        exact, domains, others = set(), set(), []
        for pattern in given:
            plain = pattern.isascii() and pattern != "<>"
            if plain and "*" not in pattern and "?" not in pattern:
                exact.add(pattern.lower())
            elif plain and pattern.startswith("*@") and "*" not in pattern[2:] and "?" not in pattern:
                domains.add(pattern[2:].lower())
            elif pattern != "<>":
                others.append(compile_pattern(pattern))
        self._exact, self._domains, self._others = frozenset(exact), frozenset(domains), tuple(others)

    def allow(self, sender: str) -> bool:
        """May this sender be used ("" for the null reverse-path)?"""
        if not sender:
            return self.null
        if self.anything:
            return True
        if not sender.isascii():
            return any(fits(sender) for fits in self._all)
        # the usual patterns by two set look-ups, however many there are; the answer is the same as that of `_all`
        lower = sender.lower()
        return (
            lower in self._exact
            or lower.rpartition("@")[2] in self._domains
            or any(fits(lower) for fits in self._others)
        )


@dataclass(slots=True)
class ConnectFacts:
    """What is known when a client has connected."""

    draining: bool
    access: Access
    in_network: bool
    guessing: bool
    """Its address or network has failed too many logins."""
    proxy: bool = False
    """It has not named its client yet (XCLIENT)."""


@dataclass(slots=True)
class MailFacts:
    """What is known at MAIL."""

    draining: bool
    disk_low: bool
    has_memory: bool
    require_tls: bool
    tls: bool
    access: Access
    in_network: bool
    authenticated: bool
    size: int
    """As declared; 0 where it was not."""
    size_limit: int
    sender: str
    smtputf8: bool
    patterns: SenderPatterns | None
    """Of the credential; None without one."""
    rate_exhausted: bool
    accounts_denied: bool = False
    """The credential is limited to sender accounts, and the sender is the address of none of them."""


@dataclass(slots=True)
class RcptFacts:
    """What is known at RCPT."""

    count: int
    """Recipients accepted already."""
    limit: int
    address: str
    smtputf8: bool


@dataclass(slots=True)
class ContentFacts:
    """What is known behind the final dot."""

    size: int
    size_limit: int
    received: int
    """Received fields of the message."""
    received_limit: int
    unvouched: str | None = None
    """The From domain ("" for none), where it is on no verified sender domain and has to be."""


DRAINING = Refused(Refusal.DRAINING, Reply(421, "4.3.2", "Shutting down, please come back in a moment"))
GUESSING = Refused(Refusal.GUESSING, Reply(421, "4.7.0", "Too many failed logins from your address, try again later"))
NO_ACCESS_AT_CONNECT = Refused(Refusal.ACCESS, Reply(554, "5.7.1", "Your address is not allowed to send mail here"))
NO_ACCESS = Refused(Refusal.ACCESS, Reply(550, "5.7.1", "Your address is not allowed to send mail here"))
AUTH_REQUIRED = Refused(Refusal.AUTH_REQUIRED, Reply(530, "5.7.0", "Authentication required"))
TLS_REQUIRED = Refused(Refusal.TLS_REQUIRED, Reply(530, "5.7.0", "Must issue a STARTTLS command first"))
DISK_LOW = Refused(Refusal.DISK, Reply(452, "4.3.1", "Insufficient system storage, try again later"))
NO_MEMORY = Refused(Refusal.MEMORY, Reply(452, "4.3.1", "Too much mail in reception, try again later"))
RATE = Refused(Refusal.RATE, Reply(450, "4.7.1", "You are sending faster than your account allows, try again later"))
NOT_OURS = Refused(Refusal.UNKNOWN_RECIPIENT, Reply(550, "5.1.1", "No such address here"))
FORGED = Refused(Refusal.FORGED, NOT_OURS.reply)
"""A return path of ours in form, but not signed by us, or expired."""
LONG_HEADER = Refused(Refusal.SIZE, Reply(552, "5.3.4", "The header of the message is too big, 1 MiB at most"))
LOOP = Refused(Refusal.LOOP, Reply(550, "5.4.6", "Too many Received headers: this message is in a mail loop"))


def no_account(sender: str) -> Refused:
    """The upstream sends only for the mailboxes that it has accounts of."""
    text = f"The upstream for this mail has no account that may send as <{sender}>"
    return Refused(Refusal.SENDER_DENIED, Reply(553, "5.7.1", text))


NO_ROUTE = Refused(Refusal.NO_ROUTE, Reply(550, "5.4.4", "No route for this message"))
SPOOL_FULL = Refused(Refusal.DISK, Reply(452, "4.3.1", "Insufficient system storage, try again later"))
SPOOL_FAILED = Refused(Refusal.SPOOL, Reply(451, "4.3.0", "Local error, the message was not kept, try again later"))
INTERNAL = Refused(Refusal.INTERNAL, Reply(451, "4.3.0", "Local error, the message was not kept, try again later"))


def _draining(facts: ConnectFacts | MailFacts) -> Refused | None:
    return DRAINING if facts.draining else None


def _network_alone(facts: ConnectFacts) -> Refused | None:
    # network-and-auth too: no login could help, so there is no reason to let anyone try passwords
    needs = facts.access in {Access.NETWORK, Access.NETWORK_AND_AUTH}
    # a proxy need not be in a network itself, which would let all its clients in: without a client it fails at MAIL
    return NO_ACCESS_AT_CONNECT if needs and not facts.in_network and not facts.proxy else None


def _guessing(facts: ConnectFacts) -> Refused | None:
    # whoever may send without a login is not locked out by failed ones of its neighbours; AUTH is refused all the same
    needs_auth = facts.access in {Access.AUTH, Access.NETWORK_AND_AUTH} or not facts.in_network
    return GUESSING if facts.guessing and needs_auth else None


def _disk(facts: MailFacts) -> Refused | None:
    return DISK_LOW if facts.disk_low else None


def _memory(facts: MailFacts) -> Refused | None:
    return None if facts.has_memory else NO_MEMORY


def _tls(facts: MailFacts) -> Refused | None:
    return TLS_REQUIRED if facts.require_tls and not facts.tls else None


def _access(facts: MailFacts) -> Refused | None:
    network, auth = facts.in_network, facts.authenticated
    match facts.access:
        case Access.NETWORK:
            return None if network else NO_ACCESS
        case Access.AUTH:
            return None if auth else AUTH_REQUIRED
        case Access.NETWORK_OR_AUTH:
            return None if network or auth else AUTH_REQUIRED
        case Access.NETWORK_AND_AUTH:
            if not network:
                return NO_ACCESS
            return None if auth else AUTH_REQUIRED


def _size(facts: MailFacts | ContentFacts) -> Refused | None:
    if facts.size <= facts.size_limit:
        return None
    return Refused(Refusal.SIZE, Reply(552, "5.3.4", f"Message exceeds the limit of {facts.size_limit} octets"))


def _sender_syntax(facts: MailFacts) -> Refused | None:
    if not facts.sender:
        return None
    try:
        validate(facts.sender, utf8=facts.smtputf8)
    except AddressError as error:
        return Refused(Refusal.SENDER_SYNTAX, error.reply(sender=True))
    return None


def _sender_allowed(facts: MailFacts) -> Refused | None:
    if facts.patterns is None or facts.patterns.allow(facts.sender):
        return None
    text = f"Your account may not send as <{facts.sender}>"
    return Refused(Refusal.SENDER_DENIED, Reply(553, "5.7.1", text))


def _account_allowed(facts: MailFacts) -> Refused | None:
    if not facts.accounts_denied:
        return None
    shown = facts.sender or "<>"
    text = f"Your account may send only as its sender accounts (relayd sender list), not as {shown}"
    return Refused(Refusal.SENDER_DENIED, Reply(553, "5.7.1", text))


def _rate(facts: MailFacts) -> Refused | None:
    return RATE if facts.rate_exhausted else None


def _recipients(facts: RcptFacts) -> Refused | None:
    if facts.count < facts.limit:
        return None
    return Refused(Refusal.RECIPIENTS, Reply(452, "4.5.3", f"Too many recipients, {facts.limit} at most"))


def is_postmaster(address: str) -> bool:
    """RCPT TO:<postmaster>, the one recipient without a domain that must be taken (RFC 5321 4.5.1)."""
    return len(address) == 10 and address.lower() == "postmaster"


def _recipient_syntax(facts: RcptFacts) -> Refused | None:
    try:
        validate(facts.address, utf8=facts.smtputf8)
    except AddressError as error:
        if is_postmaster(facts.address):
            return None
        return Refused(Refusal.RECIPIENT_SYNTAX, error.reply(sender=False))
    return None


def _loop(facts: ContentFacts) -> Refused | None:
    return LOOP if facts.received >= facts.received_limit else None


def _vouched(facts: ContentFacts) -> Refused | None:
    domain = facts.unvouched
    if domain is None:
        return None
    if not domain:
        text = "The message names no From address; mail is taken from verified sender domains only"
    else:
        # a reply line has 512 octets (RFC 5321 4.5.3.1.5), a domain may have 253
        text = f"{domain} is not a verified sender domain\nTo see what is missing: relayd domain show {domain}"
    return Refused(Refusal.UNVERIFIED, Reply(550, "5.7.1", text))


CONNECT: tuple[Callable[[ConnectFacts], Refused | None], ...] = (
    _draining,  # 421 4.3.2
    _network_alone,  # 554 5.7.1
    _guessing,  # 421 4.7.0
)
MAIL: tuple[Callable[[MailFacts], Refused | None], ...] = (
    _draining,  # 421 4.3.2
    _tls,  # 530 5.7.0: before access, since a login needs TLS first
    _access,  # 530 5.7.0, 550 5.7.1
    _size,  # 552 5.3.4
    _sender_syntax,  # 501 5.1.7, 553 5.6.7
    _sender_allowed,  # 553 5.7.1
    _account_allowed,  # 553 5.7.1
    # what may pass by itself comes last: nobody shall try again for days what can never be taken
    _disk,  # 452 4.3.1
    _memory,  # 452 4.3.1
    _rate,  # 450 4.7.1
)
INBOUND_MAIL = tuple(check for check in MAIL if check not in (_access, _sender_allowed, _rate))
RCPT: tuple[Callable[[RcptFacts], Refused | None], ...] = (
    _recipients,  # 452 4.5.3
    _recipient_syntax,  # 501 5.1.3, 553 5.6.7
)
CONTENT: tuple[Callable[[ContentFacts], Refused | None], ...] = (
    _size,  # 552 5.3.4
    _loop,  # 550 5.4.6
    _vouched,  # 550 5.7.1
)


def connect(facts: ConnectFacts, *, inbound: bool = False) -> Refused | None:
    """May this client speak? `inbound`: anyone may."""
    if inbound:
        return _draining(facts)
    for check in CONNECT:
        if (refused := check(facts)) is not None:
            return refused
    return None


def mail(facts: MailFacts, *, inbound: bool = False) -> Refused | None:
    """May it send from this sender? `inbound`: to addresses of our own only, so anyone may."""
    for check in INBOUND_MAIL if inbound else MAIL:
        if (refused := check(facts)) is not None:
            return refused
    return None


def rcpt(facts: RcptFacts) -> Refused | None:
    """May it add this recipient?"""
    for check in RCPT:
        if (refused := check(facts)) is not None:
            return refused
    return None


def content(facts: ContentFacts) -> Refused | None:
    """May this content be kept?"""
    for check in CONTENT:
        if (refused := check(facts)) is not None:
            return refused
    return None
