"""What differs between two configurations, in lines for people: upstreams.acme.port: 587 → 2525.

Secrets are only said to have changed. Applying a change is left to app.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, SecretStr

from relayd.config.fault import printable
from relayd.config.models import Config, Credential, DKIMKey, Listener, Mailbox

_RESTART = ("data_dir", "workers", "secret")
"""What holds for the life of a daemon; a reload applies everything else, new addresses to listen on too."""


class Change(str):
    """One line. `key` says what changed, `restart` that a reload does not bring it about."""

    __slots__ = ("key", "restart")

    key: str
    restart: bool

    def __new__(cls, key: str, what: str, restart: bool = False) -> Change:
        change = super().__new__(cls, f"{key}: {what}{' (needs a restart)' if restart else ''}")
        change.key, change.restart = key, restart
        return change


def changes(old: Config, new: Config) -> list[Change]:
    """Every difference, in the order of the file. Lists are compared by what names their items."""
    before, after = old.model_dump(mode="json"), new.model_dump(mode="json")
    return list(_differ((), (old, before), (new, after)))


_Both = tuple[Any, Any]
"""A value, and how it is shown."""


def _differ(way: tuple[str, ...], old: _Both, new: _Both) -> Iterator[Change]:
    if old[0] == new[0]:
        return
    before, after = _parts(old), _parts(new)
    if type(old[0]) is type(new[0]) and before is not None and after is not None:
        for name in dict.fromkeys([*before, *after]):
            yield from _part((*way, name), before.get(name), after.get(name))
        if list(before) != list(after) and set(before) == set(after):
            yield _change(way, "other order")
        return
    if isinstance(old[0], SecretStr) or isinstance(new[0], SecretStr):
        what = "added" if old[0] is None else "removed" if new[0] is None else "changed"
    else:
        what = f"{_text(old[1])} → {_text(new[1])}"
        if _text(old[1]) == _text(new[1]):
            what = "changed"  # the part that differs is hidden
    yield _change(way, what)


def _part(way: tuple[str, ...], old: _Both | None, new: _Both | None) -> Iterator[Change]:
    if old is not None and new is not None:
        yield from _differ(way, old, new)
    elif new is not None:
        yield _change(way, "added" if _parts(new) is not None else f"{_text(new[1])} added")
    elif old is not None:
        yield _change(way, "removed" if _parts(old) is not None else f"{_text(old[1])} removed")


def _parts(both: _Both) -> dict[str, _Both] | None:
    """What a value is made of, by name; None where it is shown as a whole."""
    value, shown = both
    if isinstance(value, BaseModel):
        return {name: (getattr(value, name), shown[name]) for name in type(value).model_fields}
    if isinstance(value, dict) and all(isinstance(item, BaseModel | list) for item in value.values()):
        return {name: (value[name], shown[name]) for name in value}
    if isinstance(value, list) and all(isinstance(item, BaseModel) for item in value):
        return {_name(item, place): (item, shown[place]) for place, item in enumerate(value)}
    return None


def _name(item: BaseModel, place: int) -> str:
    if isinstance(item, Listener | Mailbox):
        return item.name
    if isinstance(item, Credential):
        return item.username
    return f"{item.domain}/{item.selector}" if isinstance(item, DKIMKey) else f"[{place}]"


def _change(way: tuple[str, ...], what: str) -> Change:
    key = ""
    for part in way:
        key += part if part.startswith("[") else f"{'.' if key else ''}{printable(part)}"
    return Change(key, what, key in _RESTART)


def _text(shown: Any) -> str:
    """A shown value in one short line."""
    if shown is None:
        return "(none)"
    if isinstance(shown, bool):
        return "true" if shown else "false"
    if isinstance(shown, list):
        return printable(f"[{', '.join(_text(item) for item in shown)}]", 200)
    if isinstance(shown, dict):
        given = [f"{key}: {_text(item)}" for key, item in shown.items() if item is not None]
        return printable("{" + ", ".join(given) + "}", 200)
    return printable(str(shown), 200) or '""'
