"""relayd bounce explain: what a mail that came back, or one SMTP reply, means. Reading is core/bounce's."""

# ruff: noqa: PLC0415 - imported where used: `relayd --help` stays quick
from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from relayd.cli.common import FAULT, CommandError, JSONOption
from relayd.cli.out import print_json, print_json_list, print_pairs, say

if TYPE_CHECKING:
    from relayd.core.bounce.verdict import Verdict

MAX_FILE = 1 << 20
"""Octets of a file that are read; half of that is looked at."""

app = typer.Typer(help="Understand mail that came back.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def root() -> None:
    """Understand mail that came back."""


@app.command()
def explain(
    file: Annotated[
        str | None,
        typer.Argument(metavar="FILE", help="The mail that came back; - for standard input.", show_default=False),
    ] = None,
    reply: Annotated[
        str | None,
        typer.Option("--reply", metavar="TEXT", help='A bare SMTP reply instead: "550 5.1.1 No such user".'),
    ] = None,
    as_json: JSONOption = False,
) -> None:
    """Tell why a mail did not arrive, and what to do, in English and Japanese: one answer for each recipient."""
    from relayd.core.bounce.explain import explain as judge
    from relayd.core.bounce.explain import explain_reply

    if (file is None) == (reply is None):
        raise CommandError("give either FILE (- for standard input) or --reply", code=FAULT)
    if reply is not None:
        try:
            verdict = explain_reply(reply)
        except ValueError as error:
            raise CommandError(str(error), code=FAULT) from None
        if as_json:
            print_json(verdict.as_json())
        else:
            _print(verdict)
        return
    verdicts = judge(_content(file or "-"))
    if as_json:
        print_json_list(verdict.as_json() for verdict in verdicts)
        return
    for number, verdict in enumerate(verdicts):
        if number:
            say()
        _print(verdict)


def _content(name: str) -> bytes:
    if name == "-":
        return sys.stdin.buffer.read(MAX_FILE)
    with Path(name).open("rb") as stream:
        return stream.read(MAX_FILE)


def _print(verdict: Verdict) -> None:
    facts = verdict.as_json()
    kind = f"{facts['kind']} ({facts['action']})" if facts["action"] else str(facts["kind"])
    print_pairs(
        [
            ("recipient", str(facts["recipient"])),
            ("kind", kind),
            ("class", f"{facts['class']} ({'hard' if facts['hard'] else 'soft'})" if facts["class"] else ""),
            ("status", str(facts["status"])),
            ("reply code", str(facts["reply_code"] or "")),
            ("remote host", str(facts["remote_mta"])),
            ("words", str(facts["diagnostic"])),
            ("message id", str(facts["message_id"])),
        ]
    )
    say(str(facts["sentence_en"]))
    say(str(facts["sentence_ja"]))
