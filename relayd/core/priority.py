"""How urgent mail is: high goes first, bulk last, and each gets its turn. Pure.

Who decides it is intake/urgency.py's; the turns are delivery/turns.py's.
"""

from __future__ import annotations

from enum import StrEnum


class Priority(StrEnum):
    """The priority of a message."""

    HIGH = "high"
    NORMAL = "normal"
    BULK = "bulk"

    @property
    def urgency(self) -> int:
        """As it is kept with a message: the greater, the more urgent."""
        return _URGENCY[self]


_URGENCY = {Priority.HIGH: 1, Priority.NORMAL: 0, Priority.BULK: -1}
_PRIORITY = {urgency: priority for priority, urgency in _URGENCY.items()}
URGENCIES = tuple(_PRIORITY)
"""From the most urgent down."""


def priority_of(urgency: int) -> Priority:
    """The priority that a message was kept with."""
    return _PRIORITY.get(urgency, Priority.NORMAL)


def read_priority(text: str) -> Priority | None:
    """The priority that a header names; None where it names none."""
    try:
        return Priority(text.strip().lower())
    except ValueError:
        return None
