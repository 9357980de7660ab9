"""The upstreams of a configuration without the secrets of those that a command is not about.

An operator's shell has neither the environment nor the credentials of the service; listing upstreams needs neither, and
trying one needs its own alone.
"""

# ruff: noqa: PLC0415 - imported where used: `relayd --help` stays quick
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from relayd.cli.common import environment
from relayd.cli.place import routes_of, without_secrets

if TYPE_CHECKING:
    from relayd.config.fault import Loc
    from relayd.config.models import Config

_STAND_IN = "unknown"


def upstreams_of(path: Path, needed: str | None = None) -> Config:
    """The whole configuration; where secrets are missing, at least the upstreams and what `without_secrets` has.

    The upstream `needed` has its own secrets, and with OAuth2 the file's `secret`. Raises ConfigError with every fault
    that is in the way.
    """
    from relayd.config.document import read_document
    from relayd.config.fault import ConfigError, Severity, key_text
    from relayd.config.load import OPTIONAL, load

    environ = environment()
    try:
        return load(path, environ)
    except ConfigError as error:
        document = read_document(path, environ, OPTIONAL)
        root = document.root.plain() if document.root is not None else None
        if not isinstance(root, dict):
            raise
        wanted = _needed(root, needed)
        lost = [loc for loc in document.faulty if not any(loc[: len(each)] == each for each in wanted)]
        names = {key_text(loc) for loc in lost}
        faults = [each for each in error.faults if each.severity is Severity.ERROR and each.key not in names]
        if faults:
            raise ConfigError(path, faults) from None
    return _without(path, root, [loc for loc in lost if loc[0] == "upstreams"])


def _needed(root: dict[str, Any], needed: str | None) -> list[Loc]:
    """Where secrets stand that must be there."""
    if needed is None:
        return []
    upstreams = root.get("upstreams")
    section = upstreams.get(needed) if isinstance(upstreams, dict) else None
    entries = [section, *(section.get("accounts") or [])] if isinstance(section, dict) else []
    tokens = any(isinstance(entry, dict) and "oauth" in entry for entry in entries)
    return [("upstreams", needed), *([("secret",)] if tokens else [])]


def _without(path: Path, root: dict[str, Any], lost: list[Loc]) -> Config:
    from pydantic import TypeAdapter

    from relayd.config.base import FromFile
    from relayd.config.models import Config
    from relayd.config.shape import whole_type

    for loc in lost:
        around: Any = root
        for part in loc[:-1]:
            around = around[part]
        around[loc[-1]] = _STAND_IN
    adapter = TypeAdapter(whole_type(Config.model_fields["upstreams"]))
    upstreams = adapter.validate_python(root["upstreams"], context=FromFile(path.absolute().parent))
    values: dict[str, Any] = {"upstreams": upstreams, "routes": routes_of(path)}
    if isinstance(root.get("secret"), str):
        values["secret"] = TypeAdapter(whole_type(Config.model_fields["secret"])).validate_python(root["secret"])
    return without_secrets(path).model_copy(update=values)
