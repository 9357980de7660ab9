"""How many connections a lane may use at once: few at first, more with every success, half when told to slow down.

Pure. How many there may be at most is slots.py's.
"""

from __future__ import annotations

from collections.abc import Iterable

from relayd.core.classes import ReplyClass
from relayd.core.lifecycle import Outcome, OutcomeKind
from relayd.core.units import Millis

FIRST = 2
"""Connections to begin with."""
_UNDONE = frozenset({OutcomeKind.DEFERRED, OutcomeKind.UNCERTAIN})
_CODES = frozenset({421, 432, 450, 454})
_CLASSES = frozenset(
    {ReplyClass.NETWORK_ERROR.value, ReplyClass.RATE_LIMITED.value, ReplyClass.TOO_MANY_CONNECTIONS.value}
)


def too_fast(outcomes: Iterable[Outcome]) -> bool:
    """Some outcome says "slower": a reply that means so, silence, or a dropped connection."""
    for outcome in outcomes:  # asked for each mail: any() and its generator cost thrice that
        if outcome.kind in _UNDONE and (outcome.reply.code in _CODES or outcome.cls in _CLASSES):
            return True
    return False


class Pace:
    """The concurrency of one lane in one worker. Times in milliseconds since the epoch.

    Doubles with each round of successes up to where it was last told to slow down, then grows by one in each round
    (additive increase, multiplicative decrease, as TCP does: RFC 5681 3.1).
    """

    def __init__(self, most: int, first: int = FIRST) -> None:
        self.most = max(most, 1)
        self.allowed = min(max(first, 1), self.most)
        self._threshold = self.most
        self._successes = 0
        self._cut_at: Millis = 0
        self._held_until: Millis = 0

    def resize(self, most: int) -> None:
        """So many at most from now on."""
        if self.allowed >= self.most or most < self.allowed:
            self.allowed = max(most, 1)
        self.most = max(most, 1)
        self._threshold = max(self._threshold, self.most)

    def success(self, now: Millis) -> bool:
        """A message got through; True when one connection more may be used."""
        if self.allowed >= self.most:
            return False
        if self._held_until:
            if self._held_until - now > 0:
                return False
            self._held_until = 0
        if self.allowed >= self._threshold:
            self._successes += 1
            if self._successes < self.allowed:
                return False
        self._successes = 0
        self.allowed += 1
        return True

    def slower(self, began: Millis, now: Millis, hold: Millis = 0) -> None:
        """A transaction that began then was told to slow down. With `hold` nothing grows for so long.

        What began before the last cut tells nothing new: connections that fail together count once.
        """
        if hold:
            self._held_until = max(self._held_until, now + hold)
        if self._cut_at and began <= self._cut_at <= now:
            return
        self.allowed = self._threshold = max(self.allowed // 2, 1)
        self._successes, self._cut_at = 0, now
