"""Finds what contradicts itself in the logins of an upstream: presets, accounts, OAuth2, who may send as whom.

Ports, TLS and plain passwords are judged by check.py.
"""

from __future__ import annotations

import ipaddress
import urllib.parse
from collections.abc import Iterator

from relayd.config import presets
from relayd.config.fault import Fault, Loc, Positions, Severity
from relayd.config.models import Account, OAuth, Per, ReturnPath, SMTPUpstream

_WARNING = Severity.WARNING
_BRING = "Bring it by !env NAME, !file PATH or !credential NAME"
_NEEDS = {
    "refresh-token": ("client_id",),
    "client-credentials": ("client_id", "client_secret"),
    "service-account": ("key_file",),
}


def _sound(at: Positions, *locs: Loc) -> bool:
    return all(at.sound(loc) for loc in locs)


def check_login(at: Positions, loc: Loc, upstream: SMTPUpstream) -> Iterator[Fault]:
    """Faults of one upstream's preset, accounts and OAuth2."""
    preset = presets.find(upstream.preset) if upstream.preset else None
    if preset is not None:
        yield from _preset(at, loc, upstream, preset)
    if upstream.ports and upstream.port != upstream.ports[0] and _sound(at, (*loc, "port"), (*loc, "ports")):
        problem = "port and ports say different things"
        yield at.fault((*loc, "port"), problem, "Write ports alone, in order of preference")
    if upstream.oauth is not None:
        yield from _oauth(at, (*loc, "oauth"), upstream.oauth)
        yield from _one_login(at, loc, upstream.username, upstream.password is not None)
    if _sound(at, (*loc, "accounts"), (*loc, "per")):
        yield from _accounts(at, loc, upstream)
    if _sound(at, (*loc, "rewrite_sender"), (*loc, "return_path"), (*loc, "accounts")):
        yield from _sender(at, loc, upstream)


def _preset(at: Positions, loc: Loc, upstream: SMTPUpstream, preset: presets.Preset) -> Iterator[Fault]:
    if preset.subdomain and upstream.host == "unknown.invalid" and _sound(at, (*loc, "subdomain"), (*loc, "preset")):
        yield at.fault((*loc, "preset"), f"{preset.name} needs subdomain, and none is given", "Add subdomain: ...")
    elif upstream.subdomain is not None and not preset.subdomain and at.sound((*loc, "subdomain")):
        yield at.fault((*loc, "subdomain"), f"says nothing with preset: {preset.name}", "Take it out", _WARNING)
    if preset.basic_retiring and _sound(at, (*loc, "password"), (*loc, "accounts")):
        places = [((*loc, "password"), upstream.password)]
        places += [((*loc, "accounts", n, "password"), account.password) for n, account in enumerate(upstream.accounts)]
        for here, password in places:
            if password is not None:
                problem = f"{preset.title} is retiring logins with a password (550 5.7.30)"
                yield at.fault(here, problem, "Use oauth instead", _WARNING)


def _one_login(at: Positions, loc: Loc, username: str | None, password: bool) -> Iterator[Fault]:
    if password and at.sound((*loc, "password")):
        yield at.fault((*loc, "password"), "there are both a password and oauth", "Take one of them out")
    if username is None and at.sound((*loc, "username")):
        yield at.fault((*loc, "oauth"), "there is oauth but no username", "Add username: the mailbox that logs in")


def _oauth(at: Positions, loc: Loc, oauth: OAuth) -> Iterator[Fault]:
    if not at.sound(loc):
        return
    if oauth.provider is None and oauth.token_url is None and oauth.flow != "service-account":
        problem = "nothing says who issues the tokens"
        yield at.fault(loc, problem, "Set provider: microsoft or google, or token_url")
    for key in _NEEDS[oauth.flow]:
        if getattr(oauth, key) is None and at.sound((*loc, key)):
            yield at.fault((*loc, "flow"), f"flow: {oauth.flow} needs {key}", f"Add {key}:")
    lost = oauth.flow == "client-credentials" and oauth.provider == "microsoft"
    if lost and oauth.tenant is None and oauth.token_url is None:
        yield at.fault((*loc, "flow"), "client-credentials of Microsoft need the directory", "Add tenant:")
    for key in ("client_secret", "refresh_token"):
        written = at.directory is not None and at.source((*loc, key)) is None
        if getattr(oauth, key) is not None and written and at.sound((*loc, key)):
            yield at.fault((*loc, key), "the secret is written in the file itself", _BRING)
    if oauth.token_url is not None and at.sound((*loc, "token_url")):
        parts = urllib.parse.urlsplit(oauth.token_url)
        if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(parts.hostname or "")):
            yield at.fault((*loc, "token_url"), "secrets would cross the network in the clear", "Use an https URL")
    if oauth.key_file is not None and at.sound((*loc, "key_file")) and not oauth.key_file.is_file():
        yield at.fault((*loc, "key_file"), f"{oauth.key_file.name} is not there", "Create it, or correct the path")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _accounts(at: Positions, loc: Loc, upstream: SMTPUpstream) -> Iterator[Fault]:
    if upstream.per is not None and not upstream.logins and (upstream.per is Per.DOMAIN or upstream.username):
        problem = f"per: {upstream.per} needs accounts that say which"
        yield at.fault((*loc, "per"), problem, "Add accounts:, or take per out")
    if upstream.accounts and upstream.password is not None and at.sound((*loc, "password")):
        problem = "says nothing where there are accounts, each with its own login"
        yield at.fault((*loc, "password"), problem, "Move it to the account that it belongs to")
    if upstream.accounts and upstream.oauth is not None:
        problem = "says nothing where there are accounts, each with its own login"
        yield at.fault((*loc, "oauth"), problem, "Move it to the account that it belongs to")
    seen: set[str] = set()
    for index, account in enumerate(upstream.accounts):
        here = (*loc, "accounts", index)
        yield from _account(at, here, upstream, account)
        if account.name.lower() in seen:
            yield at.fault(here, f"there is an account {account.name} already", "Give each its own")
        seen.add(account.name.lower())


def _account(at: Positions, loc: Loc, upstream: SMTPUpstream, account: Account) -> Iterator[Fault]:
    if account.address is None and account.domain is None:
        yield at.fault(loc, "is for nobody", "Add address: the mailbox, or domain:")
    elif upstream.per is Per.ADDRESS and account.address is None:
        yield at.fault(loc, "has no address, and per is address", "Add address: the mailbox that logs in")
    elif account.address is not None and account.domain is not None and upstream.per is None:
        yield at.fault((*loc, "domain"), "there are both an address and a domain", "Take one out, or set per:")
    if account.oauth is None and account.password is None:
        yield at.fault(loc, "has no login", "Add password: (by !env, !file or !credential) or oauth:")
    elif account.username is None and account.address is None:
        yield at.fault(loc, "has no user name", "Add username:")
    if account.oauth is not None:
        yield from _oauth(at, (*loc, "oauth"), account.oauth)
        if account.password is not None:
            yield from _one_login(at, loc, account.username or account.address, password=True)
    written = at.directory is not None and at.source((*loc, "password")) is None
    if account.password is not None and written:
        yield at.fault((*loc, "password"), "the password is written in the file itself", _BRING)


def _sender(at: Positions, loc: Loc, upstream: SMTPUpstream) -> Iterator[Fault]:
    mailboxes = [login for login in upstream.logins if login.address is not None]
    if upstream.rewrite_sender and not mailboxes:
        problem = "there is no mailbox to send as"
        yield at.fault((*loc, "rewrite_sender"), problem, "Add accounts: with an address, or take it out")
    single = upstream.username is not None and "@" in upstream.username and not upstream.accounts
    if upstream.return_path is ReturnPath.ACCOUNT and not single and len(mailboxes) < max(len(upstream.logins), 1):
        problem = "return_path: account needs the address of each account"
        yield at.fault((*loc, "return_path"), problem, "Add address: to the accounts, or use keep or verp")
