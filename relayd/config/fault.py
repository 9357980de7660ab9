"""What can be wrong with a configuration: a fault with its place and its remedy, and where every key stands.

Finding faults is left to document.py (YAML), wording.py (single values) and the check….py (keys among each other).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
Loc = tuple[str | int, ...]
"""The way to a value: keys of mappings and indexes (from 0) of lists."""
UNKNOWN = "Define it under upstreams, or name one that is there"
"""The remedy for an upstream that is not there."""
BRING = "Bring it by !env NAME, !file PATH or !credential NAME"
"""The remedy for a secret that is written in the file."""


class Severity(StrEnum):
    """An error keeps relayd from starting; a warning is printed."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong. Line and column count from 1; 0 where there is no place in a file."""

    line: int
    column: int
    key: str
    problem: str
    remedy: str
    severity: Severity = Severity.ERROR

    def __str__(self) -> str:
        return (
            f"{self.severity}: {self.key + ': ' if self.key else ''}{_sentence(self.problem)} {_sentence(self.remedy)}"
        )

    def written(self, file: Path | str) -> str:
        """The line that `relayd config check` prints: FILE:LINE:COL: error: key: problem. Remedy."""
        return f"{file}:{self.line}:{self.column}: {self}" if self.line else f"{file}: {self}"


class ConfigError(Exception):
    """The configuration cannot be used. Holds every fault that was found, warnings too, in the order of lines."""

    def __init__(self, path: Path, faults: Iterable[Fault]) -> None:
        self.path = path
        self.faults = sorted_faults(faults)
        super().__init__(path, self.faults)

    def __str__(self) -> str:
        return "\n".join(fault.written(self.path) for fault in self.faults)


@dataclass(frozen=True, slots=True)
class Source:
    """Where a value comes from that is not written in the file itself."""

    tag: str
    """!env, !file or !credential."""
    name: str
    path: Path | None = None
    """The file that was read."""

    def __str__(self) -> str:
        return f"{self.tag} {self.name}"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a key, or an item of a list, begins."""

    line: int = 0
    column: int = 0
    source: Source | None = None


@dataclass(frozen=True, slots=True)
class Positions:
    """Where every key of a file stands, and which parts of it are known to be faulty already."""

    places: Mapping[Loc, Place] = field(default_factory=dict)
    faulty: frozenset[Loc] = frozenset()
    """Values that were left out because of a fault; nothing may be concluded from their absence."""
    kept: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """For a list with faulty items: the indexes that its remaining items have in the file."""
    directory: Path | None = None
    """Of the configuration file; None for a Config that does not come from one."""
    _around: frozenset[Loc] = field(init=False, repr=False, compare=False)
    """The faulty values and everything that they are a part of."""

    def __post_init__(self) -> None:
        around = {bad[:length] for bad in self.faulty for length in range(len(bad) + 1)}
        object.__setattr__(self, "_around", frozenset(around))

    def place(self, loc: Loc) -> Place:
        """The place of a key, or of the nearest one around it that is written."""
        while loc and loc not in self.places:
            loc = loc[:-1]
        return self.places.get(loc, Place())

    def source(self, loc: Loc) -> Source | None:
        """Where the value comes from, None where it is written in the file (or absent)."""
        place = self.places.get(loc)
        return place.source if place is not None else None

    def sound(self, *locs: Loc) -> bool:
        """No fault is known of these values, of a part of them, or of what they are a part of."""
        return not any(
            loc in self._around or any(loc[:length] in self.faulty for length in range(len(loc))) for loc in locs
        )

    def items(self, section: str, values: Iterable[T]) -> Iterator[tuple[Loc, T]]:
        """The items of a list with their places, which in a faulty file are not their indexes."""
        kept = self.kept.get(section)
        for index, value in enumerate(values):
            yield (section, kept[index] if kept is not None else index), value

    def names(self, section: str, known: Iterable[str]) -> set[str]:
        """Names that are written in a section, those of faulty entries included."""
        return set(known) | {str(loc[1]) for loc in self.places if len(loc) == 2 and loc[0] == section}

    def open(self, loc: Loc) -> bool:
        """The value is written in the file itself, where secrets do not belong; no fault is known of it."""
        return self.directory is not None and self.source(loc) is None and self.sound(loc)

    def unknown(self, loc: Loc, what: str, name: str, known: Iterable[str], remedy: str) -> Iterator[Fault]:
        """A fault where a name is not among those known; the remedy is told where none is near it."""
        known = sorted(known)
        if name in known or not self.sound(loc) or (f"{what}s",) in self.faulty:
            return
        near = difflib.get_close_matches(name, known, 1)
        yield self.fault(loc, f"there is no {what} {name!r}", f"Did you mean {near[0]}?" if near else remedy)

    def fault(self, loc: Loc, problem: str, remedy: str, severity: Severity = Severity.ERROR) -> Fault:
        """A fault of the value at `loc`."""
        place = self.place(loc)
        return Fault(place.line, place.column, key_text(loc), problem, remedy, severity)


def key_text(loc: Loc) -> str:
    """The way to a value as people read it: listeners[0].bind, upstreams.acme.port."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f"{'.' if text else ''}{printable(part)}"
    return text


def printable(text: str, limit: int = 60) -> str:
    """Foreign text for a terminal or log: no control characters, not too long."""
    clean = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text[: limit + 1])
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def sorted_faults(faults: Iterable[Fault]) -> list[Fault]:
    """In the order in which they stand in the file, each once."""
    return sorted(dict.fromkeys(faults), key=lambda fault: (fault.line, fault.column, fault.key))


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."
