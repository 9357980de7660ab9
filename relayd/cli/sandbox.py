"""relayd sandbox list, show, export, clear: what was kept instead of being sent. Reading is spool/keepsake.py's."""

# ruff: noqa: PLC0415 - imported where used: `relayd --help` stays quick
from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from relayd.cli.common import CommandError, ConfigOption, JSONOption, YesOption, config_path, confirm
from relayd.cli.out import (
    Column,
    content_text,
    iso,
    moment,
    print_json,
    print_json_list,
    print_pairs,
    print_table,
    say,
    write_octets,
)
from relayd.cli.place import data_dir_of

if TYPE_CHECKING:
    from relayd.spool.keepsake import KeptMail

app = typer.Typer(
    help="Look at mail kept by the built-in sandbox.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


class Form(StrEnum):
    """How mails are written to files."""

    EML = "eml"
    MBOX = "mbox"


def _path(context: typer.Context, config: Path | None) -> Path:
    return data_dir_of(config_path(context, config)) / "sandbox.db"


def _entry(mail: KeptMail) -> dict[str, Any]:
    return {
        "number": mail.id,
        "at": iso(mail.at),
        "message": mail.message,
        "sender": mail.sender,
        "recipients": list(mail.recipients),
        "subject": mail.subject,
        "size": mail.size,
    }


@app.command("list")
def list_mails(
    context: typer.Context,
    limit: Annotated[
        int, typer.Option("--limit", "-n", metavar="N", min=1, help="How many of the newest to list.")
    ] = 100,
    config: ConfigOption = None,
    as_json: JSONOption = False,
) -> None:
    """List the newest mails, newest first."""
    from relayd.spool.keepsake import NoSandboxError, listing

    try:
        mails = listing(_path(context, config), limit)
    except NoSandboxError:
        mails = []
    if as_json:
        print_json_list(_entry(mail) for mail in mails)
        return
    print_table(
        [
            Column("number", right=True),
            *(Column(name) for name in ("at", "message")),
            *(Column(name, long=True) for name in ("from", "to", "subject")),
        ],
        ([str(m.id), moment(m.at), m.message, m.sender or "<>", " ".join(m.recipients), m.subject] for m in mails),
        empty="The sandbox has no mail.",
    )


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
    from relayd.spool.keepsake import NoSandboxError
    from relayd.spool.keepsake import show as read

    key = int(mail) if mail.isascii() and mail.isdigit() and len(mail) < 13 else mail.lower()
    try:
        found, octets = read(_path(context, config), key)
    except NoSandboxError as error:
        raise CommandError(str(error)) from None
    if as_json:
        print_json(_entry(found) | {"content": octets.decode("utf-8", "surrogateescape")})
    elif content:
        write_octets(octets)
    else:
        print_pairs(
            [
                ("number", str(found.id)),
                ("at", moment(found.at)),
                ("message", found.message),
                ("from", found.sender or "<>"),
                ("to", ", ".join(found.recipients)),
                ("size", f"{found.size} octets"),
            ]
        )
        say()
        say(content_text(octets))


@app.command()
def export(
    context: typer.Context,
    target: Annotated[
        Path,
        typer.Argument(metavar="TARGET", help="Folder for .eml files, or the mbox file to write.", show_default=False),
    ],
    form: Annotated[
        Form, typer.Option("--format", metavar="FORMAT", help="eml (one file each) or mbox (one file).")
    ] = Form.EML,
    config: ConfigOption = None,
) -> None:
    """Write all mails to files, oldest first."""
    from relayd.spool.keepsake import NoSandboxError
    from relayd.spool.keepsake import export as write

    try:
        count = write(_path(context, config), target, form.value)
    except NoSandboxError as error:
        raise CommandError(str(error)) from None
    say(f"{count} mail{'s' * (count != 1)} written to {target}.")


@app.command()
def clear(context: typer.Context, yes: YesOption = False, config: ConfigOption = None) -> None:
    """Forget all mails of the sandbox."""
    from relayd.spool.keepsake import NoSandboxError
    from relayd.spool.keepsake import clear as forget

    path = _path(context, config)
    confirm("Forget all mails of the sandbox?", yes=yes)
    try:
        count = forget(path)
    except NoSandboxError:
        count = 0
    say(f"{count} mail{'s' * (count != 1)} forgotten.")
