"""Several upstreams for one route, overflow and rules: what is wrong with them is named."""

from __future__ import annotations

from typing import Any

import pytest

from relayd.config.check import check
from relayd.config.models import Config
from tests.support.daemon import settings


def faults(**sections: Any) -> list[str]:
    upstreams = {name: {"host": f"{name}.example"} for name in ("a", "b", "c")}
    for name, more in sections.pop("upstreams", {}).items():
        upstreams[name] |= more
    whole = settings(upstreams=upstreams, **sections)
    return [f"{fault.severity} {fault.key}: {fault.problem}" for fault in check(Config.model_validate(whole))]


DAY = {"limits": {"messages": "100/day"}}


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"routes": [{"upstream": ["a", "b"]}]}, []),
        ({"routes": [{"upstream": {"a": 80, "b": 20}}]}, []),
        ({"routes": [{"upstream": ["a", "bb"]}]}, ["error routes[0].upstream[1]: there is no upstream 'bb'"]),
        ({"routes": [{"upstream": {"a": 1, "d": 2}}]}, ["error routes[0].upstream: there is no upstream 'd'"]),
        ({"upstreams": {"a": {"overflow": "b"} | DAY}}, []),
        ({"upstreams": {"a": {"overflow": "x"} | DAY}}, ["error upstreams.a.overflow: there is no upstream 'x'"]),
        (
            {"upstreams": {"a": {"overflow": "b"} | DAY, "b": {"overflow": "c"} | DAY, "c": {"overflow": "a"} | DAY}},
            ["error upstreams.a.overflow: the overflow goes round in a circle: a to b to c to a"],
        ),
        (
            {"upstreams": {"a": {"overflow": "a"} | DAY}},
            ["error upstreams.a.overflow: the overflow goes round in a circle: a to a"],
        ),
        (
            {"upstreams": {"a": {"overflow": "b", "limits": {"messages": "30/min"}}}},
            ["warning upstreams.a.overflow: a has no budget of a day or longer that could be used up"],
        ),
        ({"rules": [{"upstream": "a", "match": "452 too many", "action": "slow", "for": "10m"}]}, []),
        (
            {"rules": [{"match": "4xx", "action": "defer"}, {"upstream": "z", "match": "4xx", "action": "defer"}]},
            ["error rules[1].upstream: there is no upstream 'z'"],
        ),
    ],
)
def test_contradictions_are_named(sections: dict[str, Any], said: list[str]) -> None:
    assert faults(**sections) == said


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"routes": [{"upstream": {"a": 0}}]}, "the weight of a must be a whole number of 1 or more"),
        ({"routes": [{"upstream": {"a": True}}]}, "the weight of a"),
        ({"routes": [{"upstream": {}}]}, "must name upstreams"),
        ({"routes": [{"upstream": []}]}, "must name upstreams"),
        ({"routes": [{"upstream": ["a", "a"]}]}, "names an upstream twice"),
        ({"routes": [{"upstream": ""}]}, "is no name of an upstream"),
        ({"routes": [{"upstream": 7}]}, "must name upstreams"),
        ({"rules": [{"match": "452 (a+)+$", "action": "slow"}]}, "is no word to look for"),
        ({"rules": [{"match": "452", "action": "bounce"}]}, "next-upstream"),
        ({"rules": [{"match": "452", "action": "slow", "for": "ten"}]}, "for"),
        ({"upstreams": {"a": {"storm": {"replies": -1}}}}, "storm"),
    ],
)
def test_single_values_are_refused(sections: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as refused:
        faults(**sections)
    assert words in str(refused.value)
