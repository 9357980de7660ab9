"""Which upstream carries a message to a recipient: the `routes` of the configuration, compiled, first match wins.

A pure decider. It is asked when a message is accepted and again before every attempt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from relayd.config.models import Match, Route
from relayd.core.address import AddressError, compile_pattern, domain_of, to_ascii
from relayd.core.mail import INBOUND, Message, Recipient


@dataclass(frozen=True, slots=True)
class RouteFacts:
    """All that a rule can look at."""

    sender: str
    sender_domain: str
    recipient_domain: str
    credential: str | None = None
    network: str | None = None
    campaign: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    """Lower-case header name → value."""


@dataclass(frozen=True, slots=True)
class RouteDecision:
    """The rule that matched, counted from 0, and its upstream; None and None when no rule matches."""

    rule: int | None
    upstream: str | None


@dataclass(frozen=True, slots=True)
class _Condition:
    key: str
    wanted: str
    holds: Callable[[RouteFacts], bool]
    found: Callable[[RouteFacts], str | None]


def _domain(address: str) -> str:
    if "@" not in address:
        return ""
    domain = domain_of(address)
    try:
        return to_ascii(domain)
    except AddressError:  # an address literal: it has no A-labels
        return domain.lower()


def sender_domain_of(sender: str, from_domain: str) -> str:
    """Domain of the envelope sender; of From where the reverse-path is null (RFC 5321 4.5.5)."""
    return _domain(sender) if sender else from_domain


def facts_of(message: Message, recipient: Recipient) -> RouteFacts:
    """What the rules see of one recipient of a message."""
    return RouteFacts(
        sender=message.envelope.sender,
        sender_domain=sender_domain_of(message.envelope.sender, message.from_domain),
        recipient_domain=_domain(recipient.address),
        credential=message.origin.credential,
        network=message.origin.network,
        campaign=message.campaign,
        headers=message.labels,
    )


def _condition(key: str, wanted: str, found: Callable[[RouteFacts], str | None]) -> _Condition:
    fits = compile_pattern(wanted)

    def holds(facts: RouteFacts) -> bool:
        value = found(facts)
        return value is not None and fits(value)

    return _Condition(key, wanted, holds, found)


def _conditions(match: Match | None) -> tuple[_Condition, ...]:
    if match is None:
        return ()
    out = [
        _condition(key, wanted, found)
        for key, wanted, found in (
            ("sender", match.sender, lambda facts: facts.sender),
            ("sender_domain", match.sender_domain, lambda facts: facts.sender_domain),
            ("credential", match.credential, lambda facts: facts.credential),
            ("network", match.network, lambda facts: facts.network),
            ("campaign", match.campaign, lambda facts: facts.campaign),
            ("recipient_domain", match.recipient_domain, lambda facts: facts.recipient_domain),
        )
        if wanted is not None
    ]
    for name, wanted in (match.header or {}).items():
        lower = name.lower()
        out.append(_condition(f"header {name}", wanted, lambda facts, lower=lower: facts.headers.get(lower)))  # type: ignore[misc]
    return tuple(out)


class RouteTable:
    """The compiled routes of one configuration."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self.routes = tuple(routes)
        """What it was made of; tables of equal routes decide alike."""
        self._rules = tuple((_conditions(route.match), route.upstream) for route in routes)
        self.labels = frozenset(
            name.lower() for route in routes if route.match is not None for name in route.match.header or ()
        )
        """Lower-case names of the headers that some rule looks at; intake keeps their values with the message."""

    def decide(self, facts: RouteFacts) -> RouteDecision:
        """The first rule all of whose conditions hold."""
        for place, (conditions, upstream) in enumerate(self._rules):
            if all(condition.holds(facts) for condition in conditions):
                return RouteDecision(place, upstream)
        return RouteDecision(None, None)

    def upstream_for(self, message: Message, recipient: Recipient) -> str | None:
        """Name of the upstream that is to carry the message to this recipient now."""
        if message.origin.inbound:
            return INBOUND
        if self._rules and not self._rules[0][0]:
            return self._rules[0][1]  # one upstream for everything: the usual case costs nothing
        return self.decide(facts_of(message, recipient)).upstream

    def explain(self, facts: RouteFacts) -> list[tuple[int, str, list[str]]]:
        """For each rule up to the matching one: its place, upstream, and why it does not match (empty: it does)."""
        out: list[tuple[int, str, list[str]]] = []
        for place, (conditions, upstream) in enumerate(self._rules):
            misses = [
                f"{c.key} is {c.found(facts) or 'not given'}, wanted {c.wanted}"
                for c in conditions
                if not c.holds(facts)
            ]
            out.append((place, upstream, misses))
            if not misses:
                break
        return out
