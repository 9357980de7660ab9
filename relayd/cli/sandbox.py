"""relayd sandbox list, show, export, clear: what was kept instead of being sent. Showing it is kept.py's."""

# ruff: noqa: PLC0415 - imported where used: `relayd --help` stays quick
from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from relayd.cli import kept
from relayd.cli.common import ConfigOption, JSONOption, YesOption, config_path, confirm
from relayd.cli.kept import Form, FormOption, LimitOption, TargetArgument
from relayd.cli.out import say
from relayd.cli.place import data_dir_of

app = typer.Typer(
    help="Look at mail kept by the built-in sandbox.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def _path(context: typer.Context, config: Path | None) -> Path:
    return data_dir_of(config_path(context, config)) / "sandbox.db"


@app.command("list")
def list_mails(
    context: typer.Context, limit: LimitOption = 100, config: ConfigOption = None, as_json: JSONOption = False
) -> None:
    """List the newest mails, newest first."""
    kept.list_kept(_path(context, config), limit, empty="The sandbox has no mail.", as_json=as_json)


@app.command()
def show(
    context: typer.Context,
    mail: Annotated[
        str, typer.Argument(metavar="MAIL", help="Its number in the sandbox, or its message id.", show_default=False)
    ],
    content: Annotated[
        bool, typer.Option("--content", help="Print nothing but the mail itself, as the upstream would have got it.")
    ] = False,
    config: ConfigOption = None,
    as_json: JSONOption = False,
) -> None:
    """Show one mail."""
    kept.show_kept(_path(context, config), mail, "the sandbox", content=content, as_json=as_json)


@app.command()
def export(
    context: typer.Context,
    target: TargetArgument,
    form: FormOption = Form.EML,
    config: ConfigOption = None,
) -> None:
    """Write all mails to files, oldest first."""
    kept.export_kept(_path(context, config), target, form, nothing="nothing was sent to the sandbox yet")


@app.command()
def clear(context: typer.Context, yes: YesOption = False, config: ConfigOption = None) -> None:
    """Forget all mails of the sandbox."""
    from relayd.spool.keepsake import NotKeptError
    from relayd.spool.keepsake import clear as forget

    path = _path(context, config)
    confirm("Forget all mails of the sandbox?", yes=yes)
    try:
        count = forget(path)
    except NotKeptError:
        count = 0
    say(f"{count} mail{'s' * (count != 1)} forgotten.")
