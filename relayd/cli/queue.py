"""relayd queue list, show, stats, and hold, release, retry, fail, delete: what waits, and an operator's hand in it.

Looking reads the spool; acting goes through the running daemon, or, where none runs, through its own code here.
"""

# ruff: noqa: PLC0415 - imported where used: `relayd --help` stays quick
from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby, islice
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
    who,
)
from relayd.cli.out import Column, age, iso, moment, print_json, print_json_list, print_pairs, print_table, say, warn
from relayd.cli.place import data_dir_of, reader_of

if TYPE_CHECKING:
    from relayd.core.lifecycle import Act
    from relayd.spool.filter import QueueFilter
    from relayd.spool.reader import QueueRow
    from relayd.spool.store import Attempt, Waiting

app = typer.Typer(
    help="See what waits, and hold, release, retry, fail or delete it.", no_args_is_help=True, rich_markup_mode=None
)

TABLE_LIMIT = 200
"""Rows that a person is shown without asking for more."""


class WaitingState(StrEnum):
    """The states of mail that waits, as --state takes them."""

    QUEUED = "queued"
    DEFERRED = "deferred"
    UNCERTAIN = "uncertain"
    HELD = "held"


IdsArgument = Annotated[list[str] | None, typer.Argument(metavar="ID", help="Message ids.", show_default=False)]
SenderOption = Annotated[
    str | None,
    typer.Option(
        "--sender",
        metavar="PATTERN",
        help='Envelope sender, a pattern like "*@shop.example.com"; "<>" for bounces.',
        show_default=False,
    ),
]
RecipientOption = Annotated[
    str | None,
    typer.Option(
        "--recipient", metavar="PATTERN", help='Recipient, a pattern like "*@example.org".', show_default=False
    ),
]
UpstreamOption = Annotated[
    str | None,
    typer.Option(
        "--upstream", metavar="NAME", help='Name of the upstream; "" for mail that no route fits.', show_default=False
    ),
]
OlderOption = Annotated[
    str | None,
    typer.Option("--older-than", metavar="AGE", help="Accepted longer ago than this: 30m, 4h, 2d.", show_default=False),
]
NewerOption = Annotated[
    str | None,
    typer.Option("--newer-than", metavar="AGE", help="Accepted within this time: 30m, 4h, 2d.", show_default=False),
]
StateOption = Annotated[
    list[WaitingState] | None,
    typer.Option(
        "--state", metavar="STATE", help="queued, deferred, uncertain or held; may be repeated.", show_default=False
    ),
]
AllOption = Annotated[bool, typer.Option("--all", help="Everything that waits: needed where no filter is given.")]
DryOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
ReasonOption = Annotated[
    str,
    typer.Option(
        "--reason", metavar="TEXT", help="Kept in the history, and told to the sender by fail.", show_default=False
    ),
]


def _filter(
    ids: Sequence[str] | None,
    *,
    sender: str | None,
    recipient: str | None,
    upstream: str | None,
    older_than: str | None,
    newer_than: str | None,
    state: Sequence[WaitingState] | None,
) -> QueueFilter:
    """What the options mean. Raises CommandError for what cannot be read."""
    from relayd.core.ids import parse_id
    from relayd.core.lifecycle import State
    from relayd.core.units import parse_duration
    from relayd.spool.filter import QueueFilter

    now = time.time_ns() // 1_000_000
    try:
        return QueueFilter(
            sender=sender,
            recipient=recipient,
            upstream=upstream,
            older_than=None if older_than is None else now - round(parse_duration(older_than) * 1000),
            newer_than=None if newer_than is None else now - round(parse_duration(newer_than) * 1000),
            states=frozenset(State(each.value) for each in state or ()),
            ids=frozenset(parse_id(each) for each in ids or ()),
        )
    except ValueError as error:
        raise CommandError(str(error), code=FAULT) from None


def _entry(row: QueueRow) -> dict[str, Any]:
    from relayd.cli.message import recipient_dict
    from relayd.core.ids import format_id

    message = row.message
    return {
        "id": format_id(message.id),
        "accepted_at": iso(message.accepted_at),
        "sender": message.envelope.sender,
        "subject": message.subject,
        "size": message.size,
        "campaign": message.campaign,
        "credential": message.origin.credential,
        **recipient_dict(row.waiting),
    }


@app.command("list")
def list_queue(
    context: typer.Context,
    *,
    ids: IdsArgument = None,
    sender: SenderOption = None,
    recipient: RecipientOption = None,
    upstream: UpstreamOption = None,
    older_than: OlderOption = None,
    newer_than: NewerOption = None,
    state: StateOption = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", "-n", metavar="N", min=1, help=f"Rows at most; without it {TABLE_LIMIT} in a table, all in JSON."
        ),
    ] = None,
    config: ConfigOption = None,
    as_json: JSONOption = False,
) -> None:
    """List recipients that wait, one line each, oldest mail first."""
    from relayd.core.ids import format_id
    from relayd.spool.filter import QueueFilter

    wanted = _filter(
        ids,
        sender=sender,
        recipient=recipient,
        upstream=upstream,
        older_than=older_than,
        newer_than=newer_than,
        state=state,
    )
    with reader_of(data_dir_of(config_path(context, config))) as reader:
        rows = reader.find(wanted)
        if as_json:
            print_json_list(_entry(row) for row in islice(rows, limit))
            return
        shown = list(islice(rows, limit or TABLE_LIMIT))
        more = next(rows, None) is not None
    columns = [Column(name) for name in ("id", "state", "age", "next try", "upstream", "from", "to")]
    columns.insert(4, Column("tries", right=True))
    print_table(
        columns,
        (
            [
                format_id(row.message.id),
                row.waiting.state.value,
                age(row.message.accepted_at),
                _next_try(row.waiting),
                str(row.waiting.attempts),
                row.waiting.lane or "-",
                row.message.envelope.sender or "<>",
                row.waiting.recipient.address,
            ]
            for row in shown
        ),
        empty="Nothing waits." if wanted == QueueFilter() else "Nothing fits.",
    )
    if more:
        warn(f"there is more: these are the first {len(shown)}; --limit shows others, `relayd queue stats` sums up")


def _next_try(waiting: Waiting) -> str:
    if waiting.due is None:
        return "-"
    left = waiting.due - time.time_ns() // 1_000_000
    return age(waiting.due) if left > 0 else "now"


@app.command()
def show(
    context: typer.Context,
    *,
    ids: IdsArgument = None,
    sender: SenderOption = None,
    recipient: RecipientOption = None,
    upstream: UpstreamOption = None,
    older_than: OlderOption = None,
    newer_than: NewerOption = None,
    state: StateOption = None,
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", min=1, help="Messages at most.")] = 20,
    config: ConfigOption = None,
    as_json: JSONOption = False,
) -> None:
    """Show what keeps messages waiting.

    For every recipient: its state, the next try, and the last reply of the upstream.
    """
    wanted = _filter(
        ids,
        sender=sender,
        recipient=recipient,
        upstream=upstream,
        older_than=older_than,
        newer_than=newer_than,
        state=state,
    )
    found: list[dict[str, Any]] = []
    with reader_of(data_dir_of(config_path(context, config))) as reader:
        groups = groupby(reader.find(wanted), key=lambda row: row.message.id)
        for message, rows in islice(groups, limit):
            found.append(_shown(list(rows), reader.history(message).attempts))
    if as_json:
        print_json_list(found)
        return
    if not found:
        say("Nothing fits.")
    for number, entry in enumerate(found):
        if number:
            say()
        _tell_message(entry)


def _shown(rows: Sequence[QueueRow], attempts: Sequence[Attempt]) -> dict[str, Any]:
    from relayd.cli.message import recipient_dict

    entry = _entry(rows[0])
    kept = {key: entry[key] for key in ("id", "accepted_at", "sender", "subject", "size", "campaign", "credential")}
    recipients = []
    for row in rows:
        last = next((attempt for attempt in reversed(attempts) if row.waiting.n in attempt.recipients), None)
        recipients.append(
            recipient_dict(row.waiting)
            | {"last_try": iso(last.at) if last else None, "last_reply": last.reply if last else None}
        )
    return kept | {"recipients": recipients}


def _tell_message(entry: dict[str, Any]) -> None:
    print_pairs(
        [
            ("message", entry["id"]),
            ("accepted", entry["accepted_at"]),
            ("from", entry["sender"] or "<>"),
            ("subject", entry["subject"]),
            ("campaign", entry["campaign"] or ""),
            ("credential", entry["credential"] or ""),
        ]
    )
    for each in entry["recipients"]:
        tries = f"{each['attempts']} {'try' if each['attempts'] == 1 else 'tries'}"
        say(f"  {each['recipient']}: {each['state']} for {each['upstream'] or 'no upstream'}, {tries}")
        if each["due"]:
            say(f"    next try   {each['due']}")
        if each["last_reply"]:
            say(f"    last reply {each['last_reply']} ({each['last_try']})")


@app.command()
def stats(context: typer.Context, config: ConfigOption = None, as_json: JSONOption = False) -> None:
    """Sum up what waits by upstream and state.

    With the age of the oldest, the size of the spool, and segments that were set aside as damaged.
    """
    with reader_of(data_dir_of(config_path(context, config))) as reader:
        found = reader.stats()
    waiting = [
        {"upstream": each.lane or None, "state": each.state.value, "recipients": each.count, "oldest": iso(each.oldest)}
        for each in found.depths
    ]
    if as_json:
        kept = {"messages": found.messages, "octets": found.octets, "segments": found.segments}
        print_json({"waiting": waiting, "reports_owed": found.owed, "kept": kept, "damaged": list(found.damaged)})
        return
    print_table(
        [Column("upstream"), Column("state"), Column("recipients", right=True), Column("oldest"), Column("since")],
        (
            [each.lane or "-", each.state.value, str(each.count), age(each.oldest), moment(each.oldest)]
            for each in found.depths
        ),
        empty="Nothing waits.",
    )
    say()
    say(f"Kept: {found.messages} messages in {found.segments} segments, {found.octets / 1024**2:.1f} MiB.")
    if found.owed:
        say(f"Reports owed to senders: {found.owed}.")
    for path in found.damaged:
        warn(f"set aside as damaged: {path}")


@dataclass(frozen=True, slots=True)
class Words:
    """How an act is spoken of."""

    done: str
    question: str | None
    """Asked before; None for what can be taken back."""


ACTS = {
    "hold": Words("held", None),
    "release": Words("released", None),
    "retry": Words("due at once", None),
    "fail": Words("failed", "Fail them for good, and tell their senders?"),
    "delete": Words("deleted", "Delete them for good, without telling anybody?"),
}


def _add(name: str, text: str) -> None:
    """One command for each act: they differ in their words only."""

    def command(
        context: typer.Context,
        *,
        ids: IdsArgument = None,
        sender: SenderOption = None,
        recipient: RecipientOption = None,
        upstream: UpstreamOption = None,
        older_than: OlderOption = None,
        newer_than: NewerOption = None,
        state: StateOption = None,
        everything: AllOption = False,
        reason: ReasonOption = "",
        dry_run: DryOption = False,
        yes: YesOption = False,
        config: ConfigOption = None,
        as_json: JSONOption = False,
    ) -> None:
        from relayd.spool.filter import QueueFilter

        wanted = _filter(
            ids,
            sender=sender,
            recipient=recipient,
            upstream=upstream,
            older_than=older_than,
            newer_than=newer_than,
            state=state,
        )
        if wanted == QueueFilter() and not everything:
            raise CommandError(
                f"say which: ids, a filter, or --all ({name} without any would mean all mail)", code=FAULT
            )
        run(name, wanted, config_path(context, config), reason, dry_run=dry_run, yes=yes, as_json=as_json)

    command.__doc__ = text
    app.command(name)(command)


_add(
    "hold", "Hold mail: nothing is tried until it is released.\n\nMail that is being sent at this moment is left alone."
)
_add(
    "release",
    "Let held mail go: it is due at once.\n\n"
    "Uncertain mail that waits for a decision (on_uncertain: hold) is tried again too.",
)
_add("retry", "Try waiting mail at once.\n\nHeld mail is not touched: release it.")
_add("fail", "Give up on mail: it bounces now.\n\nIts senders are told as of any failure. Asks before it does so.")
_add("delete", "Delete mail without telling anybody.\n\nIts history is kept. Asks before it does so.")


def run(name: str, wanted: QueueFilter, path: Path, reason: str, *, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Count, ask, act, tell."""
    from relayd.control import running

    data_dir = data_dir_of(path)
    words = ACTS[name]
    messages, recipients = _count(data_dir, wanted, name)
    if dry_run or not recipients:
        if as_json:
            print_json({"dry_run": dry_run, "recipients": recipients, "messages": messages, "busy": 0})
        else:
            say(f"{_of(recipients, messages)} would be {words.done}." if dry_run else "Nothing fits: nothing was done.")
        return
    if words.question:
        if not as_json:
            say(f"{_of(recipients, messages)} will be {words.done}.")
        confirm(words.question, yes=yes)
    done = _by_daemon if running(data_dir) else _without_daemon
    result = done(name, wanted, path, data_dir, reason)
    if as_json:
        print_json(result)
    else:
        _tell_done(result, words)
    if result["errors"]:
        raise typer.Exit(FAILED)


def _tell_done(result: dict[str, Any], words: Words) -> None:
    say(f"{_of(result['recipients'], len(result['messages']))} {words.done}.")
    if result["busy"]:
        say(f"{result['busy']} left alone: being sent at this moment.")


def _of(recipients: int, messages: int) -> str:
    return f"{recipients} recipient{'s' * (recipients != 1)} of {messages} message{'s' * (messages != 1)}"


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
    from relayd.control import ask

    answers = ask(data_dir, f"queue.{name}", {"filter": wanted.to_dict(), "reason": reason, "by": who()})
    result: dict[str, Any] = {"recipients": 0, "messages": [], "busy": 0, "errors": []}
    for answer in answers:
        if answer.gone:
            result["errors"].append(f"worker {answer.slot} does not run now: its mail was left as it is")
        elif answer.error is not None:
            result["errors"].append(f"worker {answer.slot}: {answer.error}")
        else:
            result["recipients"] += answer.result["recipients"]
            result["messages"] += answer.result["messages"]
            result["busy"] += answer.result["busy"]
    for error in result["errors"]:
        warn(error)
    return result


def _without_daemon(name: str, wanted: QueueFilter, path: Path, data_dir: Path, reason: str) -> dict[str, Any]:
    from relayd.cli.offline import steer
    from relayd.core.lifecycle import Act

    warn("the daemon does not run: acting on its spool directly")
    return steer(path, data_dir, Act(name), wanted, by=who(), reason=reason) | {"errors": []}
