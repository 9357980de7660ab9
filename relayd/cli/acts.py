"""relayd queue hold, release, retry, fail, delete: an operator's hand in what waits.

Acts go through the running daemon, or, where none runs, through its own code on its spool (offline.py).
"""

# ruff: noqa: PLC0415 - imported where used: `relayd --help` stays quick
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from relayd.cli.filters import filtered
from relayd.cli.out import print_json, say, warn
from relayd.cli.place import data_dir_of, reader_of

if TYPE_CHECKING:
    from relayd.core.lifecycle import Act
    from relayd.spool.filter import QueueFilter
    from relayd.spool.store import Waiting

AllOption = Annotated[bool, typer.Option("--all", help="Everything that waits: needed where no filter is given.")]
DryOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
ReasonOption = Annotated[
    str,
    typer.Option(
        "--reason", metavar="TEXT", help="Kept in the history, and told to the sender by fail.", show_default=False
    ),
]


@dataclass(frozen=True, slots=True)
class Words:
    """How an act is spoken of."""

    help: str
    done: str
    question: str | None = None
    """Asked before; None for what can be taken back."""


ACTS = {
    "hold": Words(
        "Hold mail: nothing is tried until it is released, or retry.held_lifetime ends.\n\n"
        "Mail that is being sent at this moment is left alone.",
        "held",
    ),
    "release": Words(
        "Let held mail go: it is due at once, once more even where its lifetime has ended.\n\n"
        "Uncertain mail that waits for a decision (on_uncertain: hold) is tried again too.",
        "released",
    ),
    "retry": Words("Try waiting mail at once.\n\nHeld mail is not touched: release it.", "due at once"),
    "fail": Words(
        "Give up on mail: it bounces now.\n\nIts senders are told as of any failure. Asks before it does so.",
        "failed",
        "Fail them for good, and tell their senders?",
    ),
    "delete": Words(
        "Delete mail without telling anybody.\n\nIts history is kept. Asks before it does so.",
        "deleted",
        "Delete them for good, without telling anybody?",
    ),
}


def _add(app: typer.Typer, name: str, text: str) -> None:
    """One command for each act: they differ in their words only."""

    @filtered()
    def command(
        context: typer.Context,
        *,
        wanted: QueueFilter,
        everything: AllOption = False,
        reason: ReasonOption = "",
        dry_run: DryOption = False,
        yes: YesOption = False,
        config: ConfigOption = None,
        as_json: JSONOption = False,
    ) -> None:
        from relayd.spool.filter import QueueFilter

        if wanted == QueueFilter() and not everything:
            raise CommandError(
                f"say which: ids, a filter, or --all ({name} without any would mean all mail)", code=FAULT
            )
        run(name, wanted, config_path(context, config), reason, dry_run=dry_run, yes=yes, as_json=as_json)

    command.__doc__ = text
    app.command(name)(command)


def register(app: typer.Typer) -> None:
    """Add the commands to `relayd queue`."""
    for name, words in ACTS.items():
        _add(app, name, words.help)


def run(name: str, wanted: QueueFilter, path: Path, reason: str, *, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Count, ask, act, tell."""
    from relayd.control import running

    data_dir = data_dir_of(path)
    words = ACTS[name]
    if dry_run:
        messages, recipients = _count(data_dir, wanted, name)
        if as_json:
            print_json({"dry_run": True, "recipients": recipients, "messages": messages})
        else:
            say(f"{extent(recipients, messages)} would be {words.done}.")
        return
    if words.question and not yes:
        if wanted.older_than is None:
            # what arrives while the question is thought over was not meant
            wanted = replace(wanted, older_than=now_ms())
        messages, recipients = _count(data_dir, wanted, name)
        if recipients:
            typer.echo(f"{extent(recipients, messages)} will be {words.done}.", err=True)
            confirm(words.question, yes=False)
    act = _by_daemon if running(data_dir) else _without_daemon
    result = act(name, wanted, path, data_dir, reason)
    if as_json:
        print_json(result)
    else:
        tell_done(result, words)
    if result["errors"]:
        raise typer.Exit(FAILED)


def tell_done(result: dict[str, Any], words: Words) -> None:
    if result["recipients"]:
        say(f"{extent(result['recipients'], len(result['messages']))} {words.done}.")
    if result["busy"]:
        say(f"{counted(result['busy'], 'message')} left alone: being sent at this moment.")
    if refused := result.get("refused", 0):
        say(f"{counted(refused, 'recipient')} left alone: their senders may not use that upstream.")
    elif not result["busy"] and not result["recipients"] and not result["errors"]:
        say("Nothing fits: nothing was done.")


def extent(recipients: int, messages: int) -> str:
    """How much an act is about."""
    return f"{counted(recipients, 'recipient')} of {counted(messages, 'message')}"


def _count(data_dir: Path, wanted: QueueFilter, name: str) -> tuple[int, int]:
    """Messages and recipients that the act would change at this moment."""
    from relayd.core.lifecycle import Act

    changes = _changed_by(Act(name))
    messages = recipients = 0
    with reader_of(data_dir) as reader:
        for _, rows in groupby(reader.find(wanted), key=lambda row: row.message.id):
            count = sum(1 for row in rows if changes(row.waiting))
            recipients += count
            messages += count > 0
    return messages, recipients


def _changed_by(deed: Act) -> Callable[[Waiting], bool]:
    from relayd.core.lifecycle import State, act

    def changes(waiting: Waiting) -> bool:
        parked = waiting.state is State.UNCERTAIN and waiting.due is None
        return act(waiting.state, deed, parked=parked, attempted=waiting.attempts > 0) is not None

    return changes


def _by_daemon(name: str, wanted: QueueFilter, path: Path, data_dir: Path, reason: str) -> dict[str, Any]:
    return ask_all(data_dir, f"queue.{name}", {"filter": wanted.to_dict(), "reason": reason, "by": who()})


def ask_all(data_dir: Path, verb: str, args: dict[str, Any]) -> dict[str, Any]:
    """What all workers did together, and what was in the way of some."""
    from relayd.control import ask

    result: dict[str, Any] = {"recipients": 0, "messages": [], "busy": 0, "refused": 0, "errors": []}
    for answer in ask(data_dir, verb, args):
        if answer.gone:
            result["errors"].append(f"worker {answer.slot} does not run now: its mail was left as it is")
        elif answer.error is not None:
            result["errors"].append(f"worker {answer.slot}: {answer.error}")
        else:
            for key in ("recipients", "messages", "busy", "refused"):
                result[key] += answer.result.get(key, 0)
    for error in result["errors"]:
        warn(error)
    return result


def _without_daemon(name: str, wanted: QueueFilter, path: Path, data_dir: Path, reason: str) -> dict[str, Any]:
    from relayd.cli.offline import steer
    from relayd.core.lifecycle import Act

    warn("the daemon does not run: acting on its spool directly")
    by = who()
    done = steer(path, data_dir, lambda steering: steering.act(Act(name), wanted, by=by, reason=reason))
    return done | {"errors": []}
