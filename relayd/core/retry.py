"""The retry schedule: "1m, 5m*2, 15m, 1h*3, 4h*" as waits between attempts, with jitter chosen by the caller."""

from __future__ import annotations

from dataclasses import dataclass

from relayd.core.units import Millis, format_duration, parse_duration

MAX_WAITS = 1000


@dataclass(frozen=True, slots=True)
class Schedule:
    """Waits in seconds after the first, second, … failed attempt; the last one repeats."""

    waits: tuple[float, ...]
    text: str

    def __str__(self) -> str:
        return self.text

    def wait(self, attempts: int) -> float:
        """Seconds to wait after `attempts` failed attempts (1 or more)."""
        return self.waits[min(max(attempts, 1), len(self.waits)) - 1]


def parse_schedule(text: str) -> Schedule:
    """Read a schedule. Raises ValueError that names the faulty item.

    An item is a duration, `*N` repeats it N times, a bare `*` on the last item says what holds anyway: it repeats
    until the lifetime ends.
    """
    items = [item.strip() for item in text.split(",")]
    waits: list[float] = []
    for place, item in enumerate(items):
        duration, star, times = item.partition("*")
        seconds = parse_duration(duration)
        if seconds <= 0:
            raise ValueError(f"{item!r}: a wait must be longer than zero")
        if star and not times and place != len(items) - 1:
            raise ValueError(f"{item!r} repeats for ever, so nothing may come after it")
        if times and (not (times.isascii() and times.isdigit() and len(times) <= 4) or not 0 < int(times) <= MAX_WAITS):
            raise ValueError(f"{item!r}: write how often after the *, like {format_duration(seconds)}*3")
        waits += [seconds] * (int(times) if times else 1)
        if len(waits) > MAX_WAITS:
            raise ValueError(f"there are more than {MAX_WAITS} waits; end with a * to repeat the last one")
    return Schedule(tuple(waits), ", ".join(items))


def next_due(schedule: Schedule, attempts: int, now: Millis, expires: Millis, jitter: float) -> Millis | None:
    """When to try again after `attempts` attempts, or None when the lifetime ends first.

    `jitter` (0 to 1) lengthens the wait by up to a tenth, so that what failed together does not return together.
    The last attempt is moved to the end of the lifetime rather than skipped.
    """
    if now >= expires:
        return None
    due = now + round(schedule.wait(attempts) * 1000 * (1 + jitter / 10))
    return min(due, expires)
