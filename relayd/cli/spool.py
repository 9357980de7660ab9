"""relayd spool check, recover: find damaged files, and save what can be read of them.

What is damage is spool/check.py's; saving is spool/salvage.py's (segments) and spool/rescue.py's (the other databases).
"""

# ruff: noqa: PLC0415 - imported where used: `relayd --help` stays quick
from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from relayd.cli.common import FAILED, FAULT, CommandError, ConfigOption, JSONOption, config_path, now_ms
from relayd.cli.out import print_json, say, warn
from relayd.cli.place import reader_of, without_secrets

if TYPE_CHECKING:
    from relayd.spool.rescue import Rescue
    from relayd.spool.salvage import Salvage

app = typer.Typer(
    help="Find damaged files of the data directory, and save what can be read of them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("check")
def check_files(context: typer.Context, config: ConfigOption = None, as_json: JSONOption = False) -> None:
    """Read every file of the spool and the other databases, and tell which are damaged.

    Whether the daemon runs or not; beside a running one it changes nothing and keeps no mail waiting. It reads every
    octet, so a big spool takes a while. Exit code 1 when anything is damaged. Whether every mail is accounted for is
    told by `relayd audit`.
    """
    from relayd.control import running
    from relayd.spool.check import check

    data_dir = without_secrets(config_path(context, config)).data_dir
    reader_of(data_dir).close()
    found = check(data_dir, live=running(data_dir))
    damaged = [each for each in found if each.faults]
    if as_json:
        files = [{"path": str(each.path), "faults": list(each.faults), "set_aside": each.aside} for each in found]
        print_json({"whole": not damaged, "files": files})
    else:
        for each in damaged:
            for fault in each.faults:
                warn(f"{each.path}: {fault}")
        if damaged:
            warn(f"{len(damaged)} of {len(found)} files are damaged: relayd spool recover saves what can be read")
        else:
            say(f"Whole: {len(found)} files.", style="green")
    if damaged:
        raise typer.Exit(FAILED)


@app.command()
def recover(
    context: typer.Context,
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FILE]...",
            help="Segments that were set aside (….db.damaged), or state.db or inbound.db while no daemon runs."
            " Without any: every segment that was set aside.",
            show_default=False,
        ),
    ] = None,
    hold: Annotated[
        bool | None,
        typer.Option(
            "--hold/--send",
            help="Hold what waits in a segment, or let it be sent. Without either: held where it cannot be excluded"
            " that some of it was delivered already.",
            show_default=False,
        ),
    ] = None,
    config: ConfigOption = None,
    as_json: JSONOption = False,
) -> None:
    """Save what can be read of damaged files.

    A whole segment takes the place of each one that was set aside; a running daemon takes it in at once, another at
    its start. Mail whose content is lost bounces, and its sender is told. What cannot be saved is listed. The damaged
    files stay, as ….recovered: delete them when nobody needs them any more. Exit code 1 when mail was lost.
    """
    settings = without_secrets(config_path(context, config))
    data_dir = settings.data_dir
    reader_of(data_dir).close()
    _become_owner(data_dir)
    done: list[Any] = [
        _segment(path, hold, notify=settings.bounces.notify != "none")
        if path.parent.parent == data_dir / "spool"
        else _database(path, data_dir)
        for path in _chosen(data_dir, files)
    ]
    taken = _take_in(data_dir, done)
    if as_json:
        print_json({"recovered": [asdict(each) for each in done], "taken_in": taken})
    else:
        _tell(done, taken=taken)
    if any(getattr(each, "lost", None) or getattr(each, "incomplete", None) for each in done):
        raise typer.Exit(FAILED)


def _chosen(data_dir: Path, files: list[Path] | None) -> list[Path]:
    from relayd.spool.check import DATABASES
    from relayd.spool.files import damaged_in

    if not files:
        return [path.absolute() for path in damaged_in(data_dir / "spool")]
    chosen = [path.absolute() for path in files]
    for path in chosen:
        if not path.is_file():
            raise CommandError(f"there is no file {path}", code=FAULT)
        if path.parent.parent != data_dir / "spool" and path not in [data_dir / name for name in DATABASES]:
            raise CommandError(f"{path} is none of relayd's files in {data_dir}", code=FAULT)
    return chosen


def _segment(path: Path, hold: bool | None, *, notify: bool) -> Salvage:
    from relayd.spool.salvage import salvage

    return salvage(path, now_ms(), notify=notify, hold=hold)


def _database(path: Path, data_dir: Path) -> Rescue:
    from relayd.spool.lock import AlreadyRunningError, DataLock
    from relayd.spool.rescue import rescue

    try:
        with DataLock(data_dir / "lock"):
            return rescue(path)
    except AlreadyRunningError as error:
        raise CommandError(f"{error}: {path.name} can only be recovered while no daemon runs") from None


def _take_in(data_dir: Path, done: list[Any]) -> bool:
    """Have a running daemon look at the recovered segments."""
    from relayd.control import call, running
    from relayd.spool.salvage import Salvage

    segments = [str(Path(each.segment)) for each in done if isinstance(each, Salvage)]
    if not segments or not running(data_dir):
        return False
    call(data_dir, "spool.adopt", {"segments": segments})
    return True


def _tell(done: list[Any], *, taken: bool) -> None:
    from relayd.spool.salvage import Salvage

    if not done:
        say("Nothing was set aside as damaged: there is nothing to recover.")
        return
    for each in done:
        if not isinstance(each, Salvage):
            say(f"{each.path}: {each.rows} rows saved.")
            for table in each.incomplete:
                warn(f"  some rows of {table} are lost")
            continue
        say(f"{each.segment}: {each.messages} messages saved, {each.waiting} recipients wait.")
        if each.held:
            say(
                f"  {each.held} of them are held: what was written last is lost, so they may have been delivered."
                " Look (relayd queue list --state held), then relayd queue release or delete."
            )
        for lost in [*each.lost, *each.faults]:
            warn(f"  {lost}")
    if any(isinstance(each, Salvage) for each in done):
        say("The running daemon has taken them in." if taken else "relayd takes them in when it starts.")


def _become_owner(data_dir: Path) -> None:
    from relayd.cli.offline import become_owner

    become_owner(data_dir)
