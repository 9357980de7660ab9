"""How many connections to an upstream this worker may hold, so that all workers together stay within its limit.

With at least as many connections as workers each worker has a fixed share. With fewer, they are leased by file lock:
a lock dies with its process, so a crash frees it.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
from pathlib import Path

_LEAST_WAIT, _MOST_WAIT = 0.05, 0.5
LEASE = 2.0
"""Seconds after which a leased connection is given up where other workers may be waiting for it."""


class ConnectionSlots:
    """One upstream's connections, as seen by one worker."""

    def __init__(self, directory: Path, upstream: str, limit: int, slot: int, slots: int) -> None:
        self._limit = limit
        self._base = directory / f"upstream-{upstream}"
        self._locks: list[int] = []
        self.leased = limit < slots
        self.most = 1 if self.leased else limit // slots + (slot < limit % slots)
        """Connections this worker may have open at once."""

    async def acquire(self) -> None:
        """Wait until a connection may be opened. Fixed shares never wait: the caller keeps within `most`."""
        if not self.leased:
            return
        wait = _LEAST_WAIT
        while not self._try():
            await asyncio.sleep(wait * random.uniform(0.5, 1.5))  # noqa: S311 - spreading, not secrecy
            wait = min(wait * 1.5, _MOST_WAIT)

    def _try(self) -> bool:
        for place in range(self._limit):
            fd = os.open(f"{self._base}-{place}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
            else:
                self._locks.append(fd)
                return True
        return False

    def release(self) -> None:
        """The connection is closed."""
        if self._locks:
            os.close(self._locks.pop())
