"""Durations, sizes, rates and shares as operators write them ("5m", "50MiB", "600/min", "5%").

Parsing only; what a figure means is said where it is used.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

Millis = int
"""Milliseconds: since the Unix epoch (UTC) for a moment, plain for a span. All times on disk are these."""

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_BYTES = {
    "B": 1,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "KiB": 1024,
    "MiB": 1024**2,
    "GiB": 1024**3,
    "TiB": 1024**4,
}
_PER = {
    "s": 1.0,
    "sec": 1.0,
    "min": 60.0,
    "m": 60.0,
    "h": 3600.0,
    "hour": 3600.0,
    "d": 86400.0,
    "day": 86400.0,
}
# figures are bounded, so that no text makes a number that float() or int() chokes on
_DURATION_PART = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([a-z]+)")
_NUMBER_UNIT = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*([A-Za-z]*)")


@dataclass(frozen=True, slots=True)
class Rate:
    """So many of something in any window of `seconds`."""

    count: int
    seconds: float

    def __str__(self) -> str:
        names = {1.0: "s", 60.0: "min", 3600.0: "h", 86400.0: "day"}
        return f"{self.count}/{names.get(self.seconds, format_duration(self.seconds))}"


def parse_duration(text: str) -> float:
    """Seconds of "90s", "5m", "1h30m", "5d". Raises ValueError, saying what would be right."""
    compact = text.strip()
    parts = _DURATION_PART.findall(compact)
    if not parts or "".join(n + u for n, u in parts) != re.sub(r"\s+", "", compact):
        raise ValueError(f"{text!r} is not a duration: write a number and a unit, like 30s, 5m, 1h30m or 5d")
    unknown = [unit for _, unit in parts if unit not in _SECONDS]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not a unit of time: use ms, s, m, h, d or w")
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def format_duration(seconds: float) -> str:
    """The shortest exact writing that `parse_duration` reads back, like 1h30m."""
    left = round(seconds * 1000)
    if left == 0:
        return "0s"
    out = ""
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, left = divmod(left, size)
        if count:
            out += f"{count}{unit}"
    return out


def parse_size(text: str) -> int:
    """Octets of "998", "64KiB", "50MiB", "1GB". Raises ValueError."""
    match = _NUMBER_UNIT.fullmatch(text.strip())
    if match is None or (match[2] or "B") not in _BYTES:
        raise ValueError(f"{text!r} is not a size: write a number and B, KB, MB, GB, KiB, MiB or GiB, like 50MiB")
    number = float(match[1]) if "." in match[1] else int(match[1])
    return int(number * _BYTES[match[2] or "B"])


def format_size(octets: int) -> str:
    """A size as `parse_size` reads it back, in the largest unit that divides it."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if octets and octets % _BYTES[unit] == 0:
            return f"{octets // _BYTES[unit]}{unit}"
    return f"{octets}B"


def parse_rate(text: str) -> Rate:
    """A rate like "600/min" or "10000/day". Raises ValueError."""
    count, slash, per = text.replace(" ", "").partition("/")
    if not slash or not re.fullmatch("[0-9]{1,15}", count) or per not in _PER:
        raise ValueError(f"{text!r} is not a rate: write a count and s, min, h or day, like 600/min")
    return Rate(int(count), _PER[per])


def parse_share(text: str) -> float:
    """A share of a whole, 0 to 1, of "5%". Raises ValueError."""
    match = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,9})?)\s*%", text.strip())
    if match is None or float(match[1]) > 100:
        raise ValueError(f"{text!r} is not a share: write a percentage from 0% to 100%, like 5%")
    return float(match[1]) / 100
