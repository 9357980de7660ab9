"""Fetches values that are not written in the file: !env NAME, !file PATH, !credential NAME (systemd).

What the value means, and whether it may be absent, is left to document.py.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from relayd.config.fault import Source, printable

TAGS = ("!env", "!file", "!credential")
MAX_CONTENT = 64 * 1024


class SourceError(Exception):
    """The value cannot be had."""

    def __init__(self, problem: str, remedy: str, *, absent: bool = False) -> None:
        super().__init__(problem, remedy)
        self.problem, self.remedy = printable(problem, 300), remedy
        self.absent = absent
        """The file simply is not there."""


def fetch(tag: str, name: str, directory: Path, environ: Mapping[str, str]) -> tuple[Source, str]:
    """The value that a tag (one of TAGS) names. Relative paths start in `directory`. Raises SourceError."""
    if not name or not name.isprintable():
        raise SourceError(f"{tag} needs a name behind it", f"Write it like {tag} NAME")
    if tag == "!env":
        return Source(tag, name), _variable(name, environ)
    path = directory / name if tag == "!file" else _credential(name, environ)
    return Source(tag, name, path), _content(path)


def _variable(name: str, environ: Mapping[str, str]) -> str:
    value = environ.get(name)
    if not value:
        state = "is not set" if value is None else "is set but empty"
        remedy = "Set it where relayd starts, or use !file or !credential"
        raise SourceError(f"the environment variable {name} {state}", remedy)
    return value


def _credential(name: str, environ: Mapping[str, str]) -> Path:
    if "/" in name or name in (".", ".."):
        raise SourceError("the name of a credential has no slash", "Write the name given in LoadCredential=")
    directory = environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        remedy = f"Start relayd by systemd with LoadCredential={printable(name)}:PATH, or use !file"
        raise SourceError("systemd passes no credentials here (CREDENTIALS_DIRECTORY is not set)", remedy, absent=True)
    return Path(directory) / name


def _content(path: Path) -> str:
    try:
        return _read(path)
    except FileNotFoundError:
        problem = f"the file {path} is not there"
        raise SourceError(problem, "Create it, or correct the path", absent=True) from None
    except PermissionError:
        remedy = "Give it to the user that relayd runs as (chown), with mode 0600"
        raise SourceError(f"the file {path} may not be read by this user", remedy) from None
    except OSError as error:
        raise SourceError(f"the file {path} cannot be read: {reason(error)}", "Check the path") from None
    except ValueError as error:
        raise SourceError(f"the file {path} {error}", "Put the value in it, alone, as UTF-8 text") from None


def _read(path: Path) -> str:
    """The text of a small file without its last newline. Raises OSError; ValueError with what is wrong."""
    with open(path, "rb", opener=_open_now) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("is not a plain file")
        raw = file.read(MAX_CONTENT + 1)
    if len(raw) > MAX_CONTENT:
        raise ValueError(f"is larger than {MAX_CONTENT // 1024} KiB")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8 text") from None
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise ValueError("is empty")
    return text


def _open_now(path: str, flags: int) -> int:
    # otherwise a named pipe would stop relayd here until someone writes to it
    return os.open(path, flags | os.O_NONBLOCK)


def reason(error: OSError) -> str:
    """Why the system refused, in its own words."""
    return (error.strerror or "an input/output error").lower()
