"""The memory budget: octets of messages that are in reception or handed on in memory, against `limits.memory`.

Who holds octets reserves and releases them; what to reply when there is no room is decided by who asked.
"""

from __future__ import annotations


class MemoryBudget:
    """Counts octets held by one worker. Used on one event loop only, so it needs no lock."""

    __slots__ = ("limit", "peak", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        """Octets; changed on reload. What is held already stays held when it shrinks."""
        self.used = 0
        self.peak = 0
        """The most that was ever held, for metrics."""

    def room(self, octets: int) -> bool:
        """Would this much fit now? Reserves nothing."""
        return self.used + octets <= self.limit

    def reserve(self, octets: int) -> bool:
        """Take that many octets; False (and nothing taken) when they don't fit."""
        used = self.used + octets
        if used > self.limit:
            return False
        self.used = used
        self.peak = max(self.peak, used)
        return True

    def take(self, octets: int) -> None:
        """Count octets that are held already, beyond the limit if need be (our own reports, content handed on)."""
        self.used += octets
        self.peak = max(self.peak, self.used)

    def release(self, octets: int) -> None:
        """Give back what was reserved or taken. Raises ValueError for more than is held: a fault in our code."""
        if octets > self.used:
            raise ValueError(f"{octets} octets released, but only {self.used} are held")
        self.used -= octets
