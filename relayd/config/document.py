"""Reads a YAML file into values that know their line and column; duplicate keys are faults, tags are followed.

What keys mean is left to load.py. Written for hostile files too: size, depth and aliases are bounded.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from relayd.config.fault import Fault, Loc, Place, Source, key_text
from relayd.config.sources import TAGS, SourceError, fetch, reason
from relayd.config.yamltree import MAX_DEPTH, PREFIX, TreeError, compose

MAX_FILE = 4 * 1024**2
MAX_VALUES = 50_000
"""After aliases are followed: a few nested ones can stand for billions of values."""


@dataclass(slots=True)
class Entry:
    """A value of the file with its place."""

    place: Place
    value: Any
    """dict[str, Entry], list[Entry] or a plain str, int, float, bool, None."""

    def plain(self) -> Any:
        """The value as plain Python data."""
        if isinstance(self.value, dict):
            return {key: entry.plain() for key, entry in self.value.items()}
        if isinstance(self.value, list):
            return [entry.plain() for entry in self.value]
        return self.value

    def places(self, loc: Loc = ()) -> dict[Loc, Place]:
        """The place of this value and of all values in it."""
        found: dict[Loc, Place] = {loc: self.place}
        for key, entry in _children(self.value):
            found |= entry.places((*loc, key))
        return found

    def at(self, loc: Loc) -> Entry | None:
        """The value at the end of the way, None where the file has none."""
        entry: Entry | None = self
        for part in loc:
            if entry is None:
                return None
            if isinstance(entry.value, dict):
                entry = entry.value.get(part)
            elif isinstance(entry.value, list) and isinstance(part, int) and part < len(entry.value):
                entry = entry.value[part]
            else:
                return None
        return entry


def _children(value: Any) -> list[tuple[str | int, Entry]]:
    if isinstance(value, dict):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, list) else []


@dataclass(slots=True)
class Document:
    """What a file says, and what was wrong with reading it."""

    root: Entry | None
    faults: list[Fault] = field(default_factory=list)
    faulty: set[Loc] = field(default_factory=set)
    """Where a value is missing from `root`, or None in a list, because of a fault."""


def read_document(path: Path, environ: Mapping[str, str], optional: frozenset[Loc] = frozenset()) -> Document:
    """Read a YAML file. Every fault is in the answer; nothing is raised.

    `optional`: values that are left out without a fault where their !file or !credential is not there.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE + 1)
    except OSError as error:
        return _broken(0, 0, f"cannot be read: {reason(error)}", "Check the path, and who may read it")
    if len(raw) > MAX_FILE:
        return _broken(0, 0, f"is larger than {MAX_FILE // 1024**2} MiB", "Give relayd a smaller file")
    return parse_document(raw, path.parent, environ, optional)


def parse_document(
    raw: bytes, directory: Path, environ: Mapping[str, str], optional: frozenset[Loc] = frozenset()
) -> Document:
    """As `read_document`, for octets at hand. Relative !file paths start in `directory`."""
    try:
        node = compose(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        column = error.start - raw.rfind(b"\n", 0, error.start)
        return _broken(line, column, "is not UTF-8 text", "Save the file as UTF-8")
    except TreeError as error:
        return _broken(error.line, error.column, error.problem, error.remedy)
    if node is None:
        return _broken(1, 1, "the file is empty", "Begin with a copy of config.example.yaml")
    return _Builder(directory, environ, optional).build(node)


def _broken(line: int, column: int, problem: str, remedy: str) -> Document:
    return Document(None, [Fault(line, column, "", problem, remedy)])


class _LostError(Exception):
    """This value is left out. Where that is a fault, it is noted already."""


class _TooManyError(Exception):
    pass


class _Builder:
    """Nodes to entries."""

    def __init__(self, directory: Path, environ: Mapping[str, str], optional: frozenset[Loc]) -> None:
        self._directory, self._environ, self._optional = directory, environ, optional
        self._out = Document(None)
        self._count = 0

    def build(self, node: Node) -> Document:
        try:
            self._out.root = self._entry(node, node, (), 0)
        except _LostError:
            self._out.root = None
        except _TooManyError:
            return _broken(1, 1, "aliases (*) multiply into too many values", "Write the values out")
        return self._out

    def _entry(self, node: Node, start: Node, loc: Loc, depth: int) -> Entry:
        """`start` is the node whose place is shown: the key of a mapping's value."""
        self._count_up(depth)
        place = _place(start)
        tag = node.tag.removeprefix(PREFIX)
        if tag.startswith("!"):
            source, text = self._fetched(node, loc)
            return Entry(Place(place.line, place.column, source), text)
        if isinstance(node, MappingNode) and tag == "map":
            return Entry(place, self._mapping(node, loc, depth))
        if isinstance(node, SequenceNode) and tag == "seq":
            return Entry(place, self._sequence(node, loc, depth))
        if isinstance(node, ScalarNode) and tag in _SCALARS:
            try:
                return Entry(place, _SCALARS[tag](node.value))
            except ValueError:
                raise self._lost(node, loc, "is not a number that relayd can read", "Write a shorter number") from None
        raise self._lost(node, loc, "has a tag (!!) that relayd does not know", "Take the tag away")

    def _count_up(self, depth: int) -> None:
        self._count += 1
        if self._count > MAX_VALUES or depth > MAX_DEPTH:
            raise _TooManyError

    def _fault(self, node: Node, loc: Loc, problem: str, remedy: str) -> None:
        place = _place(node)
        self._out.faults.append(Fault(place.line, place.column, key_text(loc), problem, remedy))

    def _lost(self, node: Node, loc: Loc, problem: str, remedy: str) -> _LostError:
        self._fault(node, loc, problem, remedy)
        self._out.faulty.add(loc)
        return _LostError()

    def _mapping(self, node: MappingNode, loc: Loc, depth: int) -> dict[str, Entry]:
        entries: dict[str, Entry] = {}
        lines: dict[str, int] = {}
        merged: list[Node] = []
        for key_node, value in node.value:
            if not isinstance(key_node, ScalarNode) or key_node.tag.startswith("!"):
                self._fault(key_node, loc, "a key must be plain text", "Write a name in front of the colon")
                continue
            key = key_node.value
            if key == "<<" and not key_node.style:
                merged += value.value if isinstance(value, SequenceNode) else [value]
            elif key in lines:
                problem = f"is written twice, here and in line {lines[key]}"
                self._fault(key_node, (*loc, key), problem, "Keep one of the two")
            else:
                lines[key] = _place(key_node).line
                with suppress(_LostError):
                    entries[key] = self._entry(value, key_node, (*loc, key), depth + 1)
        for value in merged:
            for key, entry in self._merged(value, loc, depth).items():
                if key not in lines:
                    entries.setdefault(key, entry)
        return entries

    def _merged(self, node: Node, loc: Loc, depth: int) -> dict[str, Entry]:
        """The keys that << brings (YAML 1.1's merge key, which operators know from other programs)."""
        self._count_up(depth)
        if isinstance(node, MappingNode):
            return self._mapping(node, loc, depth + 1)
        self._fault(node, loc, "<< takes keys from a mapping, and this is none", "Name the anchor (&) of a mapping")
        return {}

    def _sequence(self, node: SequenceNode, loc: Loc, depth: int) -> list[Entry]:
        entries = []
        for index, item in enumerate(node.value):
            try:
                entries.append(self._entry(item, item, (*loc, index), depth + 1))
            except _LostError:
                # the place is kept, so that the items behind it keep their numbers
                entries.append(Entry(_place(item), None))
        return entries

    def _fetched(self, node: Node, loc: Loc) -> tuple[Source, str]:
        if node.tag not in TAGS:
            near = difflib.get_close_matches(node.tag, TAGS, 1)
            meant = f"Did you mean {near[0]}? " if near else "Put the text in quotes if the ! is part of it. "
            known = "Tags are !env NAME, !file PATH and !credential NAME"
            raise self._lost(node, loc, "begins with a tag (!) that relayd does not know", meant + known)
        try:
            return fetch(node.tag, node.value if isinstance(node, ScalarNode) else "", self._directory, self._environ)
        except SourceError as error:
            if error.absent and loc in self._optional:
                raise _LostError from None
            raise self._lost(node, loc, error.problem, error.remedy) from None


def _place(node: Node) -> Place:
    return Place(node.start_mark.line + 1, node.start_mark.column + 1)


def _integer(text: str) -> int:
    return int(text, 0 if text[:2] in ("0x", "0o") else 10)


def _float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


_SCALARS: dict[str, Callable[[str], Any]] = {
    "str": str,
    "null": lambda _: None,
    "bool": lambda text: text.lower() == "true",
    "int": _integer,
    "float": _float,
}
