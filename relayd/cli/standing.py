"""relayd upstream suspend, resume, show: which upstreams are used, straight in state.db, and what has happened to them.

Running workers see a change within a second; where a daemon answers, the command waits until all of them have.
"""

# ruff: noqa: PLC0415 - imported where used: `relayd --help` stays quick
from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from relayd.cli.common import FAULT, CommandError, ConfigOption, JSONOption, config_path, environment, now_ms, who
from relayd.cli.out import Column, iso, moment, print_json, print_pairs, print_table, say
from relayd.cli.place import data_dir_of

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

    from relayd.spool.standings import Standings, UpstreamEvent

T = TypeVar("T")

LaneArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="Name of the upstream, or NAME/ACCOUNT for one of its accounts.", show_default=False
    ),
]
ForOption = Annotated[
    str | None,
    typer.Option("--for", metavar="TIME", help="How long, like 2h. Without it: until it is resumed."),
]
ReasonOption = Annotated[
    str, typer.Option("--reason", metavar="TEXT", help="Why: kept in its history.", show_default=False)
]
BounceOption = Annotated[
    bool,
    typer.Option(
        "--let-bounce", help="After a storm: the refusal is right, so those recipients may bounce from now on (a day)."
    ),
]
LimitOption = Annotated[int, typer.Option("--limit", "-n", metavar="N", min=1, help="How many events to show.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `relayd upstream`."""
    app.command("show")(show)
    app.command("suspend")(suspend)
    app.command("resume")(resume)


def suspend(
    context: typer.Context,
    name: LaneArgument,
    *,
    duration: ForOption = None,
    reason: ReasonOption = "",
    config: ConfigOption = None,
    as_json: JSONOption = False,
) -> None:
    """Send nothing through an upstream until it is resumed. Its mail waits, or goes by another that the routes name.

    What is being sent at this moment is finished.
    """
    from relayd.core.units import format_duration, parse_duration
    from relayd.spool import standings

    path = config_path(context, config)
    _known(path, name)
    now = now_ms()
    try:
        seconds = None if duration is None else parse_duration(duration)
    except ValueError as error:
        raise CommandError(f"--for: {error}", code=FAULT) from None
    until = None if seconds is None else now + round(seconds * 1000)
    new = standings.Suspension(name, standings.SuspensionKind.HAND, now, until, reason, who())
    _write(path, lambda db: standings.suspend(db, new, {}))
    if as_json:
        print_json({"name": name, "suspended": True, "until": iso(until), "reason": reason})
    else:
        length = "until it is resumed" if seconds is None else f"for {format_duration(seconds)}"
        say(f"{name} is suspended {length}: nothing more goes out by it.")


def resume(
    context: typer.Context,
    name: LaneArgument,
    *,
    reason: ReasonOption = "",
    let_bounce: BounceOption = False,
    config: ConfigOption = None,
    as_json: JSONOption = False,
) -> None:
    """Use an upstream again: end a suspension or a storm, and try at once where it was paused.

    Exit code 1 where it was neither suspended nor paused.
    """
    path = config_path(context, config)
    _known(path, name)
    done = _write(path, lambda db: _resume(db, name, reason, let_bounce=let_bounce))
    _tell_daemon(path, name)
    if as_json:
        print_json({"name": name, "resumed": done})
    elif done:
        say(f"{name} is used again (it was {' and '.join(done)}).")
    if not done:
        raise CommandError(f"{name} was neither suspended nor paused")


def _resume(db: sqlite3.Connection, name: str, reason: str, *, let_bounce: bool) -> list[str]:
    from relayd.spool import standings

    now, done = now_ms(), []
    lanes = [name, *(lane for lane in _lanes(standings.read(db, now)) if lane.startswith(f"{name}/"))]
    for lane in lanes:
        stormed = _storm(standings.history(db, lane, standings.KEPT), lane) if let_bounce else None
        ended = standings.resume(db, lane, now, who(), reason)
        if ended is not None:
            done.append("held back by the storm guard" if ended.kind == "storm" else "suspended")
            if ended.kind == "storm" and stormed is not None:
                standings.pardon(db, lane, stormed, now + standings.PARDON)
        if standings.unpause(db, lane, now, who()) is not None:
            done.append("paused")
    return list(dict.fromkeys(done))


def _lanes(found: Standings) -> set[str]:
    return {*found.pauses, *found.suspensions}


def _storm(events: list[UpstreamEvent], lane: str) -> str | None:
    """What the last storm of a lane was about."""
    for event in events:
        if event.kind == "upstream.storm" and event.lane == lane:
            return str(event.detail.get("key", ""))
    return None


def show(
    context: typer.Context,
    name: LaneArgument,
    limit: LimitOption = 20,
    config: ConfigOption = None,
    as_json: JSONOption = False,
) -> None:
    """Show how an upstream stands, and what has happened to it: pauses, storms, suspensions, and who ended them."""
    from relayd.spool import standings

    path = config_path(context, config)
    _known(path, name)
    data_dir = data_dir_of(path)
    standing = standing_of(standings_at(data_dir), name)
    events = _look(data_dir, lambda db: standings.history(db, name, limit)) or []
    if as_json:
        print_json({"name": name, "standing": standing, "events": [_event(event) for event in events]})
        return
    print_pairs([("upstream", name), *((key, str(value)) for key, value in standing.items() if value is not None)])
    say()
    print_table(
        [Column("at"), Column("lane"), Column("event"), Column("what", long=True)],
        ([moment(e.at), e.lane, e.kind.value.removeprefix("upstream."), _what(e)] for e in events),
        empty="nothing has happened to it",
    )


def _event(event: UpstreamEvent) -> dict[str, Any]:
    return {"at": iso(event.at), "lane": event.lane, "event": event.kind.value, **event.detail}


def _what(event: UpstreamEvent) -> str:
    detail = event.detail
    parts = [str(detail["reason"])] if detail.get("reason") else []
    if detail.get("recipients"):
        parts.append(f"{detail['recipients']} recipients")
    if detail.get("by"):
        parts.append(f"by {detail['by']}")
    if isinstance(until := detail.get("until"), int):
        parts.append(f"until {moment(until)}")
    return "; ".join(parts)


def standing_of(found: Standings | None, name: str) -> dict[str, Any]:
    """How an upstream or account stands, for people and programs."""
    from relayd.core.mail import upstream_of

    suspension = None
    pause = None
    if found is not None:
        suspension = found.suspensions.get(name) or found.suspensions.get(upstream_of(name))
        pauses = [each for lane, each in found.pauses.items() if lane == name or lane.startswith(f"{name}/")]
        pause = min(pauses, key=lambda each: each.since, default=None)
    if suspension is not None:
        word = "storm" if suspension.kind == "storm" else "suspended"
        return {
            "state": word,
            "since": iso(suspension.since),
            "until": iso(suspension.until),
            "reason": suspension.reason,
            "by": suspension.by,
        }
    if pause is not None:
        return {
            "state": "paused",
            "lane": pause.lane,
            "since": iso(pause.since),
            "next_probe": iso(pause.until),
            "reason": pause.reason,
        }
    return {"state": "in use"}


def standings_at(data_dir: Path) -> Standings | None:
    """How all upstreams of a data directory stand; None where relayd has not run there."""
    from relayd.spool import standings

    now = now_ms()
    return _look(data_dir, lambda db: standings.read(db, now))


# -- state.db


def _known(path: Path, name: str) -> None:
    """Raises CommandError for what the configuration does not have. Secrets are not needed for that."""
    from relayd.config.document import read_document

    document = read_document(path, environment())
    root = document.root.plain() if document.root is not None else None
    upstreams = root.get("upstreams") if isinstance(root, dict) else None
    upstreams = upstreams if isinstance(upstreams, dict) else {}
    upstream, slash, account = name.partition("/")
    if upstream not in upstreams:
        raise CommandError(f"there is no upstream {upstream}: known are {', '.join(map(str, upstreams))}", code=FAULT)
    if slash:
        section = upstreams[upstream]
        accounts = section.get("accounts") if isinstance(section, dict) else None
        names = [str(each.get("address") or each.get("domain")) for each in accounts or [] if isinstance(each, dict)]
        if account not in names:
            raise CommandError(
                f"{upstream} has no account {account}: known are {', '.join(names) or 'none'}", code=FAULT
            )


def _look(data_dir: Path, work: Callable[[sqlite3.Connection], T]) -> T | None:
    from contextlib import closing

    from relayd.cli.offline import become_owner
    from relayd.spool.state import open_state

    if not (data_dir / "state.db").exists():
        return None
    become_owner(data_dir)
    with closing(open_state(data_dir / "state.db")) as db:
        return work(db)


def _write(path: Path, work: Callable[[sqlite3.Connection], T]) -> T:
    """One transaction in state.db; then all running workers are told. Raises CommandError."""
    from contextlib import closing

    from relayd.cli.offline import become_owner
    from relayd.spool.state import StateError, open_state, transact

    data_dir = data_dir_of(path)
    if not data_dir.is_dir():
        data_dir.mkdir(mode=0o700, parents=True)
    become_owner(data_dir)
    try:
        with closing(open_state(data_dir / "state.db")) as db:
            done = transact(db, work)
    except StateError as error:
        raise CommandError(str(error)) from None
    _tell_daemon(path, None)
    return done


def _tell_daemon(path: Path, lane: str | None) -> None:
    """Let running workers look at once, and try a lane where one is named."""
    from relayd.control import ControlError, ask

    data_dir = data_dir_of(path)
    with contextlib.suppress(ControlError, OSError):
        ask(data_dir, "upstream.look", {"lane": lane} if lane else {})
