"""Finds what contradicts itself about those who may come in: listeners, networks, credentials.

Single values are judged where their kinds are, the listeners' certificate by check_files.py.
"""

from __future__ import annotations

import ipaddress
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from argon2 import extract_parameters
from argon2.exceptions import InvalidHashError

from relayd.config.check_returns import needs_domain
from relayd.config.fault import Fault, Loc, Positions, Severity
from relayd.config.models import Access, Config, Credential, FetchedNetwork, Listener, ListenerTLS, Role
from relayd.core.bind import is_loopback

_NEEDS_NETWORK = (Access.NETWORK, Access.NETWORK_AND_AUTH)
_NEEDS_AUTH = (Access.AUTH, Access.NETWORK_AND_AUTH)
_WARNING = Severity.WARNING


def check_networks(at: Positions, config: Config) -> Iterator[Fault]:
    """Networks whose addresses anyone could change."""
    for name, network in config.networks.items():
        if isinstance(network, FetchedNetwork) and at.sound(("networks", name, "url")):
            parts = urllib.parse.urlsplit(network.url)
            if parts.scheme != "https" and not is_loopback(parts.hostname or ""):
                problem = "is fetched without TLS, so anyone on the way can decide who may send"
                yield at.fault(("networks", name, "url"), problem, "Use an https URL")


def check_listeners(at: Positions, config: Config) -> Iterator[Fault]:
    """Listeners that nobody could use, or too many; names and addresses that are taken already."""
    for loc, listener in at.items("listeners", config.listeners):
        yield from _listener(at, config, loc, listener)
    yield from _names_and_binds(at, config)


def check_credentials(at: Positions, config: Config) -> Iterator[Fault]:
    """Credentials by which nobody could log in."""
    for loc, credential in at.items("credentials", config.credentials):
        yield from _credential(at, loc, credential)


def _listener(at: Positions, config: Config, loc: Loc, listener: Listener) -> Iterator[Fault]:
    if listener.role is Role.INBOUND:
        yield from _inbound(at, config, loc, listener)
        return
    yield from _access(at, config, loc, listener)
    yield from _listener_networks(at, config, loc, listener)
    tls = (*loc, "tls")
    if not at.sound(tls):
        return
    yield from _require_tls(at, loc, listener)
    outside = [bind for bind in listener.bind if not bind.loopback]
    if listener.tls is ListenerTLS.NONE and outside and at.sound((*loc, "access"), (*loc, "bind")):
        remedy = "Set tls: starttls or implicit, or bind to 127.0.0.1"
        problem = f"AUTH is offered only under TLS or on loopback, so nobody could log in at {outside[0]}"
        if listener.access in _NEEDS_AUTH:
            yield at.fault(tls, problem, remedy)
        elif listener.access is Access.NETWORK_OR_AUTH:
            yield at.fault(tls, problem, remedy + ", or set access: network", _WARNING)


def _require_tls(at: Positions, loc: Loc, listener: Listener) -> Iterator[Fault]:
    if listener.require_tls and listener.tls is not ListenerTLS.STARTTLS and at.sound((*loc, "require_tls")):
        problem = f"needs tls: starttls, and this listener has tls: {listener.tls}"
        yield at.fault((*loc, "require_tls"), problem, "Set tls: starttls, or take require_tls out")


def _inbound(at: Positions, config: Config, loc: Loc, listener: Listener) -> Iterator[Fault]:
    yield from needs_domain(at, config, (*loc, "role"), "role: inbound")
    yield from _listener_networks(at, config, loc, listener)
    if at.sound((*loc, "tls")):
        yield from _require_tls(at, loc, listener)
    for key in ("access", "networks"):
        if key in listener.model_fields_set and at.sound((*loc, key)):
            problem = "says nothing with role: inbound, which takes mail from anyone for our own addresses only"
            yield at.fault((*loc, key), problem, "Take it out", _WARNING)


def _access(at: Positions, config: Config, loc: Loc, listener: Listener) -> Iterator[Fault]:
    access, given = (*loc, "access"), bool(listener.networks)
    if not at.sound(access, (*loc, "networks")):
        return
    someone = bool(config.credentials) or not at.sound(("credentials",))
    if listener.access in _NEEDS_NETWORK and not given:
        problem = f"access: {listener.access} needs networks, and none are given, so nobody could send"
        yield at.fault(access, problem, "Add networks: with names or CIDRs to this listener")
    if listener.access in _NEEDS_AUTH and not someone:
        problem = f"access: {listener.access} needs credentials, and there are none, so nobody could send"
        yield at.fault(access, problem, "Add one to credentials, or set access: network")
    if listener.access is Access.NETWORK_OR_AUTH and not given:
        if not someone:
            problem = "there are neither networks nor credentials, so nobody could send"
            yield at.fault(access, problem, "Add networks to this listener, or a credential")
        else:
            problem = "no networks are given, so this is the same as access: auth"
            yield at.fault(access, problem, "Add networks to this listener, or write access: auth", _WARNING)


def _listener_networks(at: Positions, config: Config, loc: Loc, listener: Listener) -> Iterator[Fault]:
    if not at.sound((*loc, "networks"), (*loc, "proxy_protocol")):
        return  # what remains of a list with faulty items no longer has its places
    outside = any(not bind.loopback for bind in listener.bind)
    for index, name in enumerate(listener.networks):
        here = (*loc, "networks", index)
        try:
            network = ipaddress.ip_network(name, strict=False)
        except ValueError:
            remedy = "Define it under networks, or write an address or CIDR here"
            yield from at.unknown(here, "network", name, at.names("networks", config.networks), remedy)
            continue
        if network.prefixlen == 0 and outside and listener.access in (Access.NETWORK, Access.NETWORK_OR_AUTH):
            problem = "the whole internet may send through this listener without a password"
            yield at.fault(here, problem, "Name the addresses of your own machines", _WARNING)
    for index, proxy in enumerate(listener.proxy_protocol):
        if proxy.prefixlen == 0:
            problem = "any client may claim to be any other"
            here = (*loc, "proxy_protocol", index)
            yield at.fault(here, problem, "Name the addresses of your load balancers", _WARNING)


def _names_and_binds(at: Positions, config: Config) -> Iterator[Fault]:
    yield from _twice(at, "listeners", "name", lambda listener: listener.name, config.listeners)
    yield from _twice(at, "credentials", "username", lambda entry: entry.username, config.credentials)
    seen: dict[Any, str] = {}
    binds = [
        ((*loc, "bind", index), bind, f"the listener {listener.name}")
        for loc, listener in at.items("listeners", config.listeners)
        for index, bind in enumerate(listener.bind)
        if at.sound((*loc, "bind"))
    ]
    binds += [
        (("web", key, index), bind, "web" if key == "bind" else f"web.{key}")
        for key in ("bind", "public", "public_tls")
        for index, bind in enumerate(getattr(config.web, key))
    ]
    for loc, bind, owner in binds:
        place = (bind.address, bind.port)
        if bind.port and place in seen:
            yield at.fault(loc, f"{bind} is taken by {seen[place]} already", "Use another port or address")
        seen.setdefault(place, owner)


def _twice(
    at: Positions, section: str, key: str, name_of: Callable[[Any], str], values: Iterable[Any]
) -> Iterator[Fault]:
    seen: dict[str, int] = {}
    for loc, value in at.items(section, values):
        name, here = name_of(value), (*loc, key)
        if not at.sound(here):
            continue
        if name in seen:
            first = f" in line {seen[name]}" if seen[name] else ""
            yield at.fault(here, f"{name!r} is there already{first}", f"Give each of the {section} its own {key}")
        seen.setdefault(name, at.place(here).line)


def _credential(at: Positions, loc: Loc, credential: Credential) -> Iterator[Fault]:
    here, password = (*loc, "password"), credential.password.get_secret_value()
    if not at.sound(here):
        return
    if not password.startswith("$argon2id$"):
        kind = "is a hash of another kind" if password.startswith("$") else "is a plain-text password"
        remedy = "Run relayd config hash-password and put its answer, an argon2id hash, here"
        yield at.fault(here, kind, remedy)
        return
    try:
        extract_parameters(password)
    except InvalidHashError:
        problem = "is no complete argon2id hash, so nobody can log in with it"
        remedy = "Run relayd config hash-password and put its whole answer here, in quotes"
        yield at.fault(here, problem, remedy, _WARNING)
