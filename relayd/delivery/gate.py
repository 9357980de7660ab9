"""Whether an upstream may be tried now: open, paused with growing back-off, or half-open for one probing message.

A pure state machine over clock readings; the dispatcher reports trouble and success.
"""

from __future__ import annotations

from dataclasses import dataclass

from relayd.core.units import Millis

FIRST_PAUSE: Millis = 5_000
LONGEST_PAUSE: Millis = 300_000


@dataclass(slots=True)
class Gate:
    """The gate of one upstream. Times in milliseconds since the epoch."""

    paused_until: Millis = 0
    reason: str = ""
    since: Millis = 0
    troubles: int = 0
    """Pauses in a row without a success between them."""
    probing: bool = False

    @property
    def paused(self) -> bool:
        """In trouble: the last try failed for a reason of the upstream's own."""
        return self.troubles > 0

    def may_take(self, now: Millis) -> bool:
        """May a carrier take a message now? While in trouble only one may, once the pause is over."""
        if not self.troubles:
            return True
        return not self.probing and now >= self.paused_until

    def taken(self) -> None:
        """A message was taken: while in trouble it is the probe."""
        if self.troubles:
            self.probing = True

    def trouble(self, now: Millis, reason: str, jitter: float) -> Millis:
        """The upstream's own trouble: pause. Returns when to try again. `jitter` is random, 0 to 1.

        Carriers that fail together report one trouble, so within a pause nothing grows.
        """
        if self.troubles and now < self.paused_until:
            return self.paused_until
        if not self.troubles:
            self.since = now
        pause = min(FIRST_PAUSE << min(self.troubles, 10), LONGEST_PAUSE)
        self.troubles += 1
        self.probing = False
        self.reason = reason
        self.paused_until = now + round(pause * (1 + jitter / 4))
        return self.paused_until

    def success(self) -> bool:
        """The upstream works. True when this ends a pause."""
        ended = self.troubles > 0
        self.troubles, self.probing, self.paused_until, self.reason = 0, False, 0, ""
        return ended

    def abandoned(self) -> None:
        """The probe ended without saying anything about the upstream: let another one try."""
        self.probing = False
