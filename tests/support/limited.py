"""Upstreams that count as their providers do, and refuse what is too much with the providers' own words."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from relayd.core.lifecycle import Outcome, OutcomeKind, Stage
from relayd.core.permits import Kind, Share, Window
from relayd.core.reply import Reply
from relayd.core.session import Outgoing
from tests.support.dispatching import TAKEN

REFUSALS = {
    "office365": Reply(432, "4.3.2", "Concurrent connections limit exceeded."),
    "gmail": Reply(550, "5.4.5", "Daily user sending limit exceeded."),
    "workspace-relay": Reply(450, "4.2.1", "The user you are trying to contact is receiving mail at a rate that"),
}


@dataclass
class Provider:
    """Counts everything that it takes, in windows that include both ends."""

    limits: tuple[tuple[Kind, Window], ...]
    clock: Callable[[], int]
    refusal: Reply = field(default_factory=lambda: REFUSALS["office365"])
    taken: dict[Kind, list[int]] = field(default_factory=lambda: {kind: [] for kind in Kind})
    refused: int = 0

    @classmethod
    def of(cls, shares: Sequence[Share], clock: Callable[[], int], preset: str = "office365") -> Provider:
        """One that enforces what these budgets say."""
        limits = tuple((share.kind, window) for share in shares for window in share.windows)
        return cls(limits, clock, REFUSALS[preset])

    def answer(self, mail: Outgoing) -> list[Outcome]:
        """Take it, or refuse it as too much."""
        now, count = self.clock(), {Kind.MESSAGES: 1, Kind.RECIPIENTS: len(mail.recipients)}
        for kind, window in self.limits:
            times = self.taken[kind]
            if len(times) - bisect_left(times, now - window.span) + count[kind] > window.count:
                self.refused += 1
                outcome = Outcome(OutcomeKind.DEFERRED, Stage.RCPT, self.refusal, "unknown")
                return [outcome] * len(mail.recipients)
        for kind, many in count.items():
            self.taken[kind] += [now] * many
        return [TAKEN] * len(mail.recipients)

    def most(self, kind: Kind, span: int) -> int:
        """The fullest window of this length so far."""
        times = self.taken[kind]
        return max((place + 1 - bisect_left(times, at - span) for place, at in enumerate(times)), default=0)
