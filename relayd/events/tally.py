"""Counting on the hot path: what is counted and measured waits, and prometheus_client hears of it once a second.

Which counters there are, and what they mean, is metrics.py's.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left

from prometheus_client import Counter, Gauge, Histogram

FLUSH = 1.0
"""Seconds after which what was counted is shown by other workers too."""
MOST_LABELS = 500
"""Label combinations of one counter; further ones are counted as "other"."""

Labels = tuple[object, ...]
"""Label values; prometheus_client writes them as str says."""


class Tally:
    """A counter, or a gauge of what comes and goes, whose additions wait in a dictionary until `flush`."""

    __slots__ = ("_children", "_counter", "_labels", "_wake", "pending")

    def __init__(self, counter: Counter | Gauge, labels: int, wake: Tallies) -> None:
        self._counter = counter
        self._labels = labels
        self._children: dict[Labels, Counter | Gauge] = {}
        self._wake = wake
        self.pending: dict[Labels, float] = {}

    def add(self, *labels: str, count: float = 1) -> None:
        """Count, under these label values."""
        self.count(labels, count)

    def count(self, labels: Labels, count: float = 1) -> None:
        """The same for labels that are a tuple already."""
        pending = self.pending
        if not pending:
            self._wake.wake()
        pending[labels] = pending.get(labels, 0) + count

    def flush(self) -> None:
        """Hand on what was counted."""
        for labels, count in self.pending.items():
            child = self._children.get(labels)
            if child is None:
                child = self._child(labels)
            child.inc(count)
        self.pending.clear()

    def _child(self, labels: Labels) -> Counter | Gauge:
        if not labels:
            return self._counter
        if len(self._children) >= MOST_LABELS:
            labels = ("other",) * self._labels
        child = self._children[labels] = self._counter.labels(*labels)
        return child


class Spread:
    """A histogram whose observations wait in a list until `flush`: each costs the library two dozen calls."""

    __slots__ = ("_histogram", "_pending", "_wake")

    def __init__(self, histogram: Histogram, wake: Tallies) -> None:
        """`histogram` has no labels, or has been given their values."""
        self._histogram = histogram
        self._pending: list[float] = []
        self._wake = wake

    def observe(self, amount: float) -> None:
        """One was this big."""
        if not self._pending:
            self._wake.wake()
        self._pending.append(amount)

    def flush(self) -> None:
        """Hand on what was observed, each bucket once, as the library itself adds to them."""
        histogram, pending = self._histogram, self._pending
        if not pending:
            return
        self._pending = []
        bounds = histogram._upper_bounds
        counts = [0] * len(bounds)
        for amount in pending:
            counts[bisect_left(bounds, amount)] += 1
        for bucket, count in zip(histogram._buckets, counts, strict=True):
            if count:
                bucket.inc(count)
        histogram._sum.inc(sum(pending))


class Tallies:
    """All tallies of a process; flushes them a moment after the first addition, for as long as a loop runs."""

    def __init__(self) -> None:
        self.all: list[Tally | Spread] = []
        self._timer: asyncio.TimerHandle | None = None

    def wake(self) -> None:
        """Something was counted."""
        if self._timer is None:
            try:
                self._timer = asyncio.get_running_loop().call_later(FLUSH, self.flush)
            except RuntimeError:
                return  # no loop: render flushes

    def flush(self) -> None:
        """Hand on everything."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for tally in self.all:
            tally.flush()
