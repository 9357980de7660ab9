"""relayd config check, show, schema, diff, hash-password. What is right is decided in relayd/config."""

# ruff: noqa: PLC0415 - imported where used: `relayd --help` stays quick
from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from relayd.cli.common import (
    FAULT,
    CommandError,
    ConfigOption,
    JSONOption,
    config_path,
    counted,
    environment,
    read_config,
)
from relayd.cli.out import Column, print_json, print_table, say, warn
from relayd.cli.place import data_dir_of, reader_of, routes_of

if TYPE_CHECKING:
    from relayd.config.models import Route

app = typer.Typer(help="Check, show and compare configurations.", no_args_is_help=True, rich_markup_mode=None)

FileArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="FILE", help="The file; by default the configuration that relayd would use.", show_default=False
    ),
]

_EXAMPLES = 3


@app.command()
def check(
    context: typer.Context, file: FileArgument = None, config: ConfigOption = None, as_json: JSONOption = False
) -> None:
    """Find every fault of a configuration at once: line, key, what is wrong, what would be right.

    Exit code 0 when relayd can use the file (warnings do not keep it from that), else 2.
    """
    from relayd.config.load import examine

    path = config_path(context, file or config)
    examined = examine(path, environment())
    if as_json:
        keys = ("line", "column", "key", "problem", "remedy", "severity")
        faults = [{key: getattr(fault, key) for key in keys} for fault in examined.faults]
        print_json({"file": str(path), "ok": examined.config is not None, "faults": faults})
    else:
        for fault in examined.faults:
            say(fault.written(path))
        say(f"{path}: {_verdict(len(examined.faults), len(examined.warnings))}")
    if examined.config is None:
        raise typer.Exit(FAULT)


def _verdict(faults: int, warnings: int) -> str:
    errors = faults - warnings
    words = [counted(count, word) for count, word in ((errors, "error"), (warnings, "warning")) if count]
    return ", ".join(words) + ("" if errors else ": relayd can use it") if words else "no faults"


@app.command()
def show(
    context: typer.Context, file: FileArgument = None, config: ConfigOption = None, as_json: JSONOption = False
) -> None:
    """Print the effective configuration, defaults filled in, secrets hidden."""
    from relayd.config.show import render

    text = render(read_config(context, file or config))
    if as_json:
        import yaml

        print_json(yaml.safe_load(text))
    else:
        say(text.rstrip("\n"))


@app.command()
def schema() -> None:
    """Print the JSON Schema of the configuration, for editors that complete and check YAML."""
    from relayd.config.schema import schema_text

    typer.echo(schema_text(), nl=False)


@app.command("diff")
def diff(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The changed configuration.", show_default=False)],
    config: ConfigOption = None,
    as_json: JSONOption = False,
) -> None:
    """Say what a changed configuration would change, and which queued mails would take another route.

    It is compared with what the running daemon uses; without a daemon with the configuration file (--config).
    """
    current = config_path(context, config)
    file = config_path(context, file)
    data_dir = data_dir_of(current)
    changes, against = _changes(data_dir, current, file)
    moves = _moves(data_dir, routes_of(file))
    if as_json:
        print_json({"compared_with": against, "changes": changes, "routes": moves})
        return
    say(f"Compared with {against}:")
    for change in changes or ["nothing changes"]:
        say(f"  {change}")
    say()
    if not moves:
        say("No queued mail would take another route.")
        return
    say("Queued mail that would take another route:")
    print_table(
        [Column("from"), Column("to"), Column("recipients", right=True), Column("such as", long=True)],
        ([m["from"] or "(none)", m["to"] or "(none)", str(m["recipients"]), " ".join(m["examples"])] for m in moves),
        empty="",
    )


def _changes(data_dir: Path, current: Path, file: Path) -> tuple[list[str], str]:
    from relayd.config.diff import changes
    from relayd.config.load import load
    from relayd.control import ControlError, NotRunningError, UnknownVerbError, call

    try:
        # the daemon knows what it really uses, and has the secrets that this shell may lack
        [answer] = call(data_dir, "config.diff", {"file": str(file.resolve())}, slots="lead", timeout=60.0)
        return [str(change) for change in answer], "the running daemon"
    except NotRunningError:
        pass
    except UnknownVerbError as error:
        warn(str(error))
    except ControlError as error:
        raise CommandError(str(error), error.faults, FAULT) from None
    return [*changes(load(current, environment()), load(file, environment()))], str(current)


def _moves(data_dir: Path, new: Sequence[Route]) -> list[dict[str, Any]]:
    """Where these routes would send what waits now, by pairs of upstreams."""
    from relayd.core.ids import format_id
    from relayd.core.mail import upstream_of
    from relayd.delivery.routing import RouteTable
    from relayd.spool.filter import QueueFilter

    if not (data_dir / "spool").is_dir():
        return []
    routes = RouteTable(new)
    counts: dict[tuple[str, str], int] = {}
    examples: dict[tuple[str, str], list[str]] = {}
    with reader_of(data_dir) as reader:
        for row in reader.find(QueueFilter()):
            upstream = upstream_of(row.waiting.lane)
            to = routes.upstream_for(row.message, row.waiting.recipient, upstream, keep=True) or ""
            if to == upstream:
                continue
            pair = (row.waiting.lane, to)
            counts[pair] = counts.get(pair, 0) + 1
            few = examples.setdefault(pair, [])
            name = format_id(row.message.id)
            if len(few) < _EXAMPLES and name not in few:
                few.append(name)
    return [
        {"from": old, "to": to, "recipients": count, "examples": examples[old, to]}
        for (old, to), count in sorted(counts.items())
    ]


@app.command("hash-password")
def hash_password() -> None:
    """Turn a password into the argon2id hash that `credentials` takes.

    Asks for it on a terminal; reads one line of standard input elsewhere: the password never is an argument.
    """
    from argon2 import PasswordHasher

    if sys.stdin.isatty():
        password = typer.prompt("Password", hide_input=True, confirmation_prompt="Again", err=True)
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    if not password:
        raise CommandError("the password is empty", code=FAULT)
    if "\0" in password:
        raise CommandError("a password holds no NUL (RFC 4616 2)", code=FAULT)
    say(PasswordHasher().hash(password))
