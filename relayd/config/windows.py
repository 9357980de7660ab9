"""How limits over time are written: `30/min`, or several at once: `[30/min, 500/day]`.

What is allowed within them is core/permits.py's; faults between keys are check_limits.py's.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Annotated, Any

from pydantic import BeforeValidator, InstanceOf, PlainSerializer, WithJsonSchema

from relayd.config.base import wrong
from relayd.core.units import Rate, parse_rate

_REMEDY = "Write a count and a period of s, min, h or day, like 30/min, or several: [30/min, 500/day]"
_MOST = 1_000_000_000
_WRITTEN = re.compile(r"\s*([0-9]+)\s*(?:/\s*([A-Za-z]*)\s*)?")


def _one(value: Any) -> Rate:
    if isinstance(value, Rate):
        return value
    match = _WRITTEN.fullmatch(str(value)) if isinstance(value, str | int) and not isinstance(value, bool) else None
    if match is None:
        raise wrong(f"{value!r} is not a limit over time", _REMEDY)
    if not match[2]:
        raise wrong(f"{value} has no period: per second, minute, hour or day?", _REMEDY)
    if int(match[1][:12]) == 0:
        raise wrong(f"{value} lets nothing through", "Write a count of 1 or more, or take it out for no limit")
    try:
        rate = parse_rate(str(value))
    except ValueError:
        raise wrong(f"{match[2]!r} in {value} is no period", _REMEDY) from None
    if rate.count > _MOST:
        raise wrong(f"{value} is more than relayd counts", f"Write at most {_MOST}, or take it out for no limit")
    return rate


def _windows(value: Any) -> tuple[Rate, ...]:
    rates = tuple(_one(each) for each in value) if isinstance(value, list | tuple) else (_one(value),)
    rates = tuple(sorted(rates, key=lambda rate: rate.seconds))
    for shorter, longer in pairwise(rates):
        if shorter.seconds == longer.seconds:
            raise wrong(f"{shorter} and {longer} are two limits for one period", "Take one of them out")
        if shorter.count > longer.count:
            problem = f"{shorter} can never be reached, because {longer} allows fewer"
            raise wrong(problem, f"Lower {shorter}, raise {longer}, or take one of them out")
    return rates


def _written(rates: tuple[Rate, ...]) -> str | list[str]:
    return str(rates[0]) if len(rates) == 1 else [str(rate) for rate in rates]


Windows = Annotated[
    tuple[InstanceOf[Rate], ...],
    BeforeValidator(_windows),
    PlainSerializer(_written, return_type=str | list[str]),
    WithJsonSchema(
        {
            "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
            "examples": ["30/min", ["30/min", "500/day"]],
            "x-kind": "rate or list of rates",
        }
    ),
]
"""From the shortest period to the longest; none: no limit."""
