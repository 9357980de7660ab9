"""relayd upstream list, test: what the configuration says of the providers, and what they say themselves."""

# ruff: noqa: PLC0415 - imported where used: `relayd --help` stays quick
from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from relayd.cli.common import FAILED, FAULT, CommandError, ConfigOption, JSONOption, read_config
from relayd.cli.out import Column, print_json, print_table, say, warn

if TYPE_CHECKING:
    from relayd.config.models import Config, SMTPUpstream
    from relayd.core.session import ConnectFailedError
    from relayd.delivery.smtp import Seen

app = typer.Typer(help="List and try the providers that mail goes to.", no_args_is_help=True, rich_markup_mode=None)

NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="Name of the upstream in the configuration.", show_default=False)
]


@app.command("list")
def list_upstreams(context: typer.Context, config: ConfigOption = None, as_json: JSONOption = False) -> None:
    """List the upstreams: where they are, how they are spoken to, which routes lead there."""
    entries = _entries(read_config(context, config))
    if as_json:
        print_json(entries)
        return
    columns = [Column(name, long=name in ("address", "user")) for name in ("name", "address", "tls", "user", "routes")]
    columns.insert(4, Column("connections", right=True))
    print_table(
        columns,
        (
            [e["name"], e["address"], e["tls"], e["username"] or "-", str(e["connections"]), _rules(e["routes"])]
            for e in entries
        ),
        empty="no upstreams",
    )


def _entries(config: Config) -> list[dict[str, Any]]:
    from relayd.config.models import SMTPUpstream

    entries: list[dict[str, Any]] = []
    for name, upstream in config.upstreams.items():
        entry: dict[str, Any] = {
            "name": name,
            "type": upstream.type,
            "address": "sandbox",
            "tls": "-",
            "username": None,
        }
        if isinstance(upstream, SMTPUpstream):
            entry |= {
                "address": f"{upstream.host}:{upstream.port}",
                "tls": upstream.tls.value,
                "username": upstream.username,
            }
        entry["connections"] = upstream.limits.connections
        entry["routes"] = [place for place, route in enumerate(config.routes, 1) if route.upstream == name]
        entries.append(entry)
    return entries


def _rules(places: list[int]) -> str:
    return ", ".join(f"#{place}" for place in places) or "none"


@app.command()
def test(context: typer.Context, name: NameArgument, config: ConfigOption = None, as_json: JSONOption = False) -> None:
    """Connect to an upstream, secure the connection, log in, and say what was seen. No mail is sent.

    Exit code 1 when the upstream cannot be used as configured.
    """
    import asyncio

    from relayd.config.models import SMTPUpstream

    whole = read_config(context, config)
    upstream = whole.upstreams.get(name)
    if upstream is None:
        raise CommandError(f"there is no upstream {name}: known are {', '.join(whole.upstreams)}", code=FAULT)
    if not isinstance(upstream, SMTPUpstream):
        if as_json:
            print_json({"name": name, "ok": True, "type": upstream.type})
        else:
            say(f"{name} is the built-in sandbox: it keeps mail instead of sending it, nothing to connect to.")
        return
    if not as_json:
        say(f"{name}: {upstream.host}:{upstream.port}, tls: {upstream.tls.value}")
    found = asyncio.run(_open(name, upstream, whole.hostname))
    report = _report(name, upstream, found)
    if as_json:
        print_json(report)
    else:
        _tell(report)
    if not report["ok"]:
        raise typer.Exit(FAILED)


async def _open(name: str, upstream: SMTPUpstream, hostname: str) -> Seen | ConnectFailedError:
    from relayd.core.session import ConnectFailedError
    from relayd.delivery.smtp import SMTPConnector
    from relayd.delivery.tls import ClientContexts

    try:
        session = await SMTPConnector(name, upstream, hostname, ClientContexts()).open()
    except ConnectFailedError as error:
        return error
    seen = session.seen()
    await session.close()
    return seen


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
