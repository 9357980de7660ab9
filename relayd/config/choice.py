"""Values about upstreams: which ones a route names, and which replies a rule is about.

What is chosen for a message is delivery/failover.py's, what fits a reply core/throttle.py's.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, WithJsonSchema

from relayd.config.base import wrong
from relayd.core.throttle import ThrottleAction, throttle_rule

_REMEDY = "Write one name, [first, second] in order of preference, or {one: 80, other: 20} by weight"


def _choice(value: Any) -> Any:
    if isinstance(value, str):
        if not value.isprintable() or not value.strip():
            raise wrong("is no name of an upstream", _REMEDY)
        return value.strip()
    if isinstance(value, list | tuple):
        names = list(value)
    elif isinstance(value, dict):
        names = list(value)
        for name, weight in value.items():
            if isinstance(weight, bool) or not isinstance(weight, int) or not 1 <= weight <= 1_000_000:
                problem = f"the weight of {name} must be a whole number of 1 or more"
                raise wrong(
                    problem, "Take upstreams that are to get nothing out, or list them in order: [first, second]"
                )
    else:
        raise wrong("must name upstreams", _REMEDY)
    if not names or not all(isinstance(name, str) and name.strip() and name.isprintable() for name in names):
        raise wrong("must name upstreams", _REMEDY)
    if len(set(names)) < len(names):
        raise wrong("names an upstream twice", "Name each once")
    return value if isinstance(value, dict) else names


UpstreamChoice = Annotated[
    str | list[str] | dict[str, int],
    BeforeValidator(_choice),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
                {"type": "object", "additionalProperties": {"type": "integer", "minimum": 1}, "minProperties": 1},
            ],
            "examples": ["acme", ["acme", "spare"], {"acme": 80, "spare": 20}],
            "x-kind": "upstreams",
        }
    ),
]


def _match(value: str) -> str:
    try:
        throttle_rule(value, ThrottleAction.DEFER, 0)
    except ValueError as error:
        raise wrong(str(error), "Write it like 452 too many, 550 5.7.x suspended or throttl-") from None
    return value


ThrottleMatch = Annotated[str, AfterValidator(_match), WithJsonSchema({"type": "string", "examples": ["452 too many"]})]
