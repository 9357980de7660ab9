"""Which queued recipients an operator means: the filters of `relayd queue`, as a value. Pure.

The store and the reader turn it into a query; steering and the control socket pass it on as JSON.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from relayd.core.ids import MessageId, format_id, parse_id
from relayd.core.lifecycle import WAITING, State
from relayd.core.mail import Message, upstream_of
from relayd.core.units import Millis
from relayd.spool.store import Waiting


@dataclass(frozen=True, slots=True)
class QueueFilter:
    """All given conditions must hold; without any, everything that is not final is meant.

    Patterns take * and ?, and are compared without case. `older_than` and `newer_than` are moments.
    """

    sender: str | None = None
    """Pattern of the envelope sender; "" or "<>" for the null sender."""
    sender_domain: str | None = None
    """Pattern of the envelope sender's domain."""
    recipient: str | None = None
    """Pattern of the recipient's address."""
    upstream: str | None = None
    """An upstream with all its accounts, or one of its lanes; "" for mail that no route fits."""
    lane: str | None = None
    """The lane, exactly: for our own walks, not for people."""
    older_than: Millis | None = None
    """Accepted before this moment."""
    newer_than: Millis | None = None
    """Accepted at or after this moment."""
    states: frozenset[State] = frozenset()
    """Empty: every state that is not final."""
    ids: frozenset[MessageId] = frozenset()
    """Empty: any message."""

    def matches(self, message: Message, waiting: Waiting) -> bool:
        """Is this recipient meant?"""
        return (
            waiting.state in (self.states or WAITING)
            and (not self.ids or message.id in self.ids)
            and (self.lane is None or waiting.lane == self.lane)
            and (self.upstream is None or self.upstream in (waiting.lane, upstream_of(waiting.lane)))
            and (self.older_than is None or message.accepted_at < self.older_than)
            and (self.newer_than is None or message.accepted_at >= self.newer_than)
            and (self.sender is None or _fits(_no_brackets(self.sender), message.envelope.sender))
            and (self.sender_domain is None or _fits(self.sender_domain, message.envelope.sender.rpartition("@")[2]))
            and (self.recipient is None or _fits(self.recipient, waiting.recipient.address))
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON; what is not asked for is left out."""
        out: dict[str, Any] = {
            name: value
            for name in ("sender", "sender_domain", "recipient", "upstream", "older_than", "newer_than")
            if (value := getattr(self, name)) is not None
        }
        if self.states:
            out["states"] = sorted(state.value for state in self.states)
        if self.ids:
            out["ids"] = [format_id(number) for number in sorted(self.ids)]
        return out

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> QueueFilter:
        """The filter that `to_dict` wrote. Raises ValueError, naming what is wrong."""
        given = dict(values)
        states = frozenset(State(text) for text in _texts(given, "states"))
        ids = frozenset(parse_id(text) for text in _texts(given, "ids"))
        for name, value in given.items():
            kind = _KINDS.get(name)
            if kind is None:
                raise ValueError(f"{name!r} is not a condition: use {', '.join([*_KINDS, 'states', 'ids'])}")
            if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
                raise ValueError(f"{name!r} takes {'text' if kind is str else 'a moment in milliseconds'}")
        return cls(states=states, ids=ids, **given)


_KINDS: dict[str, type] = {
    "sender": str,
    "sender_domain": str,
    "recipient": str,
    "upstream": str,
    "older_than": int,
    "newer_than": int,
}


def _texts(given: dict[str, Any], name: str) -> list[str]:
    values = given.pop(name, None) or []
    if not isinstance(values, list | tuple | set | frozenset) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{name!r} takes a list of texts")
    return list(values)


def _no_brackets(pattern: str) -> str:
    return "" if pattern == "<>" else pattern


def _fits(pattern: str, text: str) -> bool:
    return _compiled(pattern).fullmatch(text.lower()) is not None


@lru_cache(maxsize=64)
def _compiled(pattern: str) -> re.Pattern[str]:
    """A pattern's * and ? as a regular expression; stars in a row are one, so that none takes exponential time."""
    parts = re.split(r"(\*+|\?)", pattern.lower())
    return re.compile(
        "".join(".*" if part.startswith("*") else "." if part == "?" else re.escape(part) for part in parts), re.DOTALL
    )
