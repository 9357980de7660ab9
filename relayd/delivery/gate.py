"""Whether an upstream may be tried now: open, paused with growing back-off, or half-open for one probing message.

A pure state machine over clock readings; the dispatcher reports trouble and success.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from relayd.core.units import Millis

FIRST_PAUSE: Millis = 5_000
LONGEST_PAUSE: Millis = 300_000
MOST_SUSPECTS = 1000
_JITTER = 4
"""A pause is longer by up to this part of it."""


@dataclass(slots=True)
class Gate:
    """The gate of one upstream. Times in milliseconds since the epoch."""

    paused_until: Millis = 0
    reason: str = ""
    since: Millis = 0
    troubles: int = 0
    """Pauses in a row without a success between them."""
    probing: bool = False
    suspects: set[str] = field(default_factory=set)
    """Envelope senders refused at MAIL since the last success: it may be their trouble alone. """
    shut: bool = False
    """Suspended: nothing is taken, whatever the rest says."""
    _longest: Millis = LONGEST_PAUSE
    """The longest that the running pause can be."""

    @property
    def paused(self) -> bool:
        """In trouble: the last try failed for a reason of the upstream's own."""
        return self.troubles > 0

    def may_take(self, now: Millis) -> bool:
        """May a carrier take a message now? While in trouble only one may, once the pause is over."""
        return not self.shut and (not self.troubles or (not self.probing and self.left(now) <= 0))

    def left(self, now: Millis) -> Millis:
        """Milliseconds of the pause that are left. A clock that was put back makes none longer than it can be."""
        if self.paused_until - now > self._longest + self._longest // _JITTER:
            self.paused_until = now
        return max(self.paused_until - now, 0)

    def end_pause(self) -> None:
        """Let a probe try at once: something about the upstream was changed."""
        self.paused_until, self.probing = 0, False

    def taken(self) -> None:
        """A message was taken: while in trouble it is the probe."""
        if self.troubles:
            self.probing = True

    def trouble(self, now: Millis, reason: str, jitter: float, suspect: str | None = None, least: Millis = 0) -> Millis:
        """The upstream's own trouble: pause. Returns when to try again. `jitter` is random, 0 to 1.

        Carriers that fail together report one trouble, so within a pause nothing grows; only `least`, what a rule asks
        for, makes a pause that is shorter as long as that.
        """
        if self.troubles and self.left(now) > 0 and now + least <= self.paused_until:
            return self.paused_until
        if not self.troubles:
            self.since = now
        pause = max(min(FIRST_PAUSE << min(self.troubles, 10), LONGEST_PAUSE), least)
        self._longest = max(LONGEST_PAUSE, pause)
        self.troubles += 1
        self.probing = False
        self.reason = reason
        if suspect is not None and len(self.suspects) < MOST_SUSPECTS:
            self.suspects.add(suspect)
        self.paused_until = now + round(pause * (1 + jitter / _JITTER))
        return self.paused_until

    def adopt(self, since: Millis, until: Millis, troubles: int, reason: str, now: Millis) -> None:
        """Another worker met with trouble: pause as it does."""
        if not self.troubles:
            self.since = since
        self.troubles, self.reason = max(self.troubles, troubles), reason
        self._longest = max(self._longest, until - now)
        if until > self.paused_until:
            self.paused_until, self.probing = until, False

    def wait(self, until: Millis) -> None:
        """Another worker probes: let it."""
        self.paused_until, self.probing = max(self.paused_until, until), False

    def success(self) -> bool:
        """The upstream works. True when this ends a pause."""
        ended = self.troubles > 0
        self.troubles, self.probing, self.paused_until, self.reason = 0, False, 0, ""
        self._longest = LONGEST_PAUSE
        self.suspects.clear()
        return ended

    def abandoned(self) -> None:
        """The probe ended without saying anything about the upstream: let another one try."""
        self.probing = False
