"""relayd upstream presets and login: what is known of providers, and a consent that is stored for the daemon."""

# ruff: noqa: PLC0415 - imported where used: `relayd --help` stays quick
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from relayd.cli.common import FAULT, CommandError, ConfigOption, JSONOption, now_ms, read_config
from relayd.cli.out import print_json, say

if TYPE_CHECKING:
    from relayd.config.models import Config
    from relayd.config.presets import Preset
    from relayd.delivery.oauth.grants import Grant, Issued

NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="Name of the upstream in the configuration.", show_default=False)
]
AccountOption = Annotated[
    str | None,
    typer.Option("--account", metavar="ADDRESS", help="Which account, where there are several.", show_default=False),
]


def list_presets(as_json: JSONOption = False) -> None:
    """List the providers that relayd knows, with the source of each figure."""
    from relayd.config.presets import PRESETS
    from relayd.core.units import format_duration

    if as_json:
        print_json([_facts(preset) for preset in PRESETS.values()])
        return
    for preset in PRESETS.values():
        say(f"{preset.name}: {preset.title}")
        say(f"  host      {preset.host}")
        say(f"  ports     {', '.join(str(port) for port in preset.ports)}  ({preset.source})")
        if preset.login:
            say(f"  login     {preset.login}")
        if preset.per:
            say(f"  per       {preset.per}")
        for key, value in preset.limits.items():
            say(f"  limit     {key}: {value}")
        for figure, source in preset.figures.items():
            say(f"  figure    {figure}  ({source})")
        for throttle in preset.throttles:
            length = format_duration(throttle.seconds)
            say(f"  rule      {throttle.match}: {throttle.action} for {length}  ({throttle.source})")


def _facts(preset: Preset) -> dict[str, Any]:
    return {
        "name": preset.name,
        "title": preset.title,
        "host": preset.host,
        "ports": list(preset.ports),
        "source": preset.source,
        "username": preset.username or None,
        "login": preset.login,
        "oauth_provider": preset.provider or None,
        "per": preset.per or None,
        "limits": dict(preset.limits),
        "figures": dict(preset.figures),
    }


def login(
    context: typer.Context, name: NameArgument, account: AccountOption = None, config: ConfigOption = None
) -> None:
    """Log in to an upstream as a person, once, and store the refresh token encrypted for the daemon.

    Microsoft shows a code to type in any browser; Google needs a browser on this machine, or an SSH tunnel to it.
    """
    import asyncio

    from relayd.cli.offline import become_owner
    from relayd.config.secret import resolve_secret

    whole = read_config(context, config)
    grant = grant_named(whole, name, account)
    if grant.flow != "refresh-token":
        raise CommandError(f"{grant.title} has flow: {grant.flow}, which needs no person", code=FAULT)
    if not grant.provider:
        raise CommandError(f"{grant.title} names no provider whose login is known (microsoft, google)", code=FAULT)
    if not whole.data_dir.is_dir():
        whole.data_dir.mkdir(mode=0o700, parents=True)
    become_owner(whole.data_dir)
    asyncio.run(_login(grant, whole.data_dir, resolve_secret(whole)))
    say(f"Logged in. {grant.title} works with it from the next connection on.", style="green")


def grant_named(config: Config, name: str, account: str | None) -> Grant:
    """The login that the command means. Raises CommandError."""
    from relayd.delivery.plan import grants_of

    if name not in config.upstreams:
        raise CommandError(f"there is no upstream {name}: known are {', '.join(config.upstreams)}", code=FAULT)
    mine = {grant.account: grant for grant in grants_of(config).values() if grant.upstream == name}
    if not mine:
        raise CommandError(f"{name} does not log in by token: it has no oauth", code=FAULT)
    if account is None and len(mine) == 1:
        return next(iter(mine.values()))
    if account is None or account not in mine:
        raise CommandError(f"say which account of {name}: --account {' or '.join(mine)}", code=FAULT)
    return mine[account]


async def _login(grant: Grant, data_dir: Path, secret: bytes) -> None:
    from dataclasses import replace

    from relayd.delivery.oauth.exchange import Exchange
    from relayd.delivery.oauth.grants import TokenError
    from relayd.delivery.oauth.keeper import stored
    from relayd.spool.state import StateDB, StateError
    from relayd.spool.tokens import TokenStore

    exchange, state = Exchange(), StateDB(data_dir / "state.db")
    try:
        await state.open()
        issued = await _consent(exchange, grant)
        token = stored(grant, issued, now_ms())
        await TokenStore(state, secret).put(grant.upstream, grant.account, replace(token, logged_in=True))
    except (TokenError, StateError) as error:
        raise CommandError(str(error)) from None
    finally:
        await exchange.close()
        await state.close()


async def _consent(exchange: Any, grant: Grant) -> Issued:
    from relayd.delivery.oauth import login as person

    if grant.provider == "google":
        return await person.by_redirect(exchange, grant, person.GOOGLE_AUTHORIZE, _tell)
    return await person.by_device(exchange, grant, person.device_url(grant), _tell)


def _tell(where: str, code: str) -> None:
    if code:
        say(f"Open {where} in a browser, log in as the mailbox, and enter the code {code}")
    else:
        say("Open this in a browser on this machine, and log in as the mailbox:")
        say(where)
