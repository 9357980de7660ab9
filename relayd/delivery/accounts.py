"""Which account of an upstream carries a message, and what a mail looks like that is sent as another's mailbox.

Pure. Each account has its own lane, UPSTREAM/ACCOUNT; plan.py makes them, dispatch.py works by them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from relayd.config.models import Account, Config, Per, ReturnPath, Route, SMTPUpstream
from relayd.core.address import domain_of
from relayd.core.headers import scan
from relayd.core.mail import Message, Recipient
from relayd.delivery.routing import RouteTable
from relayd.spool.joining import join

_REPLACED = frozenset({b"from", b"sender"})
"""Sender (RFC 5322 3.6.2) goes too: it would name somebody whom the mailbox may not speak for."""


def lane_name(upstream: str, account: Account) -> str:
    """The lane of one account."""
    return f"{upstream}/{account.name}"


class AccountBook:
    """The accounts of one upstream."""

    def __init__(self, name: str, upstream: SMTPUpstream) -> None:
        logins = upstream.logins
        self._rewrite = upstream.rewrite_sender
        self._lanes = {id(login): lane_name(name, login) if upstream.accounts else name for login in logins}
        self._addresses: dict[str, Account] = {}
        self._domains: dict[str, Account] = {}
        for login in logins:
            if login.address is not None and upstream.per is not Per.DOMAIN:
                self._addresses.setdefault(login.address.lower(), login)
            else:
                domain = login.domain or domain_of(login.address or "").lower()
                self._domains.setdefault(domain, login)
        mailboxes = [login for login in logins if login.address is not None]
        self._substitute = mailboxes[0] if mailboxes else None
        self._first = logins[0]
        self.marks = (self._rewrite, tuple((self._lanes[id(login)], upstream.per, login.name) for login in logins))
        """Books of equal marks decide alike."""

    def find(self, message: Message) -> Account | None:
        """The account that the sender has; by the From domain where the reverse-path is null."""
        sender = message.envelope.sender
        if not sender:
            domain = message.from_domain
            same = (login for address, login in self._addresses.items() if domain_of(address) == domain)
            return self._domains.get(domain) or next(same, None)
        local, _, _ = sender.rpartition("@")
        domain = domain_of(sender).lower()
        return self._addresses.get(f"{local.lower()}@{domain}") or self._domains.get(domain)

    def lane_for(self, message: Message) -> str | None:
        """The lane that carries the message; None: its sender has no account, and none may stand in."""
        account = self.find(message)
        if account is None:
            account = self._substitute if self._rewrite else None
        if account is None and message.origin.protocol == "LOCAL":
            # a report of ours must not be lost for want of a mailbox of our own
            account = self._first
        return None if account is None else self._lanes[id(account)]


class LaneTable(RouteTable):
    """Routes, and behind them the accounts of the upstreams that they name."""

    def __init__(
        self,
        routes: Sequence[Route],
        books: Mapping[str, AccountBook],
        overflows: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(routes, overflows)
        self._books = books
        if self._only in books:
            self._only = None  # which of its lanes depends on the sender
        # tables of equal routes decide alike, and accounts are part of the decision
        marks = tuple((name, book.marks) for name, book in sorted(books.items()))
        marks += tuple((name, "overflow", over) for name, over in sorted(self._overflows.items()))  # type: ignore[misc]
        self.routes = (*tuple(routes), *cast("tuple[Route, ...]", marks))

    def _lane(self, upstream: str, message: Message) -> str | None:
        book = self._books.get(upstream)
        return upstream if book is None else book.lane_for(message)

    def stranger(self, message: Message, recipient: Recipient) -> bool:
        """A route fits, but the sender has no account at any of its upstreams."""
        if not self._books or message.origin.inbound:
            return False
        targets = self._targets(message, recipient)
        return targets is not None and all(self._lane(name, message) is None for name in targets.names)


def books_of(config: Config) -> dict[str, AccountBook]:
    """The upstreams that bind senders to accounts."""
    return {
        name: AccountBook(name, upstream)
        for name, upstream in config.upstreams.items()
        if isinstance(upstream, SMTPUpstream) and upstream.logins
    }


class Outward:
    """What goes out by one login under another name than it came: envelope sender and From."""

    def __init__(self, book: AccountBook | None, address: str, return_path: ReturnPath) -> None:
        """`book` None: any sender may use the login, and its From stays. `address` is the mailbox."""
        self._book = book
        self._address = address
        self._always = return_path is ReturnPath.ACCOUNT
        self._domain = domain_of(address).lower()

    def sender(self, message: Message) -> str:
        """The envelope sender. A null one stays null (RFC 5321 4.5.5)."""
        sender = message.envelope.sender
        return self._address if sender and (self._always or self._substituted(message)) else sender

    def content(self, message: Message, content: bytes) -> tuple[bytes, str]:
        """The content before it is signed, and the domain of its From."""
        if not self._substituted(message):
            return content, message.from_domain
        return as_mailbox(content, self._address), self._domain

    def _substituted(self, message: Message) -> bool:
        return self._book is not None and self._book.find(message) is None


def as_mailbox(content: bytes, address: str) -> bytes:
    """From becomes the mailbox, the old From Reply-To where there is none. All else stays octet for octet."""
    block = scan(content)
    answered = any(name == b"reply-to" for name, _, _ in block.fields)
    parts: list[bytes | memoryview] = []
    at, first = 0, True
    for name, start, end in block.fields:
        if name not in _REPLACED:
            continue
        parts.append(content[at:start])
        if name == b"from" and first:
            first = False
            parts.append(b"From: <%b>\r\n" % address.encode())
            if not answered:
                parts.append(b"Reply-To:" + content[start:end].partition(b":")[2])
        at = end
    parts.append(memoryview(content)[at:])
    if first:
        parts.insert(0, b"From: <%b>\r\n" % address.encode())
    return join(parts)
