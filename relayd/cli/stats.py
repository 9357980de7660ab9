"""relayd stats: how many recipients were delivered, bounced and so on, by day, sender domain, upstream or class."""

# ruff: noqa: PLC0415 - imported where used: `relayd --help` stays quick
from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from relayd.cli.common import ConfigOption, JSONOption, config_path, now_ms
from relayd.cli.out import Column, print_json, print_table
from relayd.cli.place import data_dir_of, reader_of

if TYPE_CHECKING:
    from relayd.spool.ledger import Figure

_DAY = 86_400_000
_COLUMNS = ("accepted", "delivered", "bounced", "expired", "suppressed", "deleted", "waiting", "complaints")


class By(StrEnum):
    """What makes a line."""

    DAY = "day"
    DOMAIN = "domain"
    UPSTREAM = "upstream"
    CLASS = "class"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(stats)


def stats(
    context: typer.Context,
    *,
    days: Annotated[int, typer.Option("--days", metavar="N", min=1, max=400, help="How far back, today included.")] = 7,
    by: Annotated[By, typer.Option("--by", metavar="WHAT", help="day, domain, upstream or class.")] = By.DAY,
    config: ConfigOption = None,
    as_json: JSONOption = False,
) -> None:
    """Count recipients by what became of them: of mail accepted on these days (UTC).

    A bounce that comes later corrects the day on which its mail was accepted. Works whether the daemon runs or not.
    Finished segments are counted once and remembered; others take some 4 s for each million recipients.
    """
    from relayd.cli.offline import become_owner
    from relayd.spool.statistics import gather

    data_dir = data_dir_of(config_path(context, config))
    reader_of(data_dir).close()  # says so where nothing is there
    become_owner(data_dir)
    today = now_ms() // _DAY
    found = gather(data_dir, today - days + 1, today)
    lines = _lines(found, by)
    if as_json:
        print_json({"by": by.value, "days": days, "lines": [{by.value: key, **counts} for key, counts in lines]})
        return
    columns = [Column(by.value, long=by is not By.DAY), *(Column(name, right=True) for name in _COLUMNS)]
    print_table(
        columns,
        ([key, *(str(counts[name]) for name in _COLUMNS)] for key, counts in lines),
        empty=f"No mail was accepted in the last {days} days.",
    )


def _lines(found: Mapping[Figure, int], by: By) -> list[tuple[str, dict[str, Any]]]:
    """Key and counts; days in their order, all else by how much it is."""
    lines: dict[str, Counter[str]] = {}
    for figure, recipients in found.items():
        counts = lines.setdefault(_key(figure, by), Counter())
        counts["accepted"] += recipients
        counts[figure.state.value if figure.state.final else "waiting"] += recipients
        if figure.cls == "complaint":
            counts["complaints"] += recipients
    order = sorted(lines, key=lambda key: key if by is By.DAY else (-lines[key]["accepted"], key))
    return [(key, {name: lines[key][name] for name in _COLUMNS}) for key in order]


def _key(figure: Figure, by: By) -> str:
    if by is By.DAY:
        return datetime.fromtimestamp(figure.day * 86_400, UTC).date().isoformat()
    if by is By.CLASS:
        return figure.cls or (figure.state.value if figure.state.final else "waiting")
    return figure.domain if by is By.DOMAIN else figure.upstream
