"""What every section of the configuration is: a value whose keys are all known. The sections are models.py's."""

from __future__ import annotations

from pydantic import (
    BaseModel,
    ConfigDict,
)


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
