"""The commands that `relayd sandbox` and `relayd inbound` have in common: list, show and export the mails of one file.

Reading the file is spool/keepsake.py's.
"""

# ruff: noqa: PLC0415 - imported where used: `relayd --help` stays quick
from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from relayd.cli.common import CommandError, ConfigOption, JSONOption, config_path, counted
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


class Form(StrEnum):
    """How mails are written to files."""

    EML = "eml"
    MBOX = "mbox"


LimitOption = Annotated[int, typer.Option("--limit", "-n", metavar="N", min=1, help="How many of the newest to list.")]
TargetArgument = Annotated[
    Path,
    typer.Argument(metavar="TARGET", help="Folder for .eml files, or the mbox file to write.", show_default=False),
]
FormOption = Annotated[Form, typer.Option("--format", metavar="FORMAT", help="eml (one file each) or mbox (one file).")]


@dataclass(frozen=True, slots=True)
class Words:
    """How the mails of one file are spoken of."""

    file: str
    """Its name in `data_dir`."""
    place: str
    """What it is to people, like "the sandbox"."""
    as_was: str
    """What --content prints: the mail itself, as …"""
    export: str
    """What export does."""
    empty: str
    """There is nothing to list."""
    nothing: str
    """There is nothing to export."""


def add_commands(app: typer.Typer, words: Words) -> None:
    """Add `list`, `show` and `export`."""
    # as defaults: annotations are read outside of this function, where nobody knows `words`
    mail_argument = typer.Argument(
        ..., metavar="MAIL", help=f"Its number in {words.place}, or its message id.", show_default=False
    )
    content_option = typer.Option(False, "--content", help=f"Print nothing but the mail itself, as {words.as_was}.")

    @app.command("list")
    def list_mails(
        context: typer.Context, limit: LimitOption = 100, config: ConfigOption = None, as_json: JSONOption = False
    ) -> None:
        """List the newest mails, newest first."""
        _list(kept_in(words, context, config), limit, empty=words.empty, as_json=as_json)

    @app.command()
    def show(
        context: typer.Context,
        mail: str = mail_argument,
        content: bool = content_option,
        config: ConfigOption = None,
        as_json: JSONOption = False,
    ) -> None:
        """Show one mail."""
        _show(kept_in(words, context, config), mail, words.place, content=content, as_json=as_json)

    @app.command(help=words.export)
    def export(
        context: typer.Context, target: TargetArgument, form: FormOption = Form.EML, config: ConfigOption = None
    ) -> None:
        _export(kept_in(words, context, config), target, form, nothing=words.nothing)


def kept_in(words: Words, context: typer.Context, config: Path | None) -> Path:
    """The file that the configuration means."""
    return data_dir_of(config_path(context, config)) / words.file


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


def _list(path: Path, limit: int, *, empty: str, as_json: bool) -> None:
    """The newest mails as a table or JSON; `empty` says that there are none."""
    from relayd.spool.keepsake import NotKeptError, listing

    try:
        mails = listing(path, limit)
    except NotKeptError:
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
        empty=empty,
    )


def _show(path: Path, mail: str, where: str, *, content: bool, as_json: bool) -> None:
    """One mail by its number, or by its message id. Raises CommandError where `where` has none such."""
    from relayd.spool.keepsake import NotKeptError
    from relayd.spool.keepsake import show as read

    key = int(mail) if mail.isascii() and mail.isdigit() and len(mail) < 13 else mail.lower()
    try:
        found, octets = read(path, key)
    except NotKeptError:
        raise CommandError(f"{where} has no mail {key}") from None
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


def _export(path: Path, target: Path, form: Form, *, nothing: str) -> None:
    """Write all mails to files, oldest first. Raises CommandError with `nothing` where there is no file."""
    from relayd.spool.keepsake import NotKeptError
    from relayd.spool.keepsake import export as write

    try:
        count = write(path, target, form.value)
    except NotKeptError:
        raise CommandError(nothing) from None
    say(f"{counted(count, 'mail')} written to {target}.")
