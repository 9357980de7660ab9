"""The memory budget: octets of messages that are in reception or handed on in memory, against `limits.memory`.

Who holds octets reserves and releases them; what to reply when there is no room is decided by who asked.
"""

from __future__ import annotations

SMALL = 64 * 1024
"""Octets up to which a mail in reception has room that big ones cannot take …"""
SPARE = 8
"""… namely this part of the limit, beside it: who sends big mails must not keep all others out."""


class MemoryBudget:
    """Counts octets held by one worker. Used on one event loop only, so it needs no lock."""

    __slots__ = ("lent", "limit", "peak", "small", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        """Octets; changed on reload. What is held already stays held when it shrinks."""
        self.used = 0
        self.small = 0
        """Of these, what small mails in reception hold."""
        self.lent = 0
        """Of these, contents that delivery was handed and need not read from disk."""
        self.peak = 0
        """The most that was ever held, for metrics."""

    def room(self, octets: int) -> bool:
        """Would this much fit now? Reserves nothing."""
        return self.used + octets <= self.limit

    def welcomes(self, octets: int) -> bool:
        """Would a mail of this size have room now? Reserves nothing."""
        return self.used + octets <= self.limit or (octets <= SMALL and self.small + octets <= self.limit // SPARE)

    def reserve(self, octets: int, held: int = 0) -> bool:
        """Take octets more for a mail that holds so many already; False, and nothing taken, when they don't fit."""
        small = held + octets <= SMALL
        if self.used + octets > self.limit and not (small and self.small + octets <= self.limit // SPARE):
            return False
        self.small += octets if small else -held if held <= SMALL else 0
        self.take(octets)
        return True

    def forget(self, octets: int) -> None:
        """Give back all that a mail in reception has reserved."""
        if octets <= SMALL:
            self.small -= octets
        self.release(octets)

    def lend(self, octets: int) -> bool:
        """Hand a content on to delivery, which gives it back by `returned`; False where it is to be read from disk.

        No more than half of the limit: an upstream may be down for days, and what waits for it must not keep clients
        out. And no more than half of what is free, so that reception comes first.
        """
        if self.lent + octets > self.limit // 2 or self.used + 2 * octets > self.limit:
            return False
        self.lent += octets
        self.take(octets)
        return True

    def returned(self, octets: int) -> None:
        """What was lent is held no more."""
        self.lent -= octets
        self.release(octets)

    def take(self, octets: int) -> None:
        """Count octets that are held already, beyond the limit if need be (our own reports, content handed on)."""
        self.used += octets
        self.peak = max(self.peak, self.used)

    def release(self, octets: int) -> None:
        """Give back what was reserved or taken. Raises ValueError for more than is held: a fault in our code."""
        if octets > self.used:
            raise ValueError(f"{octets} octets released, but only {self.used} are held")
        self.used -= octets
