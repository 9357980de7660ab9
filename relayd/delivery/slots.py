"""How many connections to an upstream this worker may hold, so that all workers together stay within its limit.

With at least as many connections as workers each worker has a fixed share. With fewer, they are leased by file lock:
a lock dies with its process, so a crash frees it. Who waits for one says so by a shared lock on another file.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

_LEAST_WAIT, _MOST_WAIT = 0.05, 0.5
LEASE = 2.0
"""Seconds after which a leased connection is given up where other workers may be waiting for it."""


class ConnectionSlots:
    """One upstream's connections, as seen by one worker."""

    def __init__(self, directory: Path, upstream: str, limit: int, slot: int, slots: int) -> None:
        self._limit = limit
        # the lane of an account has a slash in its name
        self._base = directory / f"upstream-{quote(upstream, safe='')}"
        self._locks: list[int] = []
        self._after_you = False
        self.leased = limit < slots
        self.most = 1 if self.leased else limit // slots + (slot < limit % slots)
        """Connections this worker may have open at once."""

    async def acquire(self, give_up: Callable[[], bool] = lambda: False) -> bool:
        """Wait until a connection may be opened; False when `give_up` says so before.

        Fixed shares never wait: the caller keeps within `most`.
        """
        if not self.leased:
            return True
        if self._after_you:
            # whoever waits looks that often; coming first each time would leave them nothing
            self._after_you = False
            await asyncio.sleep(_MOST_WAIT * 1.5)
        wait, waiting = _LEAST_WAIT, -1
        try:
            while not give_up():
                if self._try():
                    return True
                if waiting < 0:
                    waiting = self._open("waiting")
                    fcntl.flock(waiting, fcntl.LOCK_SH)
                await asyncio.sleep(wait * random.uniform(0.5, 1.5))  # noqa: S311 - spreading, not secrecy
                wait = min(wait * 1.5, _MOST_WAIT)
            return False
        finally:
            if waiting >= 0:
                os.close(waiting)

    def wanted(self) -> bool:
        """Does another worker wait for a connection?"""
        fd = self._open("waiting")
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def _open(self, what: str) -> int:
        return os.open(f"{self._base}-{what}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _try(self) -> bool:
        for place in range(self._limit):
            fd = self._open(str(place))
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
            else:
                self._locks.append(fd)
                return True
        return False

    def release(self, *, after_you: bool = False) -> None:
        """The connection is closed. With `after_you` those who wait get it before we ask again."""
        if self._locks:
            os.close(self._locks.pop())
            self._after_you = after_you
