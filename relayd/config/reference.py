"""docs/configuration.md, made from the models: every key with its type, default and meaning."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from relayd.config.models import Config
from relayd.config.schema import all_models, written_default
from relayd.config.shape import alternatives, inner_kind, kind_of, models_in

_INTRO = """\
# Configuration

<!-- Made by scripts/generate-docs from the models in relayd/config/. Change it there. -->

relayd reads one YAML file. `config.example.yaml` is a complete one: what it needs is switched on, everything else is
shown as a comment. `relayd config check FILE` names every fault at once: line, key, what is wrong, what would be
right. `relayd config show` prints what is in effect, `relayd config diff FILE` what a changed file would change.

## How the file is read

- YAML 1.2: only `true` and `false` are booleans; `no`, `on` and `12:30` are text. A key that is written twice, or that
  relayd does not know, is a fault. A section whose entries are all commented out counts as absent.
- **Secrets** are not written in the file. `!env NAME` takes an environment variable, `!file PATH` the text of a file
  without its last newline, `!credential NAME` a credential that systemd passes (`LoadCredential=`). Whatever is named
  must be there, or it is a fault, with one exception: `secret`, for which one is made. These tags can stand for any
  single value. A file that brings a secret must not be readable by every user.
- **Paths** that are relative start in the directory of the configuration file, `data_dir` too. Only
  `tls.certificate` and `tls.key` start in `data_dir`.
- **Domains** may be written in any script. They are kept in lower case A-labels (`xn--...`), as they stand in DNS;
  a label with ß or final ς must be written as an A-label, because two standards read it differently.
- **Patterns**: `*` is any run of characters, `?` is one; case makes no difference.

| written as | means |
|---|---|
| duration | a number and `ms`, `s`, `m`, `h`, `d` or `w`; several in a row add up: `30s`, `1h30m`, `5d` |
| size | octets, plain or with `KB`, `MB`, `GB` (1000) or `KiB`, `MiB`, `GiB` (1024): `998`, `50MiB` |
| rate | a count in any period of `s`, `min`, `h` or `day`: `600/min` |
| share | a percentage: `5%` |
| schedule | waits with repetitions: `1m, 5m*2, 15m, 1h*3, 4h*` |
| network | an address or a CIDR, IPv4 or IPv6: `192.0.2.0/24`, `2001:db8::/32` |
| IP:PORT | an address of this machine and a port, IPv6 in brackets: `127.0.0.1:2525`, `[::]:587`; port 0: any |

## Errors and warnings

An error keeps relayd from starting, and a reload from changing anything. A warning is printed, and relayd goes on.
Only warnings are, among others: an upstream without verified TLS, routes that do not end with one that takes
everything (mail that fits none is refused with 550 5.4.4), a listener that the whole internet may use, a certificate
that has expired.

## Changing it

`relayd reload` or SIGHUP applies a changed file without dropping a connection. A faulty one changes nothing. Only
`data_dir`, `workers` and `secret` need a restart.

## Keys
"""


def reference() -> str:
    """The whole document."""
    where = _places()
    parts = [_INTRO, _table(Config, where)]
    for model in all_models():
        if model is not Config:
            parts.append(f"\n### {where[model]}\n\n{_doc(model)}\n\n{_table(model, where)}")
    return "".join(parts)


def _places() -> dict[type[BaseModel], str]:
    """The heading of every section: where in the file its keys stand."""
    places: dict[type[BaseModel], str] = {}
    for model in all_models():
        for name, field in model.model_fields.items():
            for part in models_in(field.annotation):
                below = f"{places[model].partition(' (')[0]}." if model in places else ""
                places.setdefault(part, f"{below}{name}{_item_mark(field)}{_variant(part)}")
    return places


def _item_mark(field: FieldInfo) -> str:
    origin = get_origin(alternatives(field.annotation)[0])
    return "[]" if origin is list else ".NAME" if origin is dict else ""


def _variant(model: type[BaseModel]) -> str:
    kind = model.model_fields.get("type")
    if kind is not None:
        return f" (type: {get_args(kind.annotation)[0]})"
    return " (fetched)" if "url" in model.model_fields else ""


def _anchor(heading: str) -> str:
    """As GitHub makes it."""
    return "".join(c for c in heading.lower().replace(" ", "-") if c.isalnum() or c in "-_")


def _doc(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").split())


def _table(model: type[BaseModel], where: dict[type[BaseModel], str]) -> str:
    rows = ["| key | value | default | meaning |\n|---|---|---|---|\n"]
    for name, field in model.model_fields.items():
        meaning = (field.description or "").replace("|", "\\|")
        rows.append(f"| `{name}` | {_value(field, where)} | {_default(model, name)} | {meaning} |\n")
    return "".join(rows)


def _value(field: FieldInfo, where: dict[type[BaseModel], str]) -> str:
    texts = [_text(choice, kind_of(field), where) for choice in alternatives(field.annotation)]
    return " or ".join(dict.fromkeys(text for text in texts if text))


_PLAIN: dict[Any, str] = {str: "text", int: "whole number", bool: "`true` or `false`", float: "number", Path: "path"}


def _text(choice: Any, kind: str, where: dict[type[BaseModel], str]) -> str:
    origin = get_origin(choice)
    text = kind
    if choice is type(None):
        text = ""
    elif isinstance(choice, type) and issubclass(choice, BaseModel):
        text = f"[section](#{_anchor(where[choice])})"
    elif isinstance(choice, type) and issubclass(choice, StrEnum):
        text = _choices(member.value for member in choice)
    elif origin is Literal:
        text = _choices(get_args(choice))
    elif origin is list:
        text = f"list of {_inner(get_args(choice)[0], where)}"
    elif origin is dict:
        text = f"NAME: {_inner(get_args(choice)[1], where)}"
    elif not kind:
        text = _PLAIN.get(choice, "text")
    return text


def _choices(values: Any) -> str:
    return ", ".join(f"`{value}`" for value in values)


def _inner(annotation: Any, where: dict[type[BaseModel], str]) -> str:
    kind = inner_kind(annotation)
    texts = [_text(choice, kind, where) for choice in alternatives(annotation)]
    return " or ".join(dict.fromkeys(text for text in texts if text))


def _default(model: type[BaseModel], name: str) -> str:
    field = model.model_fields[name]
    if field.is_required():
        return "**required**"
    if models_in(field.annotation):
        return ""
    default = written_default(model, name)
    if isinstance(default, list):
        return ", ".join(f"`{item}`" for item in default)
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return "" if default in (None, "") else f"`{default}`"
