"""A message that goes out in several transactions: the next is sent while what became of the last is being written.

Who sends them is attempt.py; how they are written, writing.py.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

BEHIND = 16
"""Transactions of one message that may be sent while what became of earlier ones is not on disk yet: a recipient with a
return path of its own would wait for a disk each time otherwise. A crash repeats no more than these."""


class Behind:
    """Settlements of one message that are on their way to the disk; it is let go of once all of them are there.

    The last one alone would not do: where an earlier one has to be written again, the lane would read from disk what
    stood before it.
    """

    def __init__(self, let_go: Callable[[], None]) -> None:
        self._let_go = let_go
        self._pending: deque[asyncio.Future[None]] = deque()
        self._whole = False

    def add(self, written: asyncio.Future[None], *, last: bool) -> None:
        """One more."""
        self._whole = last
        self._pending.append(written)
        written.add_done_callback(self._done)

    async def room(self) -> None:
        """Wait while there are too many."""
        while len(self._pending) > BEHIND:
            await asyncio.wait([self._pending[0]])

    async def written(self) -> None:
        """Wait until nothing is on its way any more."""
        if self._pending:
            await asyncio.wait(self._pending)

    def end(self) -> None:
        """No more will come."""
        self._whole = True
        if not self._pending:
            self._let_go()

    def _done(self, written: asyncio.Future[None]) -> None:
        self._pending.remove(written)
        if self._whole and not self._pending:
            self._let_go()
