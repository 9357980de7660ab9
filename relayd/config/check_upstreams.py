"""Finds what contradicts itself about upstreams: ports, TLS, overflow, presets, logins, who may send as whom.

Limits are judged by check_limits.py, files by check_files.py.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterator

from relayd.config import presets
from relayd.config.check_limits import check_limits
from relayd.config.check_returns import needs_domain
from relayd.config.fault import BRING, UNKNOWN, Fault, Loc, Positions, Severity
from relayd.config.models import Account, Config, OAuth, Per, ReturnPath, SMTPUpstream, UpstreamTLS
from relayd.core.bind import is_loopback

_WARNING = Severity.WARNING
_DAY = 86_400.0
"""Seconds of the shortest budget whose end overflow waits for."""
_NEEDS = {
    "refresh-token": ("client_id",),
    "client-credentials": ("client_id", "client_secret"),
    "service-account": ("key_file",),
}


def check_upstreams(at: Positions, config: Config) -> Iterator[Fault]:
    """Faults of each upstream by itself."""
    for name, upstream in config.upstreams.items():
        loc: Loc = ("upstreams", name)
        yield from check_limits(at, loc, upstream)
        if isinstance(upstream, SMTPUpstream):
            yield from _smtp(at, loc, upstream)
            yield from _login(at, loc, upstream)
        elif upstream.return_path is ReturnPath.ACCOUNT:
            problem = "a sandbox logs in nowhere, so there is no account"
            yield at.fault((*loc, "return_path"), problem, "Write keep or verp")
        if upstream.return_path is ReturnPath.VERP:
            yield from needs_domain(at, config, (*loc, "return_path"), "return_path: verp")


def _smtp(at: Positions, loc: Loc, upstream: SMTPUpstream) -> Iterator[Fault]:
    port = (*loc, "ports" if upstream.ports and (*loc, "ports") in at.places else "port")
    if 25 in upstream.every_port and not upstream.allow_port_25 and at.sound(port, (*loc, "allow_port_25")):
        problem = "port 25 is for servers among each other: no login, and TLS is not assured"
        yield at.fault(port, problem, "Use 587, 465 or 2525; or set allow_port_25: true if it must be")
    username, password = (*loc, "username"), (*loc, "password")
    elsewhere = upstream.oauth is not None or bool(upstream.accounts) or not at.sound((*loc, "oauth"))
    if at.sound(username, password) and (upstream.username is None) != (upstream.password is None):
        if elsewhere:
            pass  # _login looks at those
        elif upstream.password is None:
            yield at.fault(username, "there is a username but no password", "Add password: !env, or !file")
        else:
            yield at.fault(password, "there is a password but no username", "Add username:")
    if upstream.password is not None and at.open(password):
        yield at.fault(password, "the password is written in the file itself", BRING)
    if at.sound((*loc, "tls")):
        yield from _tls(at, loc, upstream)


def _tls(at: Positions, loc: Loc, upstream: SMTPUpstream) -> Iterator[Fault]:
    tls, at_home = (*loc, "tls"), is_loopback(upstream.host) or not at.sound((*loc, "host"))
    if upstream.tls is UpstreamTLS.NONE and upstream.implicit_tls and at.sound((*loc, "implicit_tls")):
        problem = "implicit_tls: true and tls: none exclude each other"
        yield at.fault((*loc, "implicit_tls"), problem, "Take one of them out")
    if upstream.tls is UpstreamTLS.REQUIRED:
        return
    if not at_home:
        what = "mail and password cross" if upstream.username else "mail crosses"
        when = "in the clear" if upstream.tls is UpstreamTLS.NONE else "in the clear where TLS is not offered"
        problem = f"{what} the network {when}, and nobody proves to be {upstream.host}"
        yield at.fault(tls, problem, "Set tls: required, unless this is meant", _WARNING)
    for key in ("ca_file", "tls_name"):
        if getattr(upstream, key) is not None:
            problem = f"does nothing with tls: {upstream.tls}, which verifies no certificate"
            yield at.fault((*loc, key), problem, "Set tls: required, or take it out", _WARNING)


def _login(at: Positions, loc: Loc, upstream: SMTPUpstream) -> Iterator[Fault]:
    """Faults of one upstream's preset, accounts and OAuth2."""
    preset = presets.find(upstream.preset) if upstream.preset else None
    if preset is not None:
        yield from _preset(at, loc, upstream, preset)
    if upstream.ports and upstream.port != upstream.ports[0] and at.sound((*loc, "port"), (*loc, "ports")):
        problem = "port and ports say different things"
        yield at.fault((*loc, "port"), problem, "Write ports alone, in order of preference")
    if upstream.oauth is not None:
        yield from _oauth(at, (*loc, "oauth"), upstream.oauth)
        yield from _one_login(at, loc, upstream.username, upstream.password is not None)
    if at.sound((*loc, "accounts"), (*loc, "per")):
        yield from _accounts(at, loc, upstream)
    if at.sound((*loc, "rewrite_sender"), (*loc, "return_path"), (*loc, "accounts")):
        yield from _sender(at, loc, upstream)


def _preset(at: Positions, loc: Loc, upstream: SMTPUpstream, preset: presets.Preset) -> Iterator[Fault]:
    if preset.subdomain and upstream.host == "unknown.invalid" and at.sound((*loc, "subdomain"), (*loc, "preset")):
        yield at.fault((*loc, "preset"), f"{preset.name} needs subdomain, and none is given", "Add subdomain: ...")
    elif upstream.subdomain is not None and not preset.subdomain and at.sound((*loc, "subdomain")):
        yield at.fault((*loc, "subdomain"), f"says nothing with preset: {preset.name}", "Take it out", _WARNING)
    if preset.basic_retiring and at.sound((*loc, "password"), (*loc, "accounts")):
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
        if getattr(oauth, key) is not None and at.open((*loc, key)):
            yield at.fault((*loc, key), "the secret is written in the file itself", BRING)
    if oauth.token_url is not None and at.sound((*loc, "token_url")):
        parts = urllib.parse.urlsplit(oauth.token_url)
        if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname or "")):
            yield at.fault((*loc, "token_url"), "secrets would cross the network in the clear", "Use an https URL")
    if oauth.key_file is not None and at.sound((*loc, "key_file")) and not oauth.key_file.is_file():
        yield at.fault((*loc, "key_file"), f"{oauth.key_file.name} is not there", "Create it, or correct the path")


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
    if account.password is not None and at.open((*loc, "password")):
        yield at.fault((*loc, "password"), "the password is written in the file itself", BRING)


def _sender(at: Positions, loc: Loc, upstream: SMTPUpstream) -> Iterator[Fault]:
    mailboxes = [login for login in upstream.logins if login.address is not None]
    if upstream.rewrite_sender and not mailboxes:
        problem = "there is no mailbox to send as"
        yield at.fault((*loc, "rewrite_sender"), problem, "Add accounts: with an address, or take it out")
    single = upstream.username is not None and "@" in upstream.username and not upstream.accounts
    if upstream.return_path is ReturnPath.ACCOUNT and not single and len(mailboxes) < max(len(upstream.logins), 1):
        problem = "return_path: account needs the address of each account"
        yield at.fault((*loc, "return_path"), problem, "Add address: to the accounts, or use keep or verp")


def check_overflow(at: Positions, config: Config, known: set[str]) -> Iterator[Fault]:
    """Overflow that names nobody, or leads back to where it began; each circle is told once."""
    over = {
        name: upstream.overflow
        for name, upstream in config.upstreams.items()
        if isinstance(upstream, SMTPUpstream) and upstream.overflow is not None
    }
    told: set[str] = set()
    for name, other in over.items():
        loc: Loc = ("upstreams", name, "overflow")
        if not at.sound(loc):
            continue
        if other not in known:
            yield from at.unknown(loc, "upstream", other, known, UNKNOWN)
            continue
        circle, at_name = [name], other
        while at_name in over and at_name not in circle:
            circle.append(at_name)
            at_name = over[at_name]
        if at_name == name and not told & set(circle):
            told |= set(circle)
            way = " to ".join([*circle, name])
            remedy = "Let the last one have no overflow, so that mail can wait there"
            yield at.fault(loc, f"the overflow goes round in a circle: {way}", remedy)
        elif _no_day(config, name):
            problem = f"{name} has no budget of a day or longer that could be used up"
            yield at.fault(loc, problem, "Add limits: {recipients: 10000/day}, or take it out", Severity.WARNING)


def _no_day(config: Config, name: str) -> bool:
    upstream = config.upstreams[name]
    if not isinstance(upstream, SMTPUpstream):
        return False
    limits = [upstream.limits, *(account.limits for account in upstream.accounts if account.limits is not None)]
    return not any(rate.seconds >= _DAY for each in limits for rate in (*each.messages, *each.recipients))
