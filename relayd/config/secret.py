"""The key for tokens and stored secrets: from the configuration, or made once in data_dir/secret. And which values of
a configuration are secret.

What is derived from the key is left to those who use it.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr

from relayd.config.models import Config

_OCTETS = 32


def resolve_secret(config: Config) -> bytes:
    """The secret as octets; made with mode 0600 on first start. Raises OSError where it can be neither read nor made.

    Workers may call this at the same moment: all get the same secret.
    """
    if config.secret is not None:
        return config.secret.get_secret_value().encode()
    path = secret_path(config)
    try:
        return _read(path)
    except FileNotFoundError:
        _make(path)
        return _read(path)


def secret_path(config: Config) -> Path:
    """Where the secret is kept that no one configured."""
    return config.data_dir / "secret"


def _read(path: Path) -> bytes:
    secret = path.read_bytes().strip()
    if not secret:
        raise OSError(0, "is empty; delete it, and a new one is made", str(path))
    return secret


def _make(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # written whole under another name and then linked: no one ever sees half a secret, and the first one stays
    descriptor, name = tempfile.mkstemp(prefix=".secret-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(_OCTETS) + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(name, path)
        except FileExistsError:
            return  # another worker was quicker
    finally:
        Path(name).unlink()
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def secrets_of(model: BaseModel) -> set[str]:
    """Every secret value of a configuration, for logs to hide."""
    return set(_secrets(model))


def _secrets(value: Any) -> Iterator[str]:
    if isinstance(value, SecretStr):
        yield value.get_secret_value()
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _secrets(getattr(value, name))
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _secrets(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _secrets(each)
