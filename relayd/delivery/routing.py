"""Which upstream carries a message to a recipient: the `routes` of the configuration, compiled, first match wins.

A pure decider. It is asked when a message is accepted and again before every attempt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from relayd.config.models import Match, Route
from relayd.core.address import AddressError, compile_pattern, domain_of, to_ascii
from relayd.core.mail import INBOUND, Message, Recipient, upstream_of
from relayd.core.priority import Priority
from relayd.delivery.failover import Option, Standing, Targets, always, choose


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
    """The rule that matched, counted from 0, and what it names; None and None when no rule matches."""

    rule: int | None
    targets: Targets | None

    @property
    def upstream(self) -> str | None:
        """The upstream that it names first."""
        return None if self.targets is None else self.targets.names[0]


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
    """The compiled routes of one configuration.

    `standing` says which lanes cannot be used now: the dispatcher, which knows, puts its own here.
    """

    def __init__(self, routes: Sequence[Route], overflows: Mapping[str, str] | None = None) -> None:
        """`overflows`: upstream → the one that stands in once its day is used up."""
        self.routes = tuple(routes)
        """What it was made of; tables of equal routes decide alike."""
        self.standing: Standing = always
        self._overflows = dict(overflows or {})
        self._rules = tuple(
            (_conditions(route.match), Targets(route.upstreams, route.weights), " or ".join(route.upstreams))
            for route in routes
        )
        self._shared = frozenset(
            name for _, targets, _ in self._rules if targets.sole is None for name in targets.names
        ) | frozenset(self._overflows)
        sole = self._rules[0][1].sole if self._rules and not self._rules[0][0] else None
        self._only = None if sole in self._overflows else sole
        """The one upstream that carries everything: the usual case costs nothing."""
        self.labels = frozenset(
            name.lower() for route in routes if route.match is not None for name in route.match.header or ()
        )
        """Lower-case names of the headers that some rule looks at; intake keeps their values with the message."""

    def decide(self, facts: RouteFacts) -> RouteDecision:
        """The first rule all of whose conditions hold."""
        for place, (conditions, targets, _) in enumerate(self._rules):
            if all(condition.holds(facts) for condition in conditions):
                return RouteDecision(place, targets)
        return RouteDecision(None, None)

    def shared(self, upstream: str) -> bool:
        """May another upstream carry what this one cannot?"""
        return upstream in self._shared

    def upstream_for(
        self, message: Message, recipient: Recipient, current: str = "", *, keep: bool = False
    ) -> str | None:
        """The lane that is to carry the message to this recipient now; None: no rule fits.

        `current` is where it lies; with `keep` it stays there as long as a rule names that lane.
        """
        if message.origin.inbound:
            return INBOUND
        if self._only is not None:
            return self._only
        targets = self._targets(message, recipient)
        if targets is None:
            return None
        sole = targets.sole
        if sole is not None and sole not in self._overflows:
            return self._lane(sole, message)
        options = self.options(targets, message)
        if keep and any(option.lane == current for option in options):
            return current
        return choose(options, current, self.standing)

    def priority_for(self, message: Message, recipient: Recipient) -> Priority | None:
        """What the rule that fits says of how urgent the message is."""
        rule = 0 if self._rules and not self._rules[0][0] else self.decide(facts_of(message, recipient)).rule
        return None if rule is None else self.routes[rule].priority

    def other_than(self, lane: str, message: Message, recipient: Recipient) -> str | None:
        """The best lane for a message beside this one, that can be used now; None: there is none."""
        targets = None if message.origin.inbound else self._targets(message, recipient)
        if targets is None:
            return None
        others = [option for option in self.options(targets, message) if option.lane != lane]
        found = choose(others, "", self.standing)
        return found if found is not None and self.standing(found) is None else None

    def lane_of(self, upstream: str, message: Message) -> str | None:
        """The lane by which an upstream (or one of its lanes, named whole) may carry this message; None: it may not."""
        lane = self._lane(upstream_of(upstream), message)
        return lane if lane == upstream or "/" not in upstream else None

    def options(self, targets: Targets, message: Message) -> list[Option]:
        """The lanes that may carry a message, in order; where the sender may not use an upstream, it is none."""
        found: list[Option] = []
        for first in targets.order(message.id):
            lane, before, seen, name = self._lane(first, message), None, {first}, first
            while lane is not None:
                found.append(Option(lane, before))
                name = self._overflows.get(name, "")
                if not name or name in seen:
                    break
                seen.add(name)
                before, lane = lane, self._lane(name, message)
        return found

    def _targets(self, message: Message, recipient: Recipient) -> Targets | None:
        if self._rules and not self._rules[0][0]:
            return self._rules[0][1]
        return self.decide(facts_of(message, recipient)).targets

    def _lane(self, upstream: str, message: Message) -> str | None:
        """The lane of an upstream for this message; None: its sender may not use it."""
        return upstream

    def explain(self, facts: RouteFacts) -> list[tuple[int, str, list[str]]]:
        """For each rule up to the matching one: its place, upstreams, and why it does not match (empty: it does)."""
        out: list[tuple[int, str, list[str]]] = []
        for place, (conditions, _, names) in enumerate(self._rules):
            misses = [
                f"{c.key} is {c.found(facts) or 'not given'}, wanted {c.wanted}"
                for c in conditions
                if not c.holds(facts)
            ]
            out.append((place, names, misses))
            if not misses:
                break
        return out
