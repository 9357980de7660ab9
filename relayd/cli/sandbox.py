"""relayd sandbox list, show, export, clear: what was kept instead of being sent. All but clear is kept.py's."""

# ruff: noqa: PLC0415 - imported where used: `relayd --help` stays quick
from __future__ import annotations

import typer

from relayd.cli.common import ConfigOption, YesOption, confirm, counted
from relayd.cli.kept import Words, add_commands, kept_in
from relayd.cli.out import say

WORDS = Words(
    file="sandbox.db",
    place="the sandbox",
    as_was="the upstream would have got it",
    export="Write all mails to files, oldest first.",
    empty="The sandbox has no mail.",
    nothing="nothing was sent to the sandbox yet",
)

app = typer.Typer(
    help="Look at mail kept by the built-in sandbox.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
add_commands(app, WORDS)


@app.command()
def clear(context: typer.Context, yes: YesOption = False, config: ConfigOption = None) -> None:
    """Forget all mails of the sandbox."""
    from relayd.spool.keepsake import NotKeptError
    from relayd.spool.keepsake import clear as forget

    path = kept_in(WORDS, context, config)
    confirm("Forget all mails of the sandbox?", yes=yes)
    try:
        count = forget(path)
    except NotKeptError:
        count = 0
    say(f"{counted(count, 'mail')} forgotten.")
