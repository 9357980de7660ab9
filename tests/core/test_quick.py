"""Values of the hot path are built quickly and are in everything else what they were."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field, replace

import pytest

from relayd.core.quick import quick


@dataclass(frozen=True, slots=True)
class Locked:
    one: int
    two: str = "two"
    three: list[int] = field(default_factory=list, compare=False)


@quick
@dataclass(frozen=True, slots=True)
class Quick:
    one: int
    two: str = "two"
    three: list[int] = field(default_factory=list, compare=False)


def test_a_quick_value_is_the_value_it_was() -> None:
    for arguments in ((1,), (1, "x"), (1, "x", [3])):
        locked, made = Locked(*arguments), Quick(*arguments)  # type: ignore[arg-type]
        assert (made.one, made.two, made.three) == (locked.one, locked.two, locked.three)
        assert repr(made) == repr(locked).replace("Locked", "Quick")
        assert hash(made) == hash(locked)
        assert made == Quick(*arguments)  # type: ignore[arg-type]
        assert replace(made, one=2).one == 2
    assert Quick(1).three is not Quick(1).three
    assert Quick(one=1, two="x") == Quick(1, "x")
    assert not hasattr(Quick(1), "__dict__")
    assert list(inspect.signature(Quick).parameters) == ["one", "two", "three"]


def test_only_a_frozen_dataclass_can_be_made_quick() -> None:
    @dataclass(slots=True)
    class Open:
        one: int

    for wrong in (Open, int):
        with pytest.raises(TypeError, match="no frozen dataclass"):
            quick(wrong)
