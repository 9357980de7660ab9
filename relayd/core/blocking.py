"""Blocks: addresses that are not mailed any more; by which rule they come about, and for which mail they hold.

Pure: where blocks are kept is spool/blocklist.py's, who looks them up intake/blocks.py's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from relayd.core.address import AddressError, domain_of, parse, to_ascii
from relayd.core.classes import CLASSES, Actor, Blocks, ReplyClass
from relayd.core.event import Event, EventKind
from relayd.core.ids import MessageId
from relayd.core.lifecycle import Stage
from relayd.core.mail import Message
from relayd.core.units import Millis

EVERYTHING = "everything"
"""The scope of a block that holds for all mail."""
BY_RULE = "auto"
"""Who blocked, where a rule did."""
MANUAL = "manual"
"""Class of what an operator blocks without naming one."""
DAY: Millis = 86_400_000


class ScopeKind(StrEnum):
    """For which mail a rule blocks."""

    EVERYTHING = "everything"
    SENDER_DOMAIN = "sender-domain"
    """Mail of the sender's domain; of the From header's where the sender is null."""
    STREAM = "stream"
    """Mail of the same campaign; of the sender's domain where it has none."""


@dataclass(frozen=True, slots=True)
class Rule:
    """When a class of failure blocks an address."""

    after: int
    """Failures that it takes; 0: the class never blocks."""
    within: Millis
    """In which they must lie."""
    expires: Millis | None
    """How long the block holds; None for good."""
    scope: ScopeKind = ScopeKind.EVERYTHING


@dataclass(frozen=True, slots=True)
class Block:
    """One address, or all of a domain, that is not mailed."""

    id: int
    target: str
    """An address, *@example.org, or *@*.example.org for all domains below; lower case, A-labels."""
    scope: str
    """`everything`, `sender:DOMAIN` or `stream:CAMPAIGN`."""
    cls: str
    reason: str
    by: str
    """`auto`, or who blocked it."""
    since: Millis
    until: Millis | None
    """None for good."""
    message: MessageId | None
    """The mail that caused it."""
    stopped: int = 0
    """Mails that were not sent because of it."""
    last_stopped: Millis | None = None
    ended: Millis | None = None
    """When it was lifted; None while it holds."""
    ended_by: str | None = None
    """Who lifted it; `expired`, or `replaced` by a later block."""

    def holds(self, now: Millis) -> bool:
        """Neither lifted nor past its end."""
        return self.ended is None and (self.until is None or now < self.until)


def default_rules() -> dict[str, Rule]:
    """What holds for each class that may block unless the configuration says otherwise."""
    at_once = Rule(1, 14 * DAY, None)
    repeated = Rule(5, 14 * DAY, 30 * DAY)
    rules = {
        cls.value: at_once if facts.blocks is Blocks.AT_ONCE else repeated
        for cls, facts in CLASSES.items()
        if facts.blocks is not Blocks.NEVER
    }
    # a recipient's own filter lets other senders through
    rules[ReplyClass.FILTERED.value] = Rule(5, 14 * DAY, 30 * DAY, ScopeKind.SENDER_DOMAIN)
    return rules


def may_block(cls: str) -> bool:
    """Whether a rule for this class makes sense: what upstreams or our own policy are to blame for never blocks."""
    facts = CLASSES.get(cls)  # type: ignore[call-overload]
    return facts is not None and (
        facts.blocks is not Blocks.NEVER or facts.actor is Actor.RECIPIENT or cls == "expired"
    )


def key_of(address: str) -> str:
    """The form in which addresses are compared: lower case, the domain in A-labels. Never raises."""
    if address.isascii():
        return address.lower()
    return f"{address.rpartition('@')[0].lower()}@{domain_of(address)}"


def read_target(text: str) -> str:
    """What an operator wrote, as `Block.target`. Raises ValueError that says what is wrong."""
    text = text.strip().removeprefix("<").removesuffix(">")
    local, _, domain = text.rpartition("@")
    try:
        if local == "*":
            deep = domain.startswith("*.")
            return f"*@{'*.' if deep else ''}{to_ascii(domain[2:] if deep else domain)}"
        if "*" in domain:
            raise ValueError(f"{text!r}: write *@example.org, or *@*.example.org for the domains below it")
        parse(text, utf8=True)
    except AddressError as error:
        raise ValueError(f"{text!r}: {error.problem[0].lower()}{error.problem[1:]}") from None
    return key_of(text)


def read_scope(text: str) -> str:
    """A scope as an operator writes it, as `Block.scope`. Raises ValueError that says what would be right."""
    kind, colon, name = text.strip().partition(":")
    if kind == EVERYTHING and not colon:
        return EVERYTHING
    if kind == "sender" and name:
        try:
            return f"sender:{to_ascii(name.strip())}"
        except AddressError:
            pass
    if kind == "stream" and name.strip():
        return f"stream:{name.strip()}"
    raise ValueError(f"{text!r} is not a scope: write everything, sender:DOMAIN or stream:CAMPAIGN")


def sender_domain(message: Message) -> str:
    """The domain that scopes go by: the envelope sender's, the From header's for the null sender."""
    return domain_of(message.envelope.sender) if message.envelope.sender else message.from_domain


def scope_of(kind: ScopeKind, message: Message) -> str:
    """The scope that a rule of this kind gives a block caused by a message."""
    if kind is ScopeKind.STREAM and message.campaign:
        return f"stream:{message.campaign}"
    domain = sender_domain(message)
    if kind is ScopeKind.EVERYTHING or not domain:
        return EVERYTHING
    return f"sender:{domain}"


def covers(scope: str, message: Message) -> bool:
    """Whether a block of this scope holds for a message."""
    kind, _, name = scope.partition(":")
    if kind == "sender":
        return name == sender_domain(message)
    return name == message.campaign if kind == "stream" else True


def failure_class(event: Event) -> str | None:
    """The class that an event may block its recipient for; None where it says nothing about the address.

    Failures of the upstream's own, of a sender refused at MAIL, before anything was sent, or by an operator's word say
    nothing. Nor does a report that the other side still tries.
    """
    detail = event.detail
    cls = detail.get("class")
    if not isinstance(cls, str) or detail.get("upstream_trouble"):
        return None
    if event.kind is EventKind.COMPLAINED:
        return cls
    if "source" in detail:
        failed = event.kind in (EventKind.BOUNCED, EventKind.NOTED)
        return cls if failed or (event.kind is EventKind.POSTPONED and detail.get("action") != "delayed") else None
    if event.kind is EventKind.BOUNCED and "by" not in detail:
        return cls if detail.get("stage") in (Stage.RCPT, Stage.DATA, Stage.DOT) else None
    return None


def spoken_of_all(event: Event) -> bool:
    """A refusal of the content or the whole transaction: with several recipients it may be about any of them."""
    return event.kind is EventKind.BOUNCED and event.detail.get("stage") in (Stage.DATA, Stage.DOT)


def refusal(block: Block) -> str:
    """The reply that stands for an attempt that is not made; worded for the sender."""
    facts = CLASSES.get(block.cls)  # type: ignore[call-overload]
    status = facts.status if facts is not None and facts.status.startswith("5") else "5.7.1"
    return f"550 {status} Not sent: the address is blocked ({block.cls})"


def suppression(block: Block) -> Mapping[str, str | int | float | bool | None]:
    """Details of the event `suppressed`."""
    return {
        "class": block.cls,
        "reason": block.reason,
        "since": block.since,
        "scope": block.scope,
        "blocked_by": block.by,
        "block": block.id,
        "reply": refusal(block),
    }
