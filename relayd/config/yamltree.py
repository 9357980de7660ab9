"""YAML text to nodes with their places, by the scalars of YAML 1.2; syntax errors in our words.

Meaning is left to document.py. Depth is bounded, aliases are bounded there.
"""

from __future__ import annotations

import re
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.nodes import Node
from yaml.parser import Parser
from yaml.reader import Reader, ReaderError
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from relayd.config.fault import printable

MAX_DEPTH = 30
PREFIX = "tag:yaml.org,2002:"

_LOOK = (
    "Look at the indentation, quotes and brackets of this line and the one before;"
    " put text with : # * & ! % @ or { in quotes"
)


class TreeError(Exception):
    """The text is not YAML that we take."""

    def __init__(self, line: int, column: int, problem: str, remedy: str = _LOOK) -> None:
        super().__init__(line, column, problem, remedy)
        self.line, self.column, self.problem, self.remedy = line, column, problem, remedy


def compose(text: str) -> Node | None:
    """The root node, None for a file without content. Raises TreeError."""
    try:
        node: Node | None = _Tree(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise TreeError(line, column, f"this is not YAML: {_problem(error.problem)}") from None
    except ReaderError as error:
        at = int(error.position)
        line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
        raise TreeError(line, column, "there is a control character here", "Take it out") from None
    except (yaml.YAMLError, ValueError, OverflowError):
        # PyYAML lets ValueError through, for \U escapes beyond Unicode say
        raise TreeError(1, 1, "this is not YAML") from None
    return node


# The first five replace messages in which PyYAML quotes names from the file: a name may be an unquoted secret.
_OUR_WORDS = {
    "found undefined alias": "* begins an alias, and there is no anchor (&) of that name",
    "second occurrence": "& begins an anchor, and there is one of that name already",
    "found undefined tag handle": "! begins a tag that is not known",
    "found unknown directive": "% begins a directive that is not known",
    "but found another document": "there is a second document (---)",
    "could not find expected ':'": "a key has no colon behind it",
    "mapping values are not allowed here": "a colon is not allowed here",
    "found character '\\t' that cannot start any token": "a tab is not allowed here; indent with spaces",
    "expected ',' or ']'": "a [ is not closed, or a comma is missing",
    "expected ',' or '}'": "a { is not closed, or a comma is missing",
    "expected '<document start>'": "this does not belong to what stands before it",
    "expected <block end>": "the indentation does not fit what stands before",
    "found unexpected end of stream": "a quote is not closed",
}


def _problem(text: str | None) -> str:
    for start, ours in _OUR_WORDS.items():
        if text and text.startswith(start):
            return ours
    return printable(text or "it cannot be read", 120)


class _Resolver(BaseResolver):
    """The scalars of YAML 1.2's core schema: `no`, `on`, 12:30 and 2024-01-01 are text."""


_FLOAT = r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
for _kind, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", _FLOAT, list("-+0123456789.")),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
):
    _Resolver.add_implicit_resolver(f"{PREFIX}{_kind}", re.compile(rf"(?:{_pattern})\Z"), _first)


class _Tree(Reader, Scanner, Parser, Composer, _Resolver):
    """Nodes only: no Python objects are made from what the file says."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        _Resolver.__init__(self)
        self._depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        if self._depth > MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise TreeError(
                mark.line + 1, mark.column + 1, f"is nested deeper than {MAX_DEPTH} levels", "Write it flatter"
            )
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1
