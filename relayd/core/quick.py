"""Makes the values of the hot path cheap to build: the type checker keeps them frozen, not the interpreter.

Python sets each field of a frozen dataclass by a call of object.__setattr__, five times the cost of an assignment. One
mail is some thirty such values, a twentieth of all it costs.
"""

from __future__ import annotations

from dataclasses import field, fields, make_dataclass
from typing import Any, TypeVar

_T = TypeVar("_T")


def quick(cls: type[_T]) -> type[_T]:
    """Put on top of `@dataclass(frozen=True, slots=True)`: the same value, equal, hashed and shown alike, but unlocked.

    mypy still refuses to assign to its fields. Raises TypeError for what is no frozen dataclass.
    """
    if "__setattr__" not in vars(cls) or not hasattr(cls, "__dataclass_fields__"):
        raise TypeError(f"{cls.__name__} is no frozen dataclass")
    plain: Any = cls
    same = [
        (part.name, part.type, field(default=part.default, default_factory=part.default_factory, kw_only=part.kw_only))
        for part in fields(plain)
    ]
    unlocked: Any = make_dataclass(cls.__name__, same)
    plain.__init__ = unlocked.__init__
    del plain.__setattr__, plain.__delattr__
    return cls
