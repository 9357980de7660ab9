"""What the commands share: where the configuration is, who asks, options of one wording, expected failures.

Nothing heavy is imported here: every command starts with this file.
"""

# ruff: noqa: PLC0415 - imported where used: `relayd --help` stays quick
from __future__ import annotations

import os
import pwd
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from relayd.config.models import Config

OK = 0
FAILED = 1
FAULT = 2
"""Wrong usage, or a faulty configuration."""

SERVICE_CREDENTIALS = Path("/run/credentials/relayd.service")
PLACES = (Path("relayd.yaml"), Path("/etc/relayd/relayd.yaml"))

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="Configuration file. Without it: $RELAYD_CONFIG, ./relayd.yaml, /etc/relayd/relayd.yaml.",
        show_default=False,
    ),
]
JSONOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")]


class CommandError(Exception):
    """An expected failure: one line for the operator, details below it, and the exit code."""

    def __init__(self, message: str, details: Sequence[str] = (), code: int = FAILED) -> None:
        super().__init__(message)
        self.details = tuple(details)
        self.code = code


@dataclass(slots=True)
class Settings:
    """What was said before the command's name."""

    config: Path | None = None
    debug: bool = False


def config_path(context: typer.Context, given: Path | None) -> Path:
    """The configuration file that is meant. Raises CommandError where there is none."""
    settings = context.find_root().obj
    chosen = given or (settings.config if isinstance(settings, Settings) else None)
    if chosen is None and os.environ.get("RELAYD_CONFIG"):
        chosen = Path(os.environ["RELAYD_CONFIG"])
    if chosen is not None:
        if not chosen.is_file():
            raise CommandError(f"there is no configuration file {chosen}", code=FAULT)
        return chosen
    for place in PLACES:
        if place.is_file():
            return place
    raise CommandError(
        "no configuration found: give --config FILE, or set RELAYD_CONFIG",
        [f"looked at {place}" for place in PLACES],
        FAULT,
    )


def read_config(context: typer.Context, given: Path | None) -> Config:
    """The whole configuration, checked. Raises ConfigError (main.py prints its faults), CommandError."""
    from relayd.config.load import load

    return load(config_path(context, given), environment())


def environment() -> Mapping[str, str]:
    """Our environment, and the credentials that systemd keeps for the running service, where we may see them."""
    if "CREDENTIALS_DIRECTORY" in os.environ or not SERVICE_CREDENTIALS.is_dir():
        return os.environ
    return {**os.environ, "CREDENTIALS_DIRECTORY": str(SERVICE_CREDENTIALS)}


def now_ms() -> int:
    """The clock of every command: milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def counted(count: int, word: str) -> str:
    """A number with its word: 1 mail, 2 mails."""
    return f"{count} {word}{'s' * (count != 1)}"


def terminal() -> bool:
    """A person can be asked."""
    return sys.stdin.isatty()


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something is done for good. Raises CommandError where nobody can be asked, typer.Abort on no."""
    if yes:
        return
    if not terminal():
        raise CommandError("nobody is there to confirm: give --yes to do it without asking", code=FAULT)
    typer.confirm(question, abort=True, err=True)


def who() -> str:
    """The person who gives the command, for the history of what they change."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = f"uid {os.getuid()}"
    by_sudo = os.environ.get("SUDO_USER")
    return f"{by_sudo} (as {name})" if by_sudo else name
