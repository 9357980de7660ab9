"""What `relayd sandbox` and `relayd inbound` have in common: list, show and export the mails of one file.

Reading the file is spool/keepsake.py's.
"""

# ruff: noqa: PLC0415 - imported where used: `relayd --help` stays quick
from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from relayd.cli.common import CommandError
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


def list_kept(path: Path, limit: int, *, empty: str, as_json: bool) -> None:
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


def show_kept(path: Path, mail: str, where: str, *, content: bool, as_json: bool) -> None:
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


def export_kept(path: Path, target: Path, form: Form, *, nothing: str) -> None:
    """Write all mails to files, oldest first. Raises CommandError with `nothing` where there is no file."""
    from relayd.spool.keepsake import NotKeptError
    from relayd.spool.keepsake import export as write

    try:
        count = write(path, target, form.value)
    except NotKeptError:
        raise CommandError(nothing) from None
    say(f"{count} mail{'s' * (count != 1)} written to {target}.")
