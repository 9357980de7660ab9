"""From relayd.yaml to a Config: every fault of the file at once, each with its line and its remedy.

Reads once, changes nothing. Which keys contradict each other is decided in check.py.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from relayd.config.base import FromFile
from relayd.config.check import check
from relayd.config.document import Document, Entry, read_document
from relayd.config.fault import ConfigError, Fault, Loc, Place, Positions, Severity, sorted_faults
from relayd.config.models import Config
from relayd.config.shape import alternatives, whole_type
from relayd.config.wording import fault_of, loc_of, meant_key

__all__ = ["ConfigError", "Examined", "Fault", "Severity", "examine", "load"]

OPTIONAL: frozenset[Loc] = frozenset({("secret",)})
"""Made on first start where the file they name is absent (secret.py)."""

_ROUNDS = 8
STAND_INS: Mapping[str, Any] = {
    "action": "defer",
    "bind": ["127.0.0.1:0"],
    "domain": "unknown.invalid",
    "host": "unknown.invalid",
    "key": "unknown",
    "match": "451",
    "name": "unknown",
    "password": "unknown",
    "selector": "unknown",
    "type": "sandbox",
    "upstream": "unknown",
    "url": "https://unknown.invalid/",
    "username": "unknown",
}
"""For required keys that are missing or faulty, so that the rest of their section can still be checked."""


@dataclass(frozen=True, slots=True)
class Examined:
    """A file with all that was found in it."""

    config: Config | None
    """None where there are errors."""
    faults: list[Fault]
    """Errors and warnings in the order of lines."""

    @property
    def warnings(self) -> list[Fault]:
        """What does not keep relayd from starting."""
        return [fault for fault in self.faults if fault.severity is Severity.WARNING]


def load(path: Path, environ: Mapping[str, str] = os.environ) -> Config:
    """The configuration, checked. Raises ConfigError with every fault of the file."""
    examined = examine(path, environ)
    if examined.config is None:
        raise ConfigError(path, examined.faults)
    return examined.config


def examine(path: Path, environ: Mapping[str, str] = os.environ) -> Examined:
    """Read and check a file. Raises nothing: every fault is in the answer."""
    path = path.absolute()
    document = read_document(path, environ, OPTIONAL)
    directory = path.parent
    root = document.root
    if root is None:
        return Examined(None, document.faults)
    if not isinstance(root.value, dict):
        place = root.place
        fault = Fault(place.line, place.column, "", "the file has no keys", "Begin with a copy of config.example.yaml")
        return Examined(None, sorted_faults([*document.faults, fault]))
    places = root.places()
    # a section whose entries are all commented out is as good as absent
    for key in [key for key, entry in root.value.items() if entry.value is None]:
        del root.value[key]
    try:
        config = Config.model_validate(root.plain(), context=FromFile(directory))
    except ValidationError as error:
        return _partly(document, root, error, Positions(places, directory=directory))
    positions = Positions(places, frozenset(document.faulty), directory=directory)
    faults = sorted_faults([*document.faults, *check(config, positions)])
    errors = any(fault.severity is Severity.ERROR for fault in faults)
    return Examined(None if errors else config, faults)


def _partly(document: Document, root: Entry, error: ValidationError, positions: Positions) -> Examined:
    """The faults of a file whose values are not all right: those, and what can be said about the rest."""
    # where a default follows from another value, a fault of that one is enough
    all_details = [one for one in error.errors(include_url=False) if one["type"] != "default_factory_not_called"]
    meant = {loc for details in all_details if (loc := meant_key(details)) is not None}
    faults, faulty = list(document.faults), document.faulty | meant
    for details in all_details:
        loc = loc_of(details)
        read_badly = any(loc[: len(bad)] == bad for bad in document.faulty)
        if not read_badly and not (details["type"] == "missing" and loc in meant):
            faults.append(fault_of(details, root, positions))
        faulty.add(loc)
    rest = _Rest(root, FromFile(positions.directory or Path()))
    config = rest.config()
    positions = Positions(positions.places, frozenset(faulty), rest.kept, positions.directory)
    return Examined(None, sorted_faults([*faults, *check(config, positions)]))


class _Rest:
    """What is left of a faulty file when all that is faulty is taken out, as a Config that only check() sees."""

    def __init__(self, root: Entry, context: FromFile) -> None:
        self._root = root
        self._context = context
        self.kept: dict[str, tuple[int, ...]] = {}

    def config(self) -> Config:
        """Not validated as a whole: required keys may be absent, lists that must not be empty may be so."""
        values: dict[str, Any] = {}
        for name, field in Config.model_fields.items():
            entry = self._root.value.get(name)
            kind = get_origin(alternatives(field.annotation)[0])
            if kind is list:
                values[name] = self._items(name, entry)
            elif kind is dict:
                values[name] = self._named(name, entry)
            else:
                value = self._value(entry, _adapter(name)) if entry is not None else None
                values[name] = field.get_default(call_default_factory=True) if value is None else value
        values["hostname"] = values["hostname"] if isinstance(values["hostname"], str) else ""
        return Config.model_construct(**values)

    def _items(self, name: str, entry: Entry | None) -> list[Any]:
        found = entry.value if entry is not None and isinstance(entry.value, list) else []
        values = [self._value(item, _adapter(name)) for item in found]
        self.kept[name] = tuple(index for index, value in enumerate(values) if value is not None)
        return [value for value in values if value is not None]

    def _named(self, section: str, entry: Entry | None) -> dict[str, Any]:
        found = entry.value if entry is not None and isinstance(entry.value, dict) else {}
        values = {name: self._value(item, _adapter(section)) for name, item in found.items()}
        return {name: value for name, value in values.items() if value is not None}

    def _value(self, entry: Entry, adapter: TypeAdapter[Any]) -> Any:
        """A value without its faulty parts, None where nothing useful is left."""
        entry = _copy(entry)
        for _ in range(_ROUNDS):
            try:
                return adapter.validate_python(entry.plain(), context=self._context)
            except ValidationError as error:
                found = error.errors(include_url=False)
            bad = {loc_of(details) for details in found if details["type"] != "default_factory_not_called"}
            if not all(_mend(entry, loc) for loc in sorted(bad, key=_descending)):
                return None
        return None


@functools.cache
def _adapter(name: str) -> TypeAdapter[Any]:
    """Validates a section; for lists and mappings, one item of it."""
    field = Config.model_fields[name]
    annotation = alternatives(field.annotation)[0]
    return TypeAdapter(get_args(annotation)[-1] if get_origin(annotation) in (list, dict) else whole_type(field))


def _descending(loc: Loc) -> tuple[Any, ...]:
    """Later items of a list first, so that taking one out does not move the next."""
    return tuple((0, -part, "") if isinstance(part, int) else (1, 0, part) for part in loc)


def _copy(entry: Entry) -> Entry:
    if isinstance(entry.value, dict):
        return Entry(entry.place, {key: _copy(value) for key, value in entry.value.items()})
    if isinstance(entry.value, list):
        return Entry(entry.place, [_copy(value) for value in entry.value])
    return entry


def _mend(entry: Entry, loc: Loc) -> bool:
    """Take out a faulty value, or put one in for a missing key. False where neither would help."""
    around = entry.at(loc[:-1])
    if not loc or around is None:
        return False
    if entry.at(loc) is not None:
        del around.value[loc[-1]]
        return True
    if isinstance(around.value, dict) and loc[-1] in STAND_INS:
        around.value[loc[-1]] = _stand_in(STAND_INS[str(loc[-1])])
        return True
    return False


def _stand_in(value: Any) -> Entry:
    return Entry(Place(), [_stand_in(item) for item in value] if isinstance(value, list) else value)
