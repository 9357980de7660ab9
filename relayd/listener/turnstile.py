"""Lets those who send much read in turn: few of them in one turn of the event loop, however many there are.

A quarter of a MiB of a message takes a millisecond to look at. Ten clients that send as fast as they can would keep all
others waiting for ten of these, twice: once before their command is read, and once before it is answered.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

MUCH = 128 * 1024
"""Octets that arrive at once, above which a connection waits for its turn before it reads on."""
AT_ONCE = 2
"""Connections that read on in one turn of the loop."""


class Reader(Protocol):
    """A connection that is kept from reading."""

    def read_in_turn(self) -> None:
        """Its turn has come."""


class Turnstile:
    """The queue of one listener. Those with little to say never see it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue: deque[Reader] = deque()

    def queue(self, reader: Reader) -> None:
        """`read_in_turn` is called in the next turn of the loop at the earliest."""
        if not self._queue:
            self._loop.call_soon(self._turn)
        self._queue.append(reader)

    def _turn(self) -> None:
        readers = [self._queue.popleft() for _ in range(min(AT_ONCE, len(self._queue)))]
        if self._queue:
            self._loop.call_soon(self._turn)
        for reader in readers:
            reader.read_in_turn()
