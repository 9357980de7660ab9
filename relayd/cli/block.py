"""relayd block list, add, remove, import, export: addresses that are not mailed, straight in state.db.

Running workers see a change within a second. The CSV form is blockfile.py's.
"""

# ruff: noqa: PLC0415 - imported where used: `relayd --help` stays quick
from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from relayd.cli.common import (
    FAILED,
    FAULT,
    CommandError,
    ConfigOption,
    JSONOption,
    YesOption,
    config_path,
    confirm,
    counted,
    now_ms,
    who,
)
from relayd.cli.out import Column, iso, moment, print_json, print_json_list, print_table, say, warn
from relayd.cli.place import data_dir_of

if TYPE_CHECKING:
    import sqlite3

    from relayd.core.blocking import Block

T = TypeVar("T")
PAGE = 1000
SHOWN_FAULTS = 20

app = typer.Typer(help="Addresses that are not mailed any more.", no_args_is_help=True, rich_markup_mode=None)

TargetsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="ADDRESS...",
        help="Addresses; *@example.org for a domain, *@*.example.org for all domains below it.",
        show_default=False,
    ),
]
ScopeOption = Annotated[
    str,
    typer.Option(
        "--scope", metavar="SCOPE", help="For which mail: everything, sender:DOMAIN or stream:CAMPAIGN (quoted)."
    ),
]
ExpiresOption = Annotated[
    str | None,
    typer.Option("--expires", metavar="TIME", help="How long it holds, like 30d. Without it: for good."),
]
AllOption = Annotated[bool, typer.Option("--all", help="Those that were lifted or have expired, too.")]


@app.command("list")
def list_blocks(
    context: typer.Context,
    *,
    pattern: Annotated[
        str | None,
        typer.Argument(metavar="PATTERN", help='Only addresses like this, "*@example.org" say.', show_default=False),
    ] = None,
    ended: AllOption = False,
    config: ConfigOption = None,
    as_json: JSONOption = False,
) -> None:
    """List what is blocked, oldest first: why, by whom, since when, until when, how many mails were stopped since."""
    found = _find(_path(context, config), pattern, ended=ended)
    if as_json:
        print_json_list(as_dict(block) for block in found)
        return
    columns = [Column("address", long=True), *(Column(name) for name in ("scope", "class", "since", "until", "by"))]
    columns += [Column("stopped", right=True), Column("reason", long=True)]
    print_table(columns, (_row(block) for block in found), empty="Nothing is blocked.")


@app.command()
def add(
    context: typer.Context,
    *,
    targets: TargetsArgument,
    scope: ScopeOption = "everything",
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why, for those who ask later.")] = "",
    expires: ExpiresOption = None,
    config: ConfigOption = None,
) -> None:
    """Block addresses or domains: mail to them is not sent from now on, mail that waits included."""
    from relayd.core.blocking import MANUAL
    from relayd.spool import blocklist

    now = now_ms()
    until = now + _span(expires) if expires is not None else None
    place = _scope(scope)
    new = [blocklist.NewBlock(_target(t), place, MANUAL, reason, who(), now, until) for t in targets]
    added = _change(_path(context, config), lambda db: blocklist.add(db, new, keep_longer=False))
    say(f"{added} address{'es' * (added != 1)} blocked.")


@app.command()
def remove(
    context: typer.Context,
    *,
    targets: TargetsArgument,
    scope: Annotated[
        str | None,
        typer.Option(
            "--scope", metavar="SCOPE", help="Only the block of this scope. Without it: all.", show_default=False
        ),
    ] = None,
    config: ConfigOption = None,
    as_json: JSONOption = False,
) -> None:
    """Lift blocks. Their history is kept: list --all shows it. What counted towards a new block is forgotten."""
    from relayd.spool import blocklist

    wanted, place, now = [_target(t) for t in targets], None if scope is None else _scope(scope), now_ms()

    def work(db: sqlite3.Connection) -> list[Block]:
        return [block for target in wanted for block in blocklist.remove(db, target, place, who(), now)]

    lifted = _change(_path(context, config), work)
    if as_json:
        print_json([as_dict(block) for block in lifted])
    else:
        say(f"{counted(len(lifted), 'block')} lifted.")
    known = {block.target for block in lifted}
    for target in wanted:
        if target not in known:
            warn(f"{target} is not blocked")
    if not lifted:
        raise typer.Exit(FAILED)


@app.command("import")
def import_blocks(
    context: typer.Context,
    *,
    file: Annotated[str, typer.Argument(metavar="FILE", help="A CSV file; - for standard input.", show_default=False)],
    scope: ScopeOption = "everything",
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Where the file gives none.")] = "",
    expires: ExpiresOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be blocked, and do nothing.")] = False,
    config: ConfigOption = None,
    as_json: JSONOption = False,
) -> None:
    """Block the addresses of a CSV file: one that export wrote, or a provider's suppression list.

    A header row tells the columns, in the words of the usual providers: address (email, recipient), class, reason,
    since (created, date), until, by, scope. Without one the first column with an @ is the address. Rows that cannot be
    read are named and left out.
    """
    from relayd.cli.blockfile import Defaults, read
    from relayd.spool import blocklist

    now = now_ms()
    until = now + _span(expires) if expires is not None else None
    new, faults = read(_octets(file), Defaults(_scope(scope), reason, who(), now, until))
    count = len(new)
    if not dry_run and new:
        path = _path(context, config)
        count = sum(
            _change(path, lambda db, part=part: blocklist.add(db, part, keep_longer=True))  # type: ignore[misc]
            for part in (new[place : place + PAGE] for place in range(0, len(new), PAGE))
        )
    if as_json:
        print_json({"read": len(new), "blocked": count, "dry_run": dry_run, "faults": faults})
    else:
        said = "would be blocked" if dry_run else "newly blocked"
        say(f"{count} of {len(new)} address{'es' * (len(new) != 1)} {said}.")
    for fault in faults[:SHOWN_FAULTS]:
        warn(fault)
    if len(faults) > SHOWN_FAULTS:
        warn(f"and {len(faults) - SHOWN_FAULTS} more rows that cannot be read")
    if faults:
        raise typer.Exit(FAILED)


@app.command()
def export(
    context: typer.Context,
    *,
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="The file to write; - for standard output.", show_default=False)
    ] = "-",
    ended: AllOption = False,
    yes: YesOption = False,
    config: ConfigOption = None,
) -> None:
    """Write the blocks as CSV, in UTF-8, with a header row."""
    from relayd.cli.blockfile import write

    found = _find(_path(context, config), None, ended=ended)
    if file == "-":
        for line in write(found):
            typer.echo(line, nl=False)
        return
    target = Path(file)
    if target.exists():
        confirm(f"{file} is there already. Write over it?", yes=yes)
    # addresses are personal data: for whoever asked, nobody else
    target.touch(0o600)
    with target.open("w", encoding="utf-8", newline="") as out:
        count = -1
        for count, line in enumerate(write(found)):  # noqa: B007 - the header row is number 0
            out.write(line)
    say(f"{counted(count, 'block')} written to {file}.")


def as_dict(block: Block) -> dict[str, Any]:
    """A block for programs."""
    from relayd.core.ids import format_id

    return {
        "address": block.target,
        "scope": block.scope,
        "class": block.cls,
        "reason": block.reason,
        "by": block.by,
        "since": iso(block.since),
        "until": iso(block.until),
        "message": None if block.message is None else format_id(block.message),
        "stopped": block.stopped,
        "last_stopped": iso(block.last_stopped),
        "ended": iso(block.ended),
        "ended_by": block.ended_by,
    }


def blocks_of(data_dir: Path, address: str) -> list[Block]:
    """Every block that holds for an address now, of all scopes."""
    from relayd.core.blocking import key_of
    from relayd.spool import blocklist

    path = data_dir / "state.db"
    if not path.exists():
        return []
    key = key_of(address)
    labels = key.rpartition("@")[2].split(".")
    targets = [key, f"*@{'.'.join(labels)}", *(f"*@*.{'.'.join(labels[n:])}" for n in range(1, len(labels)))]
    now = now_ms()
    with closing(_open(path)) as db:
        return [block for target in targets for block in blocklist.of_target(db, target) if block.holds(now)]


def _row(block: Block) -> list[str]:
    until = f"lifted {moment(block.ended)} by {block.ended_by}" if block.ended is not None else moment(block.until)
    stopped = str(block.stopped)
    return [
        block.target,
        block.scope,
        block.cls,
        moment(block.since),
        until or "for good",
        block.by,
        stopped,
        block.reason,
    ]


def _find(path: Path, pattern: str | None, *, ended: bool) -> Iterator[Block]:
    from relayd.core.address import compile_pattern
    from relayd.spool import blocklist

    if not path.exists():
        return
    fits = compile_pattern(pattern) if pattern else None
    now, after = now_ms(), 0
    with closing(_open(path)) as db:
        while page := blocklist.listing(db, now=now, ended=ended, after=after, limit=PAGE):
            after = page[-1].id
            for block in page:
                if fits is None or fits(block.target):
                    yield block


def _path(context: typer.Context, config: Path | None) -> Path:
    return data_dir_of(config_path(context, config)) / "state.db"


def _open(path: Path) -> sqlite3.Connection:
    from relayd.cli.offline import become_owner
    from relayd.spool.state import StateError, open_state

    if not path.parent.is_dir():
        raise CommandError(f"there is no {path.parent}: relayd has not run there yet")
    become_owner(path.parent)
    try:
        return open_state(path)
    except StateError as error:
        raise CommandError(str(error)) from None


def _change(path: Path, work: Callable[[sqlite3.Connection], T]) -> T:
    from relayd.spool.blocklist import TooManyBlocksError
    from relayd.spool.state import StateError, transact

    with closing(_open(path)) as db:
        try:
            return transact(db, work)
        except (StateError, TooManyBlocksError) as error:
            raise CommandError(str(error)) from None


def _target(text: str) -> str:
    from relayd.core.blocking import read_target

    try:
        return read_target(text)
    except ValueError as error:
        raise CommandError(str(error), code=FAULT) from None


def _scope(text: str) -> str:
    from relayd.core.blocking import read_scope

    try:
        return read_scope(text)
    except ValueError as error:
        raise CommandError(str(error), code=FAULT) from None


def _span(text: str) -> int:
    from relayd.core.units import parse_duration

    try:
        return round(parse_duration(text) * 1000)
    except ValueError as error:
        raise CommandError(str(error), code=FAULT) from None


def _octets(file: str) -> bytes:
    if file == "-":
        return sys.stdin.buffer.read()
    return Path(file).read_bytes()
