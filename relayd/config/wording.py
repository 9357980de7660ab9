"""Turns pydantic's errors about single values into faults that an operator understands, each with a remedy.

Never shows a value that is a secret or came from outside the file.
"""

from __future__ import annotations

import difflib
from typing import Any

from pydantic_core import ErrorDetails

from relayd.config.base import WRONG
from relayd.config.document import Entry
from relayd.config.fault import Fault, Loc, Positions, printable
from relayd.config.models import Config
from relayd.config.shape import field_at, is_secret, kind_of, model_at, models_in
from relayd.core.units import format_duration, format_size


def loc_of(error: ErrorDetails) -> Loc:
    """The way to the faulty value as the file has it, without pydantic's marks for unions and keys."""
    loc = tuple(part for part in error["loc"] if not (isinstance(part, str) and (part[:1] == "<" or part == "[key]")))
    return (*loc, "type") if error["type"] == "union_tag_invalid" else loc


def fault_of(error: ErrorDetails, root: Entry, positions: Positions) -> Fault:
    """One fault in our words."""
    loc = loc_of(error)
    entry = root.at(loc)
    field = field_at(error["loc"]) if error["loc"] else None
    hide = (field is not None and is_secret(field)) or (entry is not None and entry.place.source is not None)
    problem, remedy = _words(error, "" if hide else _shown(entry))
    if hide and error["type"] == WRONG:
        problem = "what it names is not right here"  # our own messages quote the value
    return positions.fault(loc, printable(problem, 200), remedy)


def _shown(entry: Entry | None) -> str:
    if entry is None or isinstance(entry.value, dict | list) or entry.value is None:
        return ""
    if isinstance(entry.value, bool):
        return str(entry.value).lower()
    return f"{printable(entry.value, 40)!r}" if isinstance(entry.value, str) else str(entry.value)[:40]


_BOUNDS = {
    "greater_than_equal": ("ge", "is less than {}", "Write {} or more"),
    "greater_than": ("gt", "is not more than {}", "Write more than {}"),
    "less_than_equal": ("le", "is more than {}", "Write {} or less"),
    "less_than": ("lt", "is not less than {}", "Write less than {}"),
}
_KINDS = {
    "string": ("text", "Write a word or text; put it in quotes if it looks like a number"),
    "int": ("a whole number", "Write a whole number, without a unit"),
    "float": ("a number", "Write a number"),
    "finite": ("a number", "Write a number"),
    "bool": ("true or false", "Write true or false"),
    "list": ("a list", "Write [one, another], or one per line with a hyphen before each"),
    "dict": ("a section with keys", "Write key: value lines, indented below this key"),
    "model": ("a section with keys", "Write key: value lines, indented below this key"),
    "path": ("the path of a file", "Write the path in quotes"),
}
_KIND_REMEDIES = {
    "duration": ("a duration", "Write a number and a unit, like 30s, 5m, 1h30m or 5d"),
    "size": ("a size", "Write a number and B, KB, MB, GB, KiB, MiB or GiB, like 50MiB"),
    "share": ("a share", "Write a percentage, like 5%"),
}


def _words(error: ErrorDetails, shown: str) -> tuple[str, str]:
    kind, context, way = error["type"], error.get("ctx", {}), error["loc"]
    if kind == WRONG:
        return str(context["problem"]), str(context["remedy"])
    if kind == "missing":
        return "is missing", _how_to_add(way)
    if kind == "extra_forbidden":
        return "is no key that relayd knows here", _which_key(error)
    if kind in ("literal_error", "enum", "union_tag_invalid"):
        choices = str(context.get("expected", "sandbox, or smtp (which need not be written)")).replace("'", "")
        return f"cannot be {shown or 'this'}", f"Write {choices}"
    if kind in _BOUNDS:
        name, what, remedy = _BOUNDS[kind]
        bound = _bound(way, context[name])
        return f"{shown or 'the value'} {what.format(bound)}", remedy.format(bound)
    return _FIXED.get(kind) or _kind_words(error, shown)


_FIXED = {
    "too_short": ("is empty", "Write at least one"),
    "string_too_short": ("is empty", "Write something"),
}


def _kind_words(error: ErrorDetails, shown: str) -> tuple[str, str]:
    field = field_at(error["loc"]) if error["loc"] else None
    kind = error["type"].split("_")[0]
    wanted, remedy = _KINDS.get(kind, ("something else", "See docs/configuration.md"))
    if kind in ("int", "float", "finite") and field is not None:
        wanted, remedy = _KIND_REMEDIES.get(kind_of(field), (wanted, remedy))
    return f"must be {wanted}{_instead(error['input'], shown)}", remedy


def _instead(value: Any, shown: str) -> str:
    if value is None:
        return ", and there is nothing here"
    if isinstance(value, dict | list):
        return f", not a {'list' if isinstance(value, list) else 'section with keys'}"
    if isinstance(value, int | float) and shown:
        return f", and {shown} is read as {'true or false' if isinstance(value, bool) else 'a number'}"
    return f", not {shown}" if shown else ""


def _how_to_add(way: tuple[Any, ...]) -> str:
    field = field_at(way)
    description = (field.description or "") if field is not None else ""
    first = description.replace("`", "").split(". ")[0].rstrip(".")
    return f"Add {way[-1]}: ... ({first[:1].lower() + first[1:]})" if first else f"Add {way[-1]}"


def _bound(way: tuple[Any, ...], bound: Any) -> str:
    """A limit as operators write such values: 1h rather than 3600."""
    field = field_at(way)
    kind = kind_of(field) if field is not None else ""
    if kind == "duration":
        return format_duration(bound)
    if kind == "size":
        return format_size(bound)
    return f"{bound * 100:g}%" if kind == "share" else f"{bound}"


def meant_key(error: ErrorDetails) -> Loc | None:
    """The key that an unknown one is probably a slip of the pen for."""
    model = model_at(error["loc"])
    if model is None or error["type"] != "extra_forbidden" or _home(error["loc"]) is not None:
        return None
    key = str(error["loc"][-1]).lower().replace("-", "_")
    near = difflib.get_close_matches(key, list(model.model_fields), 1, 0.7)
    return (*loc_of(error)[:-1], near[0]) if near else None


def _which_key(error: ErrorDetails) -> str:
    """The nearest key that is known here, or the section where this key would be right, or all keys."""
    model, home, meant = model_at(error["loc"]), _home(error["loc"]), meant_key(error)
    if model is None:
        return "Take it out"
    if meant is not None:
        return f"Did you mean {meant[-1]}?"
    if home is not None:
        return f"It belongs under {home}" if home else "It belongs at the left margin, under no other key"
    return f"Known here: {', '.join(model.model_fields)}"


def _home(way: tuple[Any, ...]) -> str | None:
    """The only section that has this key; "" for the top of the file."""
    homes = [home for home, known in _sections() if way[-1] in known]
    return homes[0] if len(homes) == 1 else None


def _sections() -> list[tuple[str, Any]]:
    below = [(name, m) for name, field in Config.model_fields.items() for m in models_in(field.annotation)]
    return [("", Config.model_fields), *((name, model.model_fields) for name, model in below)]
