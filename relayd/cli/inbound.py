"""relayd inbound list, show, export: mail that came in and is no report about mail of ours. Showing is kept.py's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from relayd.cli import kept
from relayd.cli.common import ConfigOption, JSONOption, config_path
from relayd.cli.kept import Form, FormOption, LimitOption, TargetArgument
from relayd.cli.place import data_dir_of

app = typer.Typer(
    help="Look at mail that came in and is no report about mail of ours: letters to postmaster and abuse, replies,"
    " bounces of mail that others sent.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def _path(context: typer.Context, config: Path | None) -> Path:
    return data_dir_of(config_path(context, config)) / "inbound.db"


@app.command("list")
def list_mails(
    context: typer.Context, limit: LimitOption = 100, config: ConfigOption = None, as_json: JSONOption = False
) -> None:
    """List the newest mails, newest first."""
    kept.list_kept(_path(context, config), limit, empty="No mail was filed.", as_json=as_json)


@app.command()
def show(
    context: typer.Context,
    mail: Annotated[
        str, typer.Argument(metavar="MAIL", help="Its number in the file, or its message id.", show_default=False)
    ],
    content: Annotated[bool, typer.Option("--content", help="Print nothing but the mail itself, as it came.")] = False,
    config: ConfigOption = None,
    as_json: JSONOption = False,
) -> None:
    """Show one mail."""
    kept.show_kept(_path(context, config), mail, "the file", content=content, as_json=as_json)


@app.command()
def export(
    context: typer.Context,
    target: TargetArgument,
    form: FormOption = Form.EML,
    config: ConfigOption = None,
) -> None:
    """Write all mails to files, oldest first: for another program to read."""
    kept.export_kept(_path(context, config), target, form, nothing="no mail was filed yet")
