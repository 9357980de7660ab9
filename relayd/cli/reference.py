"""Writes docs/cli.md from the commands themselves, so that the page and the help never differ."""

from __future__ import annotations

from typing import Any

import typer.main

from relayd.cli.main import app

_INTRODUCTION = """\
# Commands

Generated from the commands themselves (`relayd COMMAND --help` says the same): change relayd/cli, then run
scripts/generate-docs.

All reading commands take `--json` and print JSON for programs: moments in RFC 3339 (UTC), nothing left out. Exit codes:
0 done, 1 failed, 2 wrong usage or a faulty configuration. Errors go to standard error, one line each.

`--config` may stand before or behind the command. Commands that look at the queue need no secret of the configuration
and work beside a running daemon or without one. Commands that change the queue go through the running daemon; without
one they open its spool themselves, under its lock and as its user.
"""


def render() -> str:
    """The whole page, in Markdown."""
    root: Any = typer.main.get_command(app)
    context = root.make_context("relayd", [], resilient_parsing=True)
    return "\n".join([_INTRODUCTION, *_sections(root, context, "relayd")]).rstrip() + "\n"


def _sections(command: Any, context: Any, name: str) -> list[str]:
    """A command's section, those of its subcommands behind it."""
    subcommands = getattr(command, "commands", None)
    lines = [f"## `{name}`" if name.count(" ") < 2 else f"### `{name}`", "", _prose(command.help), ""]
    if not subcommands:
        lines += [f"    {_usage(command, context, name)}", ""]
    lines += _table(command, context)
    for word, each in (subcommands or {}).items():
        inner = each.context_class(each, parent=context, info_name=word)
        lines += _sections(each, inner, f"{name} {word}")
    return lines


def _usage(command: Any, context: Any, name: str) -> str:
    return " ".join([name, *command.collect_usage_pieces(context)])


def _prose(text: str | None) -> str:
    return (text or "").strip()


def _table(command: Any, context: Any) -> list[str]:
    """What a command takes; --help and what completes shells is left out."""
    hidden = {"help", "install_completion", "show_completion"}
    if context.parent is not None:
        hidden.add("config")  # said once, above
    params = [param for param in command.get_params(context) if param.name not in hidden]
    if not params:
        return []
    rows = [f"| {_cell(f'`{_written(param)}`')} | {_cell(getattr(param, 'help', None) or '')} |" for param in params]
    return ["| | |", "|---|---|", *rows, ""]


def _written(param: Any) -> str:
    if param.param_type_name == "argument":
        return str(param.metavar or param.name.upper())
    names = ", ".join([*param.opts, *param.secondary_opts])
    return names if param.is_flag else f"{names} {param.metavar}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
