"""A core for each worker, where there is one: its event loop stays there, its other threads go where there is room.

Wherever the scheduler moves a busy loop to, it finds the caches of that core full of what another process left.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from pathlib import Path

_THREADS = Path("/proc/self/task")


def core_of(slot: int, slots: int, cores: Collection[int]) -> int | None:
    """Which core is a worker's own; None where workers and cores (that we may use) are not equally many."""
    return sorted(cores)[slot] if slots == len(cores) > 1 else None


class Affinity:
    """Where the threads of one worker may run. Made and used on the event loop's thread."""

    def __init__(self, slot: int, slots: int) -> None:
        self._all = os.sched_getaffinity(0)
        self._own = core_of(slot, slots, self._all)
        self._freed: set[str] = set()

    def settle(self) -> None:
        """Stay on the worker's own core from now on."""
        if self._own is not None:
            with contextlib.suppress(OSError):  # not allowed here: it runs all the same
                os.sched_setaffinity(0, {self._own})

    def free_others(self) -> None:
        """Let threads that were made since the last time run anywhere: they were born where the loop has to stay."""
        if self._own is None:
            return
        threads = {thread.name for thread in _THREADS.iterdir()} - {str(os.getpid())}
        for thread in threads - self._freed:
            with contextlib.suppress(OSError):  # it has ended
                os.sched_setaffinity(int(thread), self._all)
        self._freed = threads
