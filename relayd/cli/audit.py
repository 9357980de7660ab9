"""relayd audit: the proof that nothing accepted is lost. What is checked is spool/audit.py's."""

# ruff: noqa: PLC0415 - imported where used: `relayd --help` stays quick
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from relayd.cli.common import FAILED, ConfigOption, JSONOption, config_path
from relayd.cli.out import print_json, print_pairs, say, warn
from relayd.cli.place import data_dir_of, reader_of

if TYPE_CHECKING:
    from relayd.spool.audit import AuditReport


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("audit")(check)


def check(context: typer.Context, config: ConfigOption = None, as_json: JSONOption = False) -> None:
    """Prove that nothing accepted is lost.

    Every recipient ever accepted waits or has exactly one final outcome, and its history says the same.
    Reads the whole spool, whether the daemon runs or not. Exit code 1 when something contradicts.
    """
    from relayd.spool.audit import audit

    data_dir = data_dir_of(config_path(context, config))
    reader_of(data_dir).close()  # says so where there is nothing to audit
    report = audit(data_dir / "spool")
    if as_json:
        print_json(_as_dict(report))
    else:
        _tell(report)
    if not report.clean:
        raise typer.Exit(FAILED)


def _as_dict(report: AuditReport) -> dict[str, Any]:
    from relayd.core.ids import format_id

    return {
        "clean": report.clean,
        "segments": report.segments,
        "messages": report.messages,
        "accepted": report.accepted,
        "waiting": {state.value: count for state, count in report.waiting.items()},
        "final": {state.value: count for state, count in report.final.items()},
        "reports_owed": report.owed,
        "discrepancy_count": report.discrepancy_count,
        "discrepancies": [
            {
                "segment": each.segment,
                "message": format_id(each.message) if each.message is not None else None,
                "recipient": each.n,
                "problem": each.problem,
            }
            for each in report.discrepancies
        ],
    }


def _tell(report: AuditReport) -> None:
    print_pairs(
        [
            ("segments", str(report.segments)),
            ("messages", str(report.messages)),
            ("recipients accepted", str(report.accepted)),
            *((f"  {state.value}", str(count)) for state, count in [*report.waiting.items(), *report.final.items()]),
            ("reports owed", str(report.owed)),
        ]
    )
    for each in report.discrepancies:
        warn(str(each))
    hidden = report.discrepancy_count - len(report.discrepancies)
    if hidden:
        warn(f"and {hidden} more")
    if report.clean:
        say("Clean: every recipient accepted waits or has exactly one final outcome.", style="green")
    else:
        warn(f"{report.discrepancy_count} discrepancies")
