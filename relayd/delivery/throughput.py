"""How fast mail leaves a lane: recipients a minute over the last ten minutes. Pure."""

from __future__ import annotations

from collections import deque

from relayd.core.units import Millis

_BUCKET: Millis = 10_000
_BUCKETS = 60
_MINUTE = 60_000


class Throughput:
    """What one worker has got through of one lane."""

    __slots__ = ("_counts", "_since")

    def __init__(self) -> None:
        self._counts: deque[tuple[int, int]] = deque(maxlen=_BUCKETS)
        self._since: Millis = 0

    def count(self, now: Millis, recipients: int) -> None:
        """So many recipients need no more attempts."""
        place = now // _BUCKET
        if self._counts and self._counts[-1][0] == place:
            self._counts[-1] = place, self._counts[-1][1] + recipients
            return
        if not self._counts:
            self._since = now
        self._counts.append((place, recipients))

    def per_minute(self, now: Millis) -> float:
        """Recipients a minute, over the last ten or since the first."""
        oldest = now // _BUCKET - _BUCKETS
        recent = sum(count for place, count in self._counts if place > oldest)
        if not recent:
            return 0.0
        minutes = min(max(now - self._since, _MINUTE), _BUCKETS * _BUCKET) / _MINUTE
        return recent / minutes
