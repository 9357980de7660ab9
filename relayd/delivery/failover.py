"""Which of several upstreams carries a message: by order or weight, passing over those that cannot be used now.

Pure. What routes name comes from routing.py; whether a lane can be used is standings.py's to say.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from relayd.core.ids import MessageId


class Why(IntEnum):
    """Why a lane cannot be used; where none can, mail waits in one with the smallest number."""

    PAUSED = 1
    """It is in trouble: a probe will tell."""
    EXHAUSTED = 2
    """A budget of a day is used up."""
    SUSPENDED = 3
    """By an operator, or by the guard against bounce storms."""


@dataclass(frozen=True, slots=True)
class Unavailable:
    """That a lane cannot be used now."""

    why: Why
    reason: str


Standing = Callable[[str], Unavailable | None]
"""What is in the way of a lane; None: nothing."""


def always(lane: str) -> Unavailable | None:
    """Every lane can be used."""
    return None


@dataclass(frozen=True, slots=True)
class Option:
    """One lane that may carry a message."""

    lane: str
    overflow_of: str | None = None
    """It stands in only while this lane has used up its day."""


@dataclass(frozen=True, slots=True)
class Targets:
    """The upstreams that a route names. With `weights` their order differs from message to message."""

    names: tuple[str, ...]
    weights: Mapping[str, int] | None = None

    @property
    def sole(self) -> str | None:
        """The only one."""
        return self.names[0] if len(self.names) == 1 else None

    def order(self, message: MessageId) -> Sequence[str]:
        """In which order to try them for this message: the same in every process, at any time."""
        return self.names if self.weights is None else weighted(message, self.weights)


def weighted(message: MessageId, weights: Mapping[str, int]) -> list[str]:
    """Names in an order drawn by weight, from the message's id alone.

    Weighted rendezvous hashing: another weight or another name moves no more messages than it has to.
    """

    def rank(name: str) -> float:
        digest = hashlib.blake2b(f"{message}/{name}".encode(), digest_size=8).digest()
        chance = (int.from_bytes(digest) + 1) / (2**64 + 1)
        return -math.log(chance) / weights[name]

    return sorted(weights, key=rank)


def choose(options: Sequence[Option], current: str, standing: Standing) -> str | None:
    """The lane for a message that lies in `current` ("" where it is new); None: there is no option.

    Mail stays where it is as long as that can be used: what failed over does not move back and forth.
    """
    best: str | None = None
    best_rank = (99, 0)
    for option in options:
        if option.overflow_of is not None:
            found = standing(option.overflow_of)
            if found is None or found.why is not Why.EXHAUSTED:
                continue
        found = standing(option.lane)
        rank = (found.why if found is not None else 0, 0 if option.lane == current else 1)
        if rank < best_rank:
            best, best_rank = option.lane, rank
            if rank == (0, 0):
                break
    return best
