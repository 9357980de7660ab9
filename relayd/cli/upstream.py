"""relayd upstream test: what a provider shows when it is connected to. Listing is listing.py's."""

# ruff: noqa: PLC0415 - imported where used: `relayd --help` stays quick
from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from relayd.cli import standing
from relayd.cli.common import FAILED, FAULT, CommandError, ConfigOption, JSONOption, config_path, now_ms
from relayd.cli.listing import list_upstreams
from relayd.cli.login import NameArgument, list_presets, login
from relayd.cli.out import print_json, say, warn
from relayd.cli.upstreams import upstreams_of

if TYPE_CHECKING:
    from relayd.config.models import Config, SMTPUpstream
    from relayd.core.session import ConnectFailedError
    from relayd.delivery.oauth.keeper import TokenKeeper
    from relayd.delivery.smtp import Seen

app = typer.Typer(help="List and try the providers that mail goes to.", no_args_is_help=True, rich_markup_mode=None)

app.command("presets")(list_presets)
app.command("login")(login)
app.command("list")(list_upstreams)
standing.register(app)


@app.command()
def test(
    context: typer.Context,
    name: NameArgument,
    account: Annotated[
        str | None,
        typer.Option("--account", metavar="ADDRESS", help="Which account. Absent: the first.", show_default=False),
    ] = None,
    config: ConfigOption = None,
    as_json: JSONOption = False,
) -> None:
    """Connect to an upstream, secure the connection, log in, and say what was seen. No mail is sent.

    Exit code 1 when the upstream cannot be used as configured.
    """
    import asyncio

    from relayd.config.models import SMTPUpstream

    whole = upstreams_of(config_path(context, config), name)
    upstream = whole.upstreams.get(name)
    if upstream is None:
        raise CommandError(f"there is no upstream {name}: known are {', '.join(whole.upstreams)}", code=FAULT)
    if not isinstance(upstream, SMTPUpstream):
        if as_json:
            print_json({"name": name, "ok": True, "type": upstream.type})
        else:
            say(f"{name} is the built-in sandbox: it keeps mail instead of sending it, nothing to connect to.")
        return
    lane, upstream = _account(whole, name, account)
    if not as_json:
        say(f"{lane}: {upstream.host}:{upstream.port}, tls: {upstream.tls.value}")
    found = asyncio.run(_open(lane, upstream, whole))
    report = _report(name, upstream, found)
    if as_json:
        print_json(report)
    else:
        _tell(report)
    if not report["ok"]:
        raise typer.Exit(FAILED)
    _resume(whole.data_dir, lane)


def _resume(data_dir: Path, lane: str) -> None:
    """Let a running daemon try at once, where it had paused this login."""
    from relayd.control import ControlError, ask

    with contextlib.suppress(ControlError, OSError):
        ask(data_dir, "upstream.try", {"lane": lane})


def _account(config: Config, name: str, account: str | None) -> tuple[str, SMTPUpstream]:
    """The lane that is meant, and its upstream with the account's own login. Raises CommandError."""
    from relayd.config.models import SMTPUpstream
    from relayd.delivery.plan import logins_of

    mine = [
        (lane, upstream, login.name if login else "")
        for lane, (owner, upstream, login) in logins_of(config).items()
        if owner == name and isinstance(upstream, SMTPUpstream)
    ]
    for lane, upstream, known in mine:
        if account is None or account == known:
            return lane, upstream
    known = ", ".join(found for _, _, found in mine if found) or "none"
    raise CommandError(f"{name} has no account {account}: known are {known}", code=FAULT)


async def _open(lane: str, upstream: SMTPUpstream, config: Config) -> Seen | ConnectFailedError:
    from relayd.core.session import ConnectFailedError
    from relayd.delivery.smtp import SMTPConnector
    from relayd.delivery.tls import ClientContexts

    async with _tokens(upstream, config) as keeper:
        from relayd.delivery.plan import bearer_of

        bearer = bearer_of(lane, config, keeper)
        try:
            session = await SMTPConnector(lane, upstream, config.hostname, ClientContexts(), bearer).open()
        except ConnectFailedError as error:
            return error
        seen = session.seen()
        await session.close()
        return seen


@asynccontextmanager
async def _tokens(upstream: SMTPUpstream, config: Config) -> AsyncIterator[TokenKeeper | None]:
    """The kept tokens, where this upstream logs in by them. Raises CommandError."""
    if upstream.oauth is None:
        yield None
        return
    import os

    from relayd.cli.offline import become_owner
    from relayd.config.secret import resolve_secret
    from relayd.delivery.oauth.exchange import Exchange
    from relayd.delivery.oauth.keeper import TokenKeeper
    from relayd.spool.state import StateDB, StateError
    from relayd.spool.tokens import TokenStore

    if not config.data_dir.is_dir():
        config.data_dir.mkdir(mode=0o700, parents=True)
    become_owner(config.data_dir)
    exchange, state = Exchange(), StateDB(config.data_dir / "state.db")
    try:
        await state.open()
        store = TokenStore(state, resolve_secret(config))
        yield TokenKeeper(store, exchange, f"command-{os.getpid()}", now_ms)
    except (StateError, OSError) as error:
        raise CommandError(str(error)) from None
    finally:
        await exchange.close()
        await state.close()


def _report(name: str, upstream: SMTPUpstream, found: Seen | ConnectFailedError) -> dict[str, Any]:
    from relayd.core.session import ConnectFailedError

    report: dict[str, Any] = {"name": name, "endpoint": f"{upstream.host}:{upstream.port}"}
    if isinstance(found, ConnectFailedError):
        outcome = found.outcome
        return report | {
            "ok": False,
            "stage": outcome.stage.value,
            "reply": str(outcome.reply),
            "transcript": found.transcript,
        }
    facts = asdict(found)
    return report | {"ok": True, **facts, "user": upstream.username}


_FAILED_AT = {
    "connect": "No connection, or no greeting",
    "tls": "The connection could not be secured, so nothing secret was sent",
    "ehlo": "EHLO was not answered as it should be",
    "auth": "The login failed",
}


def _tell(report: dict[str, Any]) -> None:
    if not report["ok"]:
        say("The dialogue:")
        say(_indented(report["transcript"]))
        warn(f"{_FAILED_AT.get(report['stage'], 'Failed at ' + report['stage'])}: {report['reply']}")
        return
    say(f"  connected   {report['address']}")
    say(f"  greeting    {report['greeting']}")
    if report["tls"]:
        say(f"  secured     {report['tls']}, {report['cipher']}")
        certificate = report["certificate"]
        if certificate:
            say(f"  certificate {certificate['subject']}")
            say(f"    issued by {certificate['issuer']}")
            say(f"    valid to  {certificate['until']}")
        else:
            say("  certificate not verified (tls: opportunistic)")
    else:
        say("  not secured: everything crosses the network in plain")
    for keyword, value in sorted(report["extensions"].items()):
        say(f"  offers      {keyword.upper()} {value}".rstrip())
    if report["mechanism"]:
        say(f"  logged in   as {report['user']} by {report['mechanism']}")
    else:
        say("  no login    (no username is configured)")
    say("The upstream can be used.", style="green")


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
