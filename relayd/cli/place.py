"""Where a daemon's data is, found without the secrets of its configuration, and the spool in it opened for reading.

An operator's shell has neither the environment nor the credentials of the service; looking at the queue needs neither.
"""

# ruff: noqa: PLC0415 - imported where used: `relayd --help` stays quick
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from relayd.cli.common import CommandError, environment

if TYPE_CHECKING:
    from relayd.config.models import Config, Route
    from relayd.spool.reader import SpoolReader


def data_dir_of(path: Path) -> Path:
    """The data_dir that a configuration names. Raises ConfigError with every fault of the file where it cannot tell."""
    return without_secrets(path).data_dir


def reader_of(data_dir: Path) -> SpoolReader:
    """The spool of a data directory, to be read. Raises CommandError where there is none."""
    from relayd.spool.reader import SpoolReader

    spool = data_dir / "spool"
    try:
        spool.stat()
    except FileNotFoundError:
        raise CommandError(f"there is no spool in {data_dir}: relayd has not run there yet") from None
    return SpoolReader(spool)


def routes_of(path: Path) -> list[Route]:
    """The routes of a configuration, whether or not its secrets are to be had here. Raises ConfigError as below."""
    from pydantic import TypeAdapter, ValidationError

    from relayd.config.base import FromFile
    from relayd.config.document import read_document
    from relayd.config.load import load
    from relayd.config.models import Route

    document = read_document(path, environment())
    root = document.root.plain() if document.root is not None else None
    if isinstance(root, dict) and not any(loc and loc[0] == "routes" for loc in document.faulty):
        try:
            context = FromFile(path.absolute().parent)
            return TypeAdapter(list[Route]).validate_python(root.get("routes"), context=context)
        except ValidationError:
            pass
    return load(path, environment()).routes


def without_secrets(path: Path) -> Config:
    """A Config of data_dir, hostname, retry, bounces, spool, domains and tracking alone, secrets or not.

    Raises ConfigError with every fault of the file where one of those is faulty.
    """
    from pydantic import BaseModel, TypeAdapter, ValidationError

    from relayd.config.base import FromFile
    from relayd.config.document import read_document
    from relayd.config.load import load
    from relayd.config.models import Bounces, Config, Domains, Retry, Spool, Tracking
    from relayd.config.names import Domain

    document = read_document(path, environment())
    root = document.root.plain() if document.root is not None else None
    sections: dict[str, type[BaseModel]] = {"retry": Retry, "bounces": Bounces, "spool": Spool}
    sections |= {"domains": Domains, "tracking": Tracking}
    wanted = {"data_dir", "hostname", *sections}
    if not isinstance(root, dict) or any(loc and loc[0] in wanted for loc in document.faulty):
        return load(path, environment())  # which tells all that is wrong
    data_dir = root.get("data_dir") or Config.model_fields["data_dir"].default
    context = FromFile(path.absolute().parent)
    try:
        values: dict[str, Any] = {
            name: section.model_validate(root.get(name) or {}, context=context) for name, section in sections.items()
        }
        if "hostname" in root:
            values["hostname"] = TypeAdapter(Domain).validate_python(root["hostname"])
    except ValidationError:
        return load(path, environment())
    if not isinstance(data_dir, str | Path):
        return load(path, environment())
    values["data_dir"] = context.directory / data_dir
    return Config.model_construct(None, **values)
