"""relayd queue list, show, stats: what waits, read from the spool whether a daemon runs or not.

Changing it is acts.py's and moves.py's.
"""

# ruff: noqa: PLC0415 - imported where used: `relayd --help` stays quick
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from relayd.cli import acts, moves
from relayd.cli.common import ConfigOption, JSONOption, config_path, now_ms
from relayd.cli.filters import AnyStateOption, filtered
from relayd.cli.out import Column, age, iso, moment, print_json, print_json_list, print_pairs, print_table, say, warn
from relayd.cli.place import data_dir_of, reader_of

if TYPE_CHECKING:
    from relayd.cli.budgets import Budgets
    from relayd.core.event import Event
    from relayd.core.units import Millis
    from relayd.spool.filter import QueueFilter
    from relayd.spool.reader import QueueRow
    from relayd.spool.store import Waiting

app = typer.Typer(
    help="See what waits, and hold, release, retry, move, fail or delete it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_COLUMNS = ("id", "state", "age", "next try", "upstream", "from", "to")
TABLE_LIMIT = 200
"""Rows that a person is shown without asking for more."""


def _entry(row: QueueRow) -> dict[str, Any]:
    from relayd.cli.message import recipient_dict
    from relayd.core.ids import format_id
    from relayd.core.priority import priority_of

    message = row.message
    return {
        "id": format_id(message.id),
        "accepted_at": iso(message.accepted_at),
        "sender": message.envelope.sender,
        "subject": message.subject,
        "size": message.size,
        "campaign": message.campaign,
        "priority": priority_of(message.priority).value,
        "credential": message.origin.credential,
        **recipient_dict(row.waiting),
    }


@app.command("list")
@filtered(state=AnyStateOption)
def list_queue(
    context: typer.Context,
    *,
    wanted: QueueFilter,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", "-n", metavar="N", min=1, help=f"Rows at most; without it {TABLE_LIMIT} in a table, all in JSON."
        ),
    ] = None,
    config: ConfigOption = None,
    as_json: JSONOption = False,
) -> None:
    """List recipients that wait, or that --state asks for, one line each, oldest mail first."""
    from relayd.core.ids import format_id
    from relayd.spool.filter import QueueFilter

    with reader_of(data_dir_of(config_path(context, config))) as reader:
        rows = reader.find(wanted)
        if as_json:
            print_json_list(_entry(row) for row in islice(rows, limit))
            return
        shown = list(islice(rows, limit or TABLE_LIMIT))
        more = next(rows, None) is not None
    columns = [Column(name, long=name in ("from", "to")) for name in _COLUMNS]
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
    left = waiting.due - now_ms()
    return age(waiting.due) if left > 0 else "now"


@app.command()
@filtered(state=AnyStateOption)
def show(
    context: typer.Context,
    *,
    wanted: QueueFilter,
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", min=1, help="Messages at most.")] = 20,
    config: ConfigOption = None,
    as_json: JSONOption = False,
) -> None:
    """Show what keeps messages waiting.

    For every recipient: its state, the next try, and the last reply of the upstream.
    """
    from relayd.cli.budgets import budgets_at

    found: list[Shown] = []
    path = config_path(context, config)
    budgets = budgets_at(path)
    with reader_of(data_dir_of(path)) as reader:
        groups = groupby(reader.find(wanted), key=lambda row: row.message.id)
        for message, rows in islice(groups, limit):
            found.append(Shown(tuple(rows), _last_replies(reader.history(message).events), budgets))
    if as_json:
        print_json_list(each.as_dict() for each in found)
        return
    if not found:
        say("Nothing fits.")
    for number, each in enumerate(found):
        if number:
            say()
        each.tell()


def _last_replies(events: Sequence[Event]) -> dict[int, tuple[Millis, str]]:
    """When each recipient was last told something, and what."""
    return {event.n: (event.at, str(event.detail["reply"])) for event in events if event.detail.get("reply")}


@dataclass(frozen=True, slots=True)
class Shown:
    """A message with those of its recipients that were asked for."""

    rows: tuple[QueueRow, ...]
    replies: dict[int, tuple[Millis, str]]
    budgets: Budgets | None = None

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        from relayd.cli.budgets import budget_of
        from relayd.cli.message import recipient_dict

        entry = _entry(self.rows[0])
        about = ("id", "accepted_at", "sender", "subject", "size", "campaign", "priority", "credential")
        kept = {key: entry[key] for key in about}
        recipients = []
        for row in self.rows:
            at, reply = self.replies.get(row.waiting.n, (None, None))
            left = budget_of(self.budgets, row.waiting)
            budget = {"waits_for_budget": left.as_dict() if left is not None else None}
            recipients.append(recipient_dict(row.waiting) | {"last_reply_at": iso(at), "last_reply": reply} | budget)
        return kept | {"recipients": recipients}

    def tell(self) -> None:
        """For people."""
        from relayd.cli.budgets import budget_of, waits_for
        from relayd.core.ids import format_id
        from relayd.core.priority import priority_of

        message = self.rows[0].message
        print_pairs(
            [
                ("message", format_id(message.id)),
                ("accepted", f"{moment(message.accepted_at)} ({age(message.accepted_at)} ago)"),
                ("from", message.envelope.sender or "<>"),
                ("subject", message.subject),
                ("campaign", message.campaign or ""),
                ("priority", priority_of(message.priority).value if message.priority else ""),
                ("credential", message.origin.credential or ""),
            ]
        )
        for waiting in (row.waiting for row in self.rows):
            tries = f"{waiting.attempts} {'try' if waiting.attempts == 1 else 'tries'}"
            say(f"  {waiting.recipient.address}: {waiting.state} for {waiting.lane or 'no upstream'}, {tries}")
            if waiting.due is not None:
                say(f"    next try   {moment(waiting.due)} ({_next_try(waiting)})")
            if left := budget_of(self.budgets, waiting):
                say(f"    {waits_for(left)}")
            if waiting.n in self.replies:
                at, reply = self.replies[waiting.n]
                say(f"    last reply {reply} ({moment(at)})")


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


app.command("move")(moves.move)
acts.register(app)
