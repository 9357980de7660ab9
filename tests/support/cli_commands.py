"""Every command of the CLI with a hostile text in the place of each argument and option, one at a time."""

from __future__ import annotations

from typing import Any

import typer

from relayd.cli.main import app

EVIL = "a@b\x1b[2J\x9b31m\u202egnp.exe\u2028c\r\nd\x7f\u0663"


def hostile_commands() -> list[tuple[str, ...]]:
    """All but `serve`. The commands of the queue share their options, so two of them stand for the others."""
    found: list[tuple[str, ...]] = []

    def walk(command: Any, names: tuple[str, ...]) -> None:
        for name, each in getattr(command, "commands", {}).items():
            walk(each, (*names, name))
        if hasattr(command, "commands") or names == ("serve",):
            return
        parameters = [each for each in command.params if each.name != "config"]
        arguments = [each for each in parameters if each.param_type_name == "argument"]
        options = [each for each in parameters if each.param_type_name == "option" and not each.is_flag]
        if arguments:
            found.append((*names, "--", EVIL, *("x" for each in arguments[1:] if each.required)))
        if names[0] != "queue" or names[1] in ("list", "move"):
            needed = ["x" for each in arguments if each.required]
            found.extend((*names, f"{each.opts[0]}={EVIL}", *needed) for each in options)

    walk(typer.main.get_command(app), ())
    return found
