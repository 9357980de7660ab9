"""What all sections and values of the configuration share: keys are known, values final, secrets hidden, faults told.

Which sections there are is models.py's; the kinds of values are in quantities.py, names.py and places.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, PlainSerializer, SecretStr, WithJsonSchema
from pydantic_core import PydanticCustomError

HIDDEN = "********"
"""What stands for a secret wherever the configuration is shown."""

WRONG = "relayd"
"""Type of the pydantic errors that carry our own words: ctx has `problem` and `remedy`."""


@dataclass(frozen=True, slots=True)
class FromFile:
    """Validation context of values read from a file (a Config built in Python has none)."""

    directory: Path
    """Relative paths start here."""


def wrong(problem: str, remedy: str) -> PydanticCustomError:
    """A fault of one value, in our words: what is wrong, and what would be right."""
    return PydanticCustomError(WRONG, "{problem}. {remedy}", {"problem": problem, "remedy": remedy})


Secret = Annotated[
    SecretStr,
    PlainSerializer(lambda _: HIDDEN, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "writeOnly": True, "x-kind": "secret"}),
]
"""Never shown: repr, JSON and our own commands write asterisks."""


class Model(BaseModel):
    """Base of all sections: unknown keys are faults, values never change after loading."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        arbitrary_types_allowed=True,
        hide_input_in_errors=True,
        # validators are made where a file is read, and nowhere else: workers get values that were checked
        defer_build=True,
    )
