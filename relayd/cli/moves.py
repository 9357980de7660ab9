"""relayd queue move: waiting mail to another upstream by hand, where it stays whatever the routes say."""

# ruff: noqa: PLC0415 - imported where used: `relayd --help` stays quick
from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from relayd.cli.acts import AllOption, DryOption, ReasonOption, Words, ask_all, extent, tell_done
from relayd.cli.common import FAILED, FAULT, CommandError, ConfigOption, JSONOption, config_path, environment, who
from relayd.cli.filters import filtered
from relayd.cli.out import print_json, say, warn
from relayd.cli.place import data_dir_of, reader_of

if TYPE_CHECKING:
    from relayd.delivery.steering import Steered, Steering
    from relayd.spool.filter import QueueFilter

FromOption = Annotated[
    str | None,
    typer.Option(
        "--from", metavar="NAME", help="Upstream that it waits for, with all its accounts.", show_default=False
    ),
]
ToOption = Annotated[
    str,
    typer.Option("--to", metavar="NAME", help="Upstream, or NAME/ACCOUNT, that is to carry it.", show_default=False),
]


@filtered(upstream=None)
def move(
    context: typer.Context,
    *,
    to: ToOption,
    upstream: FromOption = None,
    wanted: QueueFilter,
    everything: AllOption = False,
    reason: ReasonOption = "",
    dry_run: DryOption = False,
    config: ConfigOption = None,
    as_json: JSONOption = False,
) -> None:
    """Move waiting mail to another upstream. It is due there at once, and stays there whatever the routes say.

    Held mail stays held. Mail whose sender may not use that upstream is left alone, and so is what is being sent at
    this moment. Who did it, and why, is kept in its history.
    """
    from relayd.control import running
    from relayd.spool.filter import QueueFilter

    wanted = replace(wanted, upstream=upstream)
    if wanted == QueueFilter() and not everything:
        raise CommandError("say which: ids, --from, a filter, or --all", code=FAULT)
    path = config_path(context, config)
    data_dir = data_dir_of(path)
    if dry_run:
        _count(data_dir, wanted, to, as_json=as_json)
        return
    if running(data_dir):
        args = {"filter": wanted.to_dict(), "to": to, "reason": reason, "by": who()}
        result = ask_all(data_dir, "queue.move", args)
    else:
        result = _without_daemon(path, data_dir, wanted, to, reason)
    if as_json:
        print_json(result)
    else:
        tell_done(result, Words("", f"moved to {to}"))
    if result["errors"]:
        raise typer.Exit(FAILED)


def _count(data_dir: Path, wanted: QueueFilter, to: str, *, as_json: bool) -> None:
    from relayd.core.mail import upstream_of

    messages: set[int] = set()
    recipients = 0
    with reader_of(data_dir) as reader:
        for row in reader.find(wanted):
            lane = row.waiting.lane
            if to not in (lane, upstream_of(lane)):
                messages.add(row.message.id)
                recipients += 1
    if as_json:
        print_json({"dry_run": True, "recipients": recipients, "messages": len(messages)})
    else:
        say(f"{extent(recipients, len(messages))} would be moved to {to}, as far as their senders may use it.")


def _without_daemon(path: Path, data_dir: Path, wanted: QueueFilter, to: str, reason: str) -> dict[str, Any]:
    from relayd.cli.offline import steer
    from relayd.config.load import load
    from relayd.delivery.accounts import LaneTable, books_of
    from relayd.delivery.plan import logins_of

    config = load(path, environment())
    lanes = list(logins_of(config))
    if not any(lane == to or lane.startswith(f"{to}/") for lane in lanes):
        raise CommandError(f"there is no upstream {to}: known are {', '.join(config.upstreams)}", code=FAULT)
    table, by = LaneTable(config.routes, books_of(config)), who()

    async def work(steering: Steering) -> Steered:
        return await steering.move(wanted, partial(table.lane_of, to), by=by, reason=reason)

    warn("the daemon does not run: acting on its spool directly")
    return steer(path, data_dir, work) | {"errors": []}
