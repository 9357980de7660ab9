"""The command `relayd`: joins the groups of commands, and turns what goes wrong into a line and an exit code."""

# ruff: noqa: PLC0415 - imported where used: `relayd --help` stays quick
from __future__ import annotations

import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from relayd.cli import (
    audit,
    block,
    bounce,
    config,
    daemon,
    domain,
    inbound,
    message,
    queue,
    route,
    sandbox,
    sender,
    spool,
    stats,
    tracking_domain,
    upstream,
    why,
)
from relayd.cli.common import FAILED, FAULT, CommandError, ConfigOption, JSONOption, Settings
from relayd.cli.out import clean, clean_lines, print_json, say, warn


class Commands(TyperGroup):
    """The outermost group: the one place where a failure becomes words for a person."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for arg in args:
            try:
                arg.encode()
            except UnicodeEncodeError:  # octets that Python could not decode: nothing below could store or print them
                raise typer.BadParameter(f"an argument is not UTF-8 text: {clean(arg)}") from None
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, BrokenPipeError, KeyboardInterrupt):
            raise
        except Exception as error:
            debug = isinstance(ctx.obj, Settings) and ctx.obj.debug
            code = _report(error, debug=debug)
            if code is None:  # a usage error: typer words those itself
                raise
            raise typer.Exit(code) from None


def _report(error: Exception, *, debug: bool) -> int | None:
    """Say on standard error what went wrong; the exit code, or None where typer says it better."""
    if _is_typers(error):
        return None
    if debug:
        typer.echo(clean_lines("".join(traceback.format_exception(error))), err=True)
    if isinstance(error, CommandError):
        return _fail(str(error), error.details, error.code)
    known = _known(error)
    if known is not None:
        return _fail(*known)
    if not debug:
        # the text of an unforeseen error may hold anything, secrets too: only its kind is told
        warn(f'internal error ({type(error).__name__}). Run "relayd --debug …" to see where.')
    return FAILED


def _is_typers(error: Exception) -> bool:
    """Usage errors carry an exit code and show themselves."""
    return hasattr(error, "exit_code") and hasattr(error, "show")


def _known(error: Exception) -> tuple[str, list[str], int] | None:
    """Message, details and exit code of the failures that other parts foresee."""
    import sqlite3

    from relayd.config.fault import ConfigError
    from relayd.control import ControlError
    from relayd.domains.changes import DomainError
    from relayd.spool.store import StoreError

    if isinstance(error, ConfigError):
        return "the configuration cannot be used:", str(error).splitlines(), FAULT
    if isinstance(error, ControlError):
        return str(error), error.faults, FAILED
    if isinstance(error, StoreError | DomainError):
        return str(error), [], FAULT if isinstance(error, DomainError) else FAILED
    if isinstance(error, sqlite3.Error):
        return f"the database cannot be used: {error}", [], FAILED
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}", [], FAILED
    return None


def _fail(message: str, details: Any, code: int) -> int:
    warn(clean(message))
    for detail in details:
        typer.echo(f"  {clean_lines(detail)}", err=True)
    return code


app = typer.Typer(
    name="relayd",
    cls=Commands,
    help="An SMTP relay daemon: keeps, signs, routes and delivers the mail of your applications.\n\n"
    "Exit codes: 0 done, 1 failed, 2 wrong usage or a faulty configuration.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def root(
    context: typer.Context,
    config: ConfigOption = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an internal error came from.")] = False,
) -> None:
    """Options for every command."""
    context.obj = Settings(config, debug)


@app.command()
def version(as_json: JSONOption = False) -> None:
    """Print the versions of relayd, Python and SQLite."""
    import platform
    import sqlite3

    from relayd.version import installed

    versions = {
        "relayd": installed(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
    }
    if as_json:
        print_json(versions)
    else:
        say(f"relayd {versions['relayd']} (Python {versions['python']}, SQLite {versions['sqlite']})")


daemon.register(app)
app.add_typer(config.app, name="config")
app.add_typer(queue.app, name="queue")
app.add_typer(inbound.app, name="inbound")
app.add_typer(message.app, name="message")
app.add_typer(route.app, name="route")
app.add_typer(upstream.app, name="upstream")
app.add_typer(sandbox.app, name="sandbox")
app.add_typer(spool.app, name="spool")
app.add_typer(domain.app, name="domain")
app.add_typer(tracking_domain.app, name="tracking-domain")
app.add_typer(sender.app, name="sender")
app.add_typer(bounce.app, name="bounce")
app.add_typer(block.app, name="block")
why.register(app)
stats.register(app)
audit.register(app)


def main() -> None:
    """The console script: runs the command of sys.argv and ends the process with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        # a terminal that cannot show Japanese gets escapes instead of a traceback
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    app(prog_name="relayd")
