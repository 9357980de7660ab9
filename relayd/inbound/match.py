"""Which recipients of which of our mails a returned mail is about.

By the signed return path it came to, or carries; else by our Received field, else by the Message-ID of the mail that
it returns. What is not signed can be made up by anyone who has seen the mail: then an address must fit as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from relayd.core.bounce.verdict import Action, Findings, Kind, Verdict
from relayd.core.ids import MessageId, parse_id, time_of
from relayd.core.session import Outgoing
from relayd.core.token import ReturnPaths, Token
from relayd.core.units import Millis

MOST_IDS = 10
"""Ids in Received fields that are looked at."""
SEARCHED = 1024**2
"""Octets of a mail that are searched for what we wrote."""


class Mails(Protocol):
    """What is asked about mails that have left (archive.py)."""

    async def recipients(self, message: MessageId) -> list[str] | None:
        """Raises FactError."""

    async def find(self, message_id: str, since: Millis) -> list[MessageId]:
        """Raises FactError."""


@dataclass(frozen=True, slots=True)
class Match:
    """A verdict, and the recipient of ours that it is about."""

    message: MessageId
    n: int
    verdict: Verdict
    signed: bool = False
    """It came by, or carries, a return path of ours: the mail had left with it."""


class Matcher:
    """Matches by the addresses, host name and keeping time of one configuration."""

    def __init__(self, mails: Mails, paths: ReturnPaths | None, hostname: str, verify_for: Millis) -> None:
        self._mails = mails
        self._paths = paths
        self._verify_for = verify_for
        host = re.escape(hostname)
        self._received = re.compile(
            rf"\bby\s+{host}\s+\(relayd\s[^()]{{0,80}}\)\s+with\s+\S{{1,20}}\s+(?:\([^()]{{1,20}}\)\s+)?"
            rf"id\s+([0-9a-hjkmnp-tv-z]{{13}})\b".encode(),
            re.IGNORECASE,
        )
        self._own_id = re.compile(rf"<([0-9a-hjkmnp-tv-z]{{13}})@{host}>", re.IGNORECASE)

    async def match(self, mail: Outgoing, findings: Findings) -> list[Match]:
        """The recipients it is about; none where it is about no mail of ours. Raises FactError."""
        verdicts = [verdict for verdict in findings.verdicts if verdict.kind is not Kind.NOT_A_REPORT]
        if not verdicts:
            return []
        own = parse_id(mail.id)
        tokens = self._tokens(mail, time_of(own))
        if tokens:
            return [await self._of_token(token, verdicts) for token in dict.fromkeys(tokens)]
        return await self._unsigned(mail, own, verdicts)

    # -- signed

    def _tokens(self, mail: Outgoing, at: Millis) -> list[Token]:
        paths = self._paths
        if paths is None:
            return []
        tokens = [token for recipient in mail.recipients if (token := paths.read(recipient.address, at)) is not None]
        if not tokens and (found := paths.find(mail.content[:SEARCHED], at)) is not None:
            return [found]
        return tokens

    async def _of_token(self, token: Token, verdicts: Sequence[Verdict]) -> Match:
        if len(verdicts) > 1:
            addresses = await self._mails.recipients(token.message) or []
            if token.n < len(addresses):
                named = [verdict for verdict in verdicts if _same(verdict.recipient, addresses[token.n])]
                verdicts = named or verdicts
        return Match(token.message, token.n, _worst(verdicts), signed=True)

    # -- not signed

    async def _unsigned(self, mail: Outgoing, own: MessageId, verdicts: list[Verdict]) -> list[Match]:
        since = time_of(own) - self._verify_for
        for message in dict.fromkeys(self._named(mail.content[:SEARCHED], verdicts)):
            possible = message != own and since <= time_of(message) <= time_of(own)
            if possible and (matches := await self._in_message(message, verdicts)):
                return matches
        for message_id in dict.fromkeys(verdict.message_id for verdict in verdicts if verdict.message_id):
            for message in await self._mails.find(message_id, since):
                if message != own and (matches := await self._in_message(message, verdicts)):
                    return matches
        return []

    def _named(self, content: bytes, verdicts: Iterable[Verdict]) -> Iterator[MessageId]:
        """Ids of ours that the mail carries: in the Message-ID that we gave, in our Received fields."""
        texts = [found[1] for verdict in verdicts if (found := self._own_id.fullmatch(verdict.message_id))]
        texts += [trace[1].decode() for trace in islice(self._received.finditer(content), MOST_IDS)]
        for text in texts:
            try:
                yield parse_id(text)
            except ValueError:
                continue

    async def _in_message(self, message: MessageId, verdicts: list[Verdict]) -> list[Match]:
        addresses = await self._mails.recipients(message)
        if not addresses:
            return []
        if len(addresses) == 1:
            # whom it was forwarded to, or nobody at all, may be named: there is but one whom it can be about
            named = [verdict for verdict in verdicts if _same(verdict.recipient, addresses[0])]
            return [Match(message, 0, _worst(named or verdicts))]
        matches: dict[int, list[Verdict]] = {}
        for verdict in verdicts:
            for n, address in enumerate(addresses):
                if _same(verdict.recipient, address):
                    matches.setdefault(n, []).append(verdict)
                    break
        return [Match(message, n, _worst(found)) for n, found in matches.items()]


_GRAVITY = {Action.FAILED: 3, Action.DELAYED: 2}


def _worst(verdicts: Sequence[Verdict]) -> Verdict:
    """What matters most where a report says several things of one recipient."""
    return max(verdicts, key=lambda verdict: (_GRAVITY.get(verdict.action, 1), verdict.hard))


def _same(one: str, other: str) -> bool:
    """Without case: remote systems fold local parts, and nobody has two mailboxes that differ in it alone."""
    return bool(one) and one.casefold() == other.casefold()
