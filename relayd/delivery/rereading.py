"""Room in memory for contents that are read back from disk to go out: after a restart, for a retry, out of a backlog.

How much of it there is follows from `limits.memory`. Who waits here has no connection in use, and comes in turn: each
content has room once it is alone, however big it is, so nothing is undeliverable for it.
"""

from __future__ import annotations

import asyncio
from collections import deque

from relayd.intake.memory import MemoryBudget

MIDDLE = 1024 * 1024
"""Octets up to which contents have room of their own: the big ones of a slow upstream must not hold up all others."""
SHARE, SHARE_OF_MIDDLE, LEFT = 2, 8, 4
"""Which part of the limit big ones may take, and the others beside it; and which part big ones leave to reception."""


class Rereading:
    """Contents of more than SMALL octets ask for room; it is not worth it below that. For one event loop."""

    def __init__(self, memory: MemoryBudget) -> None:
        self._memory = memory
        self._held = {False: 0, True: 0}
        """Octets, of middling and of big contents."""
        self._waiting: dict[bool, deque[tuple[int, asyncio.Future[None]]]] = {False: deque(), True: deque()}

    async def enter(self, octets: int) -> bool:
        """Wait until there is room, and take it; True when this took time. `leave` has to follow."""
        big = octets > MIDDLE
        queue = self._waiting[big]
        if not queue and self._fits(big, octets):
            self._take(big, octets)
            return False
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append((octets, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # both came at once
                self._give_back(big, octets)
            self._call(big)
            raise
        return True

    def leave(self, octets: int) -> None:
        """Give the room back: the next ones have their turn."""
        big = octets > MIDDLE
        self._give_back(big, octets)
        self._call(big)

    def _fits(self, big: bool, octets: int) -> bool:
        held, memory = self._held[big], self._memory
        if not held:
            return True
        if big:
            return held + octets <= memory.limit // SHARE and memory.room(octets + memory.limit // LEFT)
        return held + octets <= memory.limit // SHARE_OF_MIDDLE

    def _take(self, big: bool, octets: int) -> None:
        self._held[big] += octets
        self._memory.take(octets)

    def _give_back(self, big: bool, octets: int) -> None:
        self._held[big] -= octets
        self._memory.release(octets)

    def _call(self, big: bool) -> None:
        queue = self._waiting[big]
        while queue and (queue[0][1].cancelled() or self._fits(big, queue[0][0])):
            octets, turn = queue.popleft()
            if not turn.cancelled():
                self._take(big, octets)
                turn.set_result(None)
