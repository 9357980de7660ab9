"""relayd inbound list, show, export: mail that came in and is no report about mail of ours. The work is kept.py's."""

from __future__ import annotations

import typer

from relayd.cli.kept import Words, add_commands

app = typer.Typer(
    help="Look at mail that came in and is no report about mail of ours: letters to postmaster and abuse, replies,"
    " bounces of mail that others sent.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
add_commands(
    app,
    Words(
        file="inbound.db",
        place="the file",
        as_was="it came",
        export="Write all mails to files, oldest first: for another program to read.",
        empty="No mail was filed.",
        nothing="no mail was filed yet",
    ),
)
