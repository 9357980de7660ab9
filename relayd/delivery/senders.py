"""Senders whose mail an upstream refuses at MAIL while it takes that of others: each waits by itself.

Pure. Without it one app with a sender that the upstream does not know would halt everybody's mail.
"""

from __future__ import annotations

from dataclasses import dataclass

from relayd.core.lifecycle import Outcome
from relayd.core.units import Millis
from relayd.delivery.gate import FIRST_PAUSE

LONGEST: Millis = 3_600_000
"""A sender is tried again at least so often."""
MOST = 1000
"""Senders remembered at once; the one refused longest ago is forgotten first."""


@dataclass(slots=True)
class _Refused:
    outcome: Outcome
    alone: bool = False
    """Mail of another sender went through since: the trouble is this sender's."""
    troubles: int = 0
    until: Millis = 0


class RefusedSenders:
    """What is known of the senders of one upstream. Times in milliseconds since the epoch."""

    def __init__(self) -> None:
        self._refused: dict[str, _Refused] = {}

    def __len__(self) -> int:
        return len(self._refused)

    def refused(self, sender: str, outcome: Outcome, now: Millis, jitter: float) -> Millis | None:
        """MAIL was refused: when this sender may be tried again; None while it may be everybody's trouble."""
        found = self._refused.pop(sender, None) or _Refused(outcome)
        while len(self._refused) >= MOST:
            del self._refused[next(iter(self._refused))]
        self._refused[sender] = found
        found.outcome = outcome
        if not found.alone:
            return None
        if now >= found.until:
            found.until = now + round(min(FIRST_PAUSE << min(found.troubles, 10), LONGEST) * (1 + jitter / 4))
            found.troubles += 1
        return found.until

    def works(self, sender: str) -> None:
        """MAIL was taken from this sender."""
        if not self._refused:
            return
        self._refused.pop(sender, None)
        for found in self._refused.values():
            found.alone = True

    def waits(self, sender: str, now: Millis) -> tuple[Outcome, Millis] | None:
        """The refusal that a sender's mail is put off for, and until when; None when it may be tried."""
        found = self._refused.get(sender)
        if found is None or not now < found.until <= now + LONGEST + LONGEST // 4:
            return None
        return found.outcome, found.until
