"""Room in memory for contents that are read back from disk to go out: after a restart, for a retry, out of a backlog.

How much of it there is follows from `limits.memory`. Who waits here has no connection in use, and comes in turn. Of
each upstream one content has room in any case: a slow one holds up no other, and nothing is too big to be delivered.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from relayd.intake.memory import MemoryBudget

MIDDLE = 1024 * 1024
"""Octets up to which contents have room of their own: the big ones of a slow upstream must not hold up all others."""
SHARE, SHARE_OF_MIDDLE, LEFT = 2, 8, 4
"""Which part of the limit big ones may take, and the others beside it; and which part big ones leave to reception."""


class Rereading:
    """Contents of more than `intake.memory.SMALL` octets ask for room: less is not worth it. For one event loop."""

    def __init__(self, memory: MemoryBudget) -> None:
        self._memory = memory
        self._held = {False: 0, True: 0}
        """Octets, of middling and of big contents."""
        self._inside: Counter[tuple[bool, str]] = Counter()
        """How many contents those are, by upstream."""
        self._waiting: dict[bool, list[tuple[int, str, asyncio.Future[None]]]] = {False: [], True: []}

    async def enter(self, octets: int, upstream: str) -> bool:
        """Wait until there is room, and take it; True when this took time. `leave` has to follow."""
        big = octets > MIDDLE
        if self._fits(big, octets, upstream, first=not self._waiting[big]):
            self._take(big, octets, upstream)
            return False
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[big].append((octets, upstream, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # both came at once
                self._give_back(big, octets, upstream)
            self._call(big)
            raise
        return True

    def leave(self, octets: int, upstream: str) -> None:
        """Give the room back: the next ones have their turn."""
        big = octets > MIDDLE
        self._give_back(big, octets, upstream)
        self._call(big)

    def _fits(self, big: bool, octets: int, upstream: str, *, first: bool) -> bool:
        """`first`: nobody has waited longer."""
        if not self._inside[big, upstream]:
            return True
        held, memory = self._held[big] + octets, self._memory
        if big:
            return first and held <= memory.limit // SHARE and memory.room(octets + memory.limit // LEFT)
        return first and held <= memory.limit // SHARE_OF_MIDDLE

    def _take(self, big: bool, octets: int, upstream: str) -> None:
        self._held[big] += octets
        self._inside[big, upstream] += 1
        self._memory.take(octets)

    def _give_back(self, big: bool, octets: int, upstream: str) -> None:
        self._held[big] -= octets
        self._inside[big, upstream] -= 1
        self._memory.release(octets)

    def _call(self, big: bool) -> None:
        waiting, self._waiting[big] = self._waiting[big], []
        for octets, upstream, turn in waiting:
            if turn.cancelled():
                continue
            if self._fits(big, octets, upstream, first=not self._waiting[big]):
                self._take(big, octets, upstream)
                turn.set_result(None)
            else:
                self._waiting[big].append((octets, upstream, turn))
