"""How much, how long, how often, and when: the quantities in relayd.yaml, with their units.

Each reads what operators write, and writes it back the same way. Limits over time are windows.py's.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, InstanceOf, PlainSerializer, ValidationInfo, WithJsonSchema

from relayd.config.base import FromFile, wrong
from relayd.core.retry import Schedule, parse_schedule
from relayd.core.units import Rate as RateValue
from relayd.core.units import format_duration, format_size, parse_duration, parse_rate, parse_share, parse_size

_LONGEST = 100 * 365 * 86400.0
_LARGEST = 2**50
_MOST = 2**31 - 1


def _reads(parse: Callable[[str], Any], remedy: str) -> BeforeValidator:
    """Text is parsed; everything else goes on as it is."""

    def read(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return parse(value)
        except ValueError as error:
            raise wrong(re.split(r": (?:write|use) ", str(error))[0], remedy) from None

    return BeforeValidator(read)


def _needs(unit: str, remedy: str) -> BeforeValidator:
    """A bare number is refused in a file: 40 could be seconds, minutes or days."""

    def check(value: Any, info: ValidationInfo) -> Any:
        bare = isinstance(value, int | float) and not isinstance(value, bool) and value != 0
        if bare and isinstance(info.context, FromFile):
            raise wrong(f"{value} has no {unit}", remedy)
        return value

    return BeforeValidator(check)


def _no_bool(value: Any) -> Any:
    # pydantic takes true for 1
    if isinstance(value, bool):
        raise wrong("must be a number, not true or false", "Write a number")
    return value


_DURATION = "Write a number and a unit, like 30s, 5m, 1h30m or 5d"
_SIZE = "Write a number and B, KB, MB, GB, KiB, MiB or GiB, like 50MiB"
_SHARE = "Write a percentage from 0% to 100%, like 5%"
_RATE = "Write a count and s, min, h or day, like 600/min"
_SCHEDULE = "Write the waits between attempts, like 1m, 5m*2, 15m, 1h*3, 4h*"

# BeforeValidators run from the last one up.
Duration = Annotated[
    float,
    BeforeValidator(_no_bool),
    _reads(parse_duration, _DURATION),
    _needs("unit", _DURATION),
    Field(ge=0, le=_LONGEST, allow_inf_nan=False),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema({"type": "string", "examples": ["30s", "5m", "1h30m", "5d"], "x-kind": "duration"}),
]
"""Seconds."""


def _expiry(value: Any, info: ValidationInfo) -> Any:
    remedy = "Write never, or a number and a unit, like 90d"
    if isinstance(value, str) and value != "never":
        try:
            value = parse_duration(value)
        except ValueError as error:
            raise wrong(re.split(r": (?:write|use) ", str(error))[0], remedy) from None
    elif isinstance(value, int | float) and isinstance(info.context, FromFile):
        raise wrong(f"{value} has no unit", remedy)
    if value != "never" and not (isinstance(value, float) and 0 < value <= _LONGEST):
        raise wrong("is not a time that something can last", remedy)
    return value


Expiry = Annotated[
    Literal["never"] | float,
    BeforeValidator(_expiry),
    PlainSerializer(lambda value: value if value == "never" else format_duration(value), return_type=str),
    WithJsonSchema({"type": "string", "examples": ["never", "90d"], "x-kind": "duration"}),
]
"""Seconds, or never."""
Size = Annotated[
    int,
    BeforeValidator(_no_bool),
    _reads(parse_size, _SIZE),
    Field(ge=0, le=_LARGEST),
    PlainSerializer(format_size, return_type=str),
    WithJsonSchema({"type": ["string", "integer"], "examples": ["998", "64KiB", "50MiB"], "x-kind": "size"}),
]
"""Octets."""
Share = Annotated[
    float,
    BeforeValidator(_no_bool),
    _reads(parse_share, _SHARE),
    _needs("%", _SHARE),
    Field(ge=0, le=1, allow_inf_nan=False),
    PlainSerializer(lambda share: f"{share * 100:g}%", return_type=str),
    WithJsonSchema({"type": "string", "examples": ["5%"], "x-kind": "share"}),
]
"""0 to 1."""
Count = Annotated[int, BeforeValidator(_no_bool), Field(le=_MOST)]


def _is_rate(value: Any) -> RateValue:
    if not isinstance(value, RateValue):
        raise wrong("must be a count and a period", _RATE)
    if not 1 <= value.count <= _MOST:
        raise wrong(f"{value} is outside 1 to {_MOST} messages", _RATE)
    return value


def _is_schedule(value: Any) -> Schedule:
    if not isinstance(value, Schedule):
        raise wrong("must be waits written as one text", _SCHEDULE)
    if max(value.waits) > _LONGEST:
        raise wrong("a wait is longer than 100 years", _SCHEDULE)
    return value


Rate = Annotated[
    InstanceOf[RateValue],
    BeforeValidator(_is_rate),
    _reads(parse_rate, _RATE),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "examples": ["600/min", "10000/day"], "x-kind": "rate"}),
]
RetrySchedule = Annotated[
    InstanceOf[Schedule],
    BeforeValidator(_is_schedule),
    _reads(parse_schedule, _SCHEDULE),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "examples": ["1m, 5m*2, 15m, 1h*3, 4h*"], "x-kind": "schedule"}),
]


def _day(value: Any) -> Any:
    if isinstance(value, datetime.date):
        return value
    try:
        return datetime.date.fromisoformat(value)
    except (TypeError, ValueError):
        raise wrong("is not a day", "Write it like 2027-03-31") from None


Day = Annotated[
    datetime.date,
    BeforeValidator(_day),
    WithJsonSchema({"type": "string", "examples": ["2027-03-31"], "x-kind": "day"}),
]
