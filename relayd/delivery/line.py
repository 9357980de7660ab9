"""One upstream at work: its lane, its crew, and what their attempts tell about the upstream.

What an attempt means for a recipient is settle.py's; here it is about whether to go on, pause, or wait with a sender.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from relayd.core.ids import MessageId
from relayd.core.lifecycle import OnUncertain, Outcome, OutcomeKind, Stage
from relayd.core.mail import Message
from relayd.core.permits import Share
from relayd.core.session import Connector, Sent, all_delivered
from relayd.core.throttle import ThrottleRule
from relayd.core.units import Millis
from relayd.delivery.crew import Crew
from relayd.delivery.dkim import SigningPool
from relayd.delivery.gate import Gate
from relayd.delivery.lanes import Lane
from relayd.delivery.observer import DeliveryObserver
from relayd.delivery.pace import Pace, too_fast
from relayd.delivery.routing import RouteTable
from relayd.delivery.senders import RefusedSenders
from relayd.delivery.settle import Policy
from relayd.delivery.standings import StandingBook
from relayd.delivery.storm import StormGuard, StormRule
from relayd.delivery.throughput import Throughput
from relayd.spool.standings import SuspensionKind


class Outward(Protocol):
    """What goes out under another name than it came (accounts.py)."""

    def sender(self, message: Message) -> str:
        """The envelope sender that goes out."""

    def content(self, message: Message, content: bytes) -> tuple[bytes, str]:
        """The content before it is signed, and the domain of its From. Called in a thread where it is big."""


@dataclass(frozen=True, slots=True)
class UpstreamPlan:
    """What the dispatcher needs to know of one upstream."""

    name: str
    connector: Connector
    connections: int
    recipients: int
    """Most recipients in one transaction."""
    on_uncertain: OnUncertain
    identity: object
    """Compares unequal when sessions opened under another plan must not be used any more."""
    return_path: Callable[[MessageId, int, Millis, str], str] | None = None
    """Makes the envelope sender of one recipient, for bounces to name it, from the domain of From as it goes out, too;
    None: the message's own sender goes out."""
    sign: bool = True
    outward: Outward | None = None
    """None: everything goes out under the name it came with."""
    storm: StormRule | None = None
    """What is taken for a bounce storm, all workers together; None: nothing."""
    rules: tuple[ThrottleRule, ...] = ()
    """What is done about certain replies; the first that fits."""
    first: int = 0
    """Connections to begin with, of one worker; 0: as many as there may be."""
    shares: tuple[Share, ...] = ()
    """Budgets that its mail has to fit in."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that a configuration says about delivery."""

    upstreams: Mapping[str, UpstreamPlan]
    table: RouteTable
    signing: SigningPool
    policy: Policy
    window: int


@dataclass(frozen=True, slots=True)
class Ruling:
    """What rules say about one transaction."""

    pause: Millis = 0
    """Pause at least so long."""
    slow: Millis = 0
    """Use fewer connections for so long."""
    elsewhere: frozenset[int] = frozenset()
    """Recipients that go by another upstream."""


_TROUBLE, _DOT = OutcomeKind.TROUBLE, Stage.DOT
_BEHIND_MAIL = frozenset({Stage.RCPT, Stage.DATA, Stage.DOT})


_THROUGH = frozenset({OutcomeKind.DELIVERED, OutcomeKind.REJECTED})
"""No more attempts are needed."""
MOST_PUT_OFF = 1000
"""Messages put off by trouble that are remembered, to hurry them when it ends; the others come when their time does."""


def trouble_in(sent: Sent) -> Outcome | None:
    """The upstream's own trouble, if any recipient met with it."""
    for outcome in sent.outcomes:
        if outcome.kind is _TROUBLE:
            return outcome
    return None


@dataclass(slots=True)
class Line:
    """One upstream at work."""

    lane: Lane
    plan: UpstreamPlan
    observer: DeliveryObserver
    random: random.Random
    standings: StandingBook
    crew: Crew = field(init=False)
    senders: RefusedSenders = field(default_factory=RefusedSenders)
    pace: Pace = field(default_factory=lambda: Pace(1))
    """How many connections it may use at the moment."""
    guard: StormGuard | None = None
    """Against bounce storms."""
    throughput: Throughput = field(default_factory=Throughput)
    put_off: set[MessageId] = field(default_factory=set)
    """Messages that wait because of its trouble, as far as they are remembered."""
    unwritten: dict[MessageId, int] = field(default_factory=dict)
    """Settlements that could not be written yet, or are not decided yet, by message."""
    ended: set[MessageId] = field(default_factory=set)
    """Of these messages the last attempt is settled; they are let go of when nothing is unwritten."""

    @property
    def gate(self) -> Gate:
        """Whether it may be tried now."""
        return self.lane.gate

    def opened(self) -> None:
        """It may be used again, or be probed, by what another worker or an operator did."""
        if self.guard is not None:
            self.guard.clear()
        self.lane.look()
        self.crew.all_ready()

    def stormed(self) -> bool:
        """Has the storm guard, here or in another worker, suspended it?"""
        if not self.lane.gate.shut:
            return False
        found = self.standings.suspension(self.lane.name)
        return found is not None and found.kind is SuspensionKind.STORM

    def judge(self, sent: Sent, sender: str, now: Millis, began: Millis = 0, ruling: Ruling | None = None) -> Millis:
        """Open or close the upstream's gate, and set its pace; when to try again what its trouble kept back.

        `began`: when the transaction did. `ruling`: what rules say about it.
        """
        gate = self.lane.gate
        self._set_pace(sent, now, began, ruling)
        if all_delivered(sent.outcomes):
            self.throughput.count(now, len(sent.outcomes))
        elif (trouble := trouble_in(sent)) is not None:
            return self._trouble(trouble, sender, now, 0 if ruling is None else ruling.pause)
        else:
            self.throughput.count(now, sum(outcome.kind in _THROUGH for outcome in sent.outcomes))
        if gate.paused or self.senders:
            if all(outcome.stage is Stage.LOCAL for outcome in sent.outcomes):
                gate.abandoned()
                return now
            if any(outcome.stage in _BEHIND_MAIL for outcome in sent.outcomes):
                self.senders.works(sender)
            since = gate.since
            if gate.success():
                self.observer.paused(self.plan.name, False)
                self.standings.works(self.plan.name, since)
                self.crew.all_ready()
        return now

    def _set_pace(self, sent: Sent, now: Millis, began: Millis, ruling: Ruling | None) -> None:
        pace = self.pace
        if ruling is not None and ruling.slow:
            pace.slower(began, now, ruling.slow)
        elif too_fast(sent.outcomes):
            pace.slower(began, now)
        elif pace.allowed < pace.most and sent.stage is _DOT and pace.success(now) and self.lane.has_mail:
            self.crew.ready()

    def _trouble(self, trouble: Outcome, sender: str, now: Millis, least: Millis) -> Millis:
        gate, log = self.lane.gate, structlog.get_logger("relayd.delivery")
        suspect = sender if trouble.stage is Stage.MAIL and not least else None
        if suspect is not None:
            until = self.senders.refused(sender, trouble, now, self.random.random())
            if until is not None:
                log.warning("sender refused", upstream=self.plan.name, sender=sender, reply=str(trouble.reply))
                gate.abandoned()
                return until
        began, known = not gate.paused, gate.paused_until
        resume = gate.trouble(now, str(trouble.reply), self.random.random(), suspect, least)
        if began:
            self.observer.paused(self.plan.name, True)
        if resume != known:
            self.standings.trouble(self.plan.name, gate, trouble, first=began)
        log.warning(
            "upstream in trouble",
            upstream=self.plan.name,
            stage=trouble.stage.value,
            reply=str(trouble.reply),
            next_try_seconds=round((resume - now) / 1000, 1),
        )
        self.crew.ready()
        return resume

    def end(self, message: MessageId) -> None:
        """The last attempt of what was taken is settled: let go of the message once all of it is on disk."""
        if message in self.unwritten:
            self.ended.add(message)
        else:
            self.lane.done(message)

    def park(self, message: MessageId) -> None:
        """A refusal of one of its recipients is not believed yet."""
        self.unwritten[message] = self.unwritten.get(message, 0) + 1

    def unpark(self, message: MessageId) -> None:
        """What was parked, or could not be written, is on disk now, or never will be."""
        self.unwritten[message] -= 1
        if not self.unwritten[message]:
            del self.unwritten[message]
            if message in self.ended:
                self.ended.discard(message)
                self.lane.done(message)

    def cannot_write(self, message: MessageId) -> None:
        """Take nothing more: what was delivered but is not written must not be taken for undelivered."""
        self.lane.blocked += 1
        self.park(message)

    def written_at_last(self, message: MessageId) -> None:
        """One of the settlements that could not be written is on disk now, or never will be."""
        self.lane.blocked -= 1
        self.unpark(message)
