"""Bounce storms: the same refusal of many different recipients in a short time is the upstream's fault, not theirs.

Pure: told of refusals and deliveries, it says which to hold back. suspense.py keeps those until it is decided.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from relayd.core.classes import ReplyClass
from relayd.core.lifecycle import Outcome, OutcomeKind, Stage
from relayd.core.phrases import plain
from relayd.core.session import all_delivered
from relayd.core.units import Millis

GRACE: Millis = 2_000
"""So long a refusal is held back for others like it to come; each that comes extends it."""
SHORT_GRACE: Millis = 300
"""The same for refusals that speak of the recipient: those are mostly true."""
MOST_KEYS = 200
MOST_RECIPIENTS = 10_000
"""Recipients of one refusal that are told apart."""

_WORDS = 30
_PARTS = re.compile(r"[^a-z0-9]+")
_ABOUT_RECIPIENT = frozenset(
    {
        ReplyClass.USER_UNKNOWN.value,
        ReplyClass.USER_MOVED.value,
        ReplyClass.MAILBOX_DISABLED.value,
        ReplyClass.MAILBOX_FULL.value,
        ReplyClass.HOST_UNKNOWN.value,
        ReplyClass.NO_SUCH_DOMAIN_MAIL.value,
        ReplyClass.ADDRESS_SYNTAX.value,
        ReplyClass.MESSAGE_TOO_BIG.value,
    }
)
_ABOUT_SENDER = frozenset({"5.1.7", "5.1.8"})


@dataclass(frozen=True, slots=True)
class StormRule:
    """So many recipients refused alike within so long are a storm."""

    replies: int
    within: Millis


class Verdict(Enum):
    """What to do with a refusal."""

    HOLD = "hold"
    """Wait whether others like it come."""
    STORM = "storm"
    """This one makes it a storm."""


def key_of(outcome: Outcome, addresses: Iterable[str]) -> str:
    """What refusals that are alike have in common: the words, without addresses, numbers and ids."""
    own = {part for address in addresses for part in _PARTS.split(address.lower()) if part}
    words = [
        word for word in plain(outcome.reply.text).split() if word not in own and not any(c.isdigit() for c in word)
    ]
    return f"{outcome.reply.code} {outcome.reply.enhanced} {' '.join(words[:_WORDS])}".strip()


def refusal(outcome: Outcome) -> bool:
    """The upstream refused a recipient for good (it was not us who found that it cannot be sent)."""
    return outcome.kind is OutcomeKind.REJECTED and outcome.stage is not Stage.LOCAL


def about_recipient(outcome: Outcome) -> bool:
    """The refusal speaks of this one recipient (or of a message too big for it)."""
    enhanced = outcome.reply.enhanced
    if enhanced:
        return (enhanced.startswith(("5.1.", "5.2.")) and enhanced not in _ABOUT_SENDER) or enhanced == "5.3.4"
    return outcome.stage is Stage.RCPT and outcome.cls in _ABOUT_RECIPIENT


@dataclass(slots=True)
class _Run:
    """Refusals of one kind."""

    personal: bool
    last: Millis
    recipients: dict[str, Millis] = field(default_factory=dict)


class StormGuard:
    """What one worker sees of one lane. Times in milliseconds since the epoch."""

    def __init__(self, rule: StormRule) -> None:
        self.rule = rule
        self._runs: dict[str, _Run] = {}
        self._personal: set[str] = set()
        """Those of them that speak of their recipients."""

    def concerns(self, outcomes: Sequence[Outcome]) -> bool:
        """Do these outcomes tell the guard anything? As a rule they do not."""
        if self._personal:
            return True
        return not all_delivered(outcomes) and any(outcome.kind is OutcomeKind.REJECTED for outcome in outcomes)

    def refused(self, key: str, recipient: str, now: Millis, *, personal: bool) -> Verdict:
        """A recipient was refused. `personal`: the reply speaks of the recipient."""
        run = self._runs.pop(key, None) or _Run(personal, now)
        while len(self._runs) >= MOST_KEYS:
            oldest = next(iter(self._runs))
            del self._runs[oldest]
            self._personal.discard(oldest)
        self._runs[key] = run
        if run.personal:
            self._personal.add(key)
        run.last = now
        known = run.recipients
        if len(known) < MOST_RECIPIENTS or recipient in known:
            known.pop(recipient, None)
            known[recipient] = now
        # in the order of time: what has grown old stands in front (a clock that was put back makes nothing young)
        while known:
            first = next(iter(known))
            if 0 <= now - known[first] < self.rule.within:
                break
            del known[first]
        return Verdict.STORM if len(known) >= self.rule.replies else Verdict.HOLD

    def delivered(self) -> bool:
        """A message got through: refusals that speak of their recipients are true. True when there were any."""
        if not self._personal:
            return False
        for key in self._personal:
            del self._runs[key]
        self._personal.clear()
        return True

    def waits(self, key: str, since: Millis, now: Millis) -> bool:
        """Is a refusal of that moment still to be held back?"""
        run = self._runs.get(key)
        if run is None or not 0 <= now - since < self.rule.within:
            return False
        return 0 <= now - run.last < (SHORT_GRACE if run.personal else GRACE)

    def count(self, key: str) -> int:
        """Recipients that were refused so lately."""
        run = self._runs.get(key)
        return 0 if run is None else len(run.recipients)

    def clear(self) -> None:
        """Begin anew."""
        self._runs.clear()
        self._personal.clear()
