"""Finds what contradicts itself: keys that are right one by one and wrong together, or dangerous.

Single values are judged where their kinds are, in quantities.py, names.py and places.py; files that keys name by
check_files.py.
"""

from __future__ import annotations

import difflib
import ipaddress
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from argon2 import extract_parameters
from argon2.exceptions import InvalidHashError

from relayd.config.check_files import check_files
from relayd.config.check_limits import check_limits
from relayd.config.check_routes import check_overflow, check_rules
from relayd.config.check_upstreams import check_login
from relayd.config.fault import Fault, Loc, Positions, Severity, sorted_faults
from relayd.config.models import (
    Access,
    Config,
    Credential,
    FetchedNetwork,
    Listener,
    ListenerTLS,
    MailboxTLS,
    ReturnPath,
    Role,
    Route,
    SMTPUpstream,
    UpstreamTLS,
)
from relayd.core.units import format_duration, format_size

_NEEDS_NETWORK = (Access.NETWORK, Access.NETWORK_AND_AUTH)
_NEEDS_AUTH = (Access.AUTH, Access.NETWORK_AND_AUTH)
_WARNING = Severity.WARNING


def check(config: Config, positions: Positions | None = None) -> list[Fault]:
    """Every fault between keys, and of the files that they name, in the order of lines.

    `positions` tells where keys stand and which are faulty already: nothing is concluded from those.
    """
    checker = _Checker(config, positions or Positions())
    faults = [fault for part in checker.parts() for fault in part]
    return sorted_faults([*faults, *check_files(config, positions or Positions())])


class _Checker:
    def __init__(self, config: Config, positions: Positions) -> None:
        self._config = config
        self._at = positions
        self._networks = self._names("networks", config.networks)
        self._upstreams = self._names("upstreams", config.upstreams)

    def parts(self) -> Iterator[Iterable[Fault]]:
        yield self._top()
        yield self._fetched()
        for loc, listener in items(self._at, "listeners", self._config.listeners):
            yield self._listener(loc, listener)
        yield self._names_and_binds()
        for loc, credential in items(self._at, "credentials", self._config.credentials):
            yield self._credential(loc, credential)
        for name, upstream in self._config.upstreams.items():
            yield check_limits(self._at, ("upstreams", name), upstream)
            if isinstance(upstream, SMTPUpstream):
                yield self._upstream(("upstreams", name), upstream)
                yield check_login(self._at, ("upstreams", name), upstream)
            elif upstream.return_path is ReturnPath.ACCOUNT:
                yield self._no_account(("upstreams", name, "return_path"))
            if upstream.return_path is ReturnPath.VERP:
                yield self._needs_domain(("upstreams", name, "return_path"), "return_path: verp")
        yield self._mailboxes()
        for loc, route in items(self._at, "routes", self._config.routes):
            yield self._route(loc, route)
        yield self._order_of_routes()
        if ("upstreams",) not in self._at.faulty:
            yield check_overflow(self._at, self._config, self._upstreams)
            yield check_rules(self._at, self._config, self._upstreams)
        yield self._dkim()
        yield self._acme()
        yield self._limits()
        yield self._times()

    def _names(self, section: str, known: Iterable[str]) -> set[str]:
        """Names that are written, faulty entries included."""
        written = {str(loc[1]) for loc in self._at.places if len(loc) == 2 and loc[0] == section}
        return set(known) | written

    def _sound(self, *locs: Loc) -> bool:
        return all(self._at.sound(loc) for loc in locs)

    def _unknown(self, loc: Loc, what: str, name: str, known: set[str], remedy: str) -> Iterator[Fault]:
        section = f"{what}s"
        if name in known or not self._at.sound(loc) or (section,) in self._at.faulty:
            return
        near = difflib.get_close_matches(name, sorted(known), 1)
        meant = f"Did you mean {near[0]}?" if near else remedy
        yield self._at.fault(loc, f"there is no {what} {name!r}", meant)

    def _top(self) -> Iterator[Fault]:
        secret = self._config.secret
        if secret is None or not self._sound(("secret",)):
            return
        if len(secret.get_secret_value()) < 16:
            yield self._at.fault(
                ("secret",), "is short enough to be guessed", "Use 32 random letters or more, or leave it out", _WARNING
            )
        if self._at.directory and self._at.source(("secret",)) is None:
            remedy = "Bring it by !file, !credential or !env, or leave it out and one is made"
            yield self._at.fault(("secret",), "is written in the file itself", remedy, _WARNING)

    def _fetched(self) -> Iterator[Fault]:
        for name, network in self._config.networks.items():
            if isinstance(network, FetchedNetwork) and self._sound(("networks", name, "url")):
                parts = urllib.parse.urlsplit(network.url)
                if parts.scheme != "https" and not _is_loopback(parts.hostname or ""):
                    problem = "is fetched without TLS, so anyone on the way can decide who may send"
                    yield self._at.fault(("networks", name, "url"), problem, "Use an https URL")

    def _listener(self, loc: Loc, listener: Listener) -> Iterator[Fault]:
        if listener.role is Role.INBOUND:
            yield from self._inbound(loc, listener)
            return
        yield from self._access(loc, listener)
        yield from self._listener_networks(loc, listener)
        tls = (*loc, "tls")
        if not self._sound(tls):
            return
        yield from self._require_tls(loc, listener)
        outside = [bind for bind in listener.bind if not bind.loopback]
        if listener.tls is ListenerTLS.NONE and outside and self._sound((*loc, "access"), (*loc, "bind")):
            remedy = "Set tls: starttls or implicit, or bind to 127.0.0.1"
            problem = f"AUTH is offered only under TLS or on loopback, so nobody could log in at {outside[0]}"
            if listener.access in _NEEDS_AUTH:
                yield self._at.fault(tls, problem, remedy)
            elif listener.access is Access.NETWORK_OR_AUTH:
                yield self._at.fault(tls, problem, remedy + ", or set access: network", _WARNING)

    def _require_tls(self, loc: Loc, listener: Listener) -> Iterator[Fault]:
        if listener.require_tls and listener.tls is not ListenerTLS.STARTTLS and self._sound((*loc, "require_tls")):
            problem = f"needs tls: starttls, and this listener has tls: {listener.tls}"
            yield self._at.fault((*loc, "require_tls"), problem, "Set tls: starttls, or take require_tls out")

    def _inbound(self, loc: Loc, listener: Listener) -> Iterator[Fault]:
        yield from self._needs_domain((*loc, "role"), "role: inbound")
        yield from self._listener_networks(loc, listener)
        if self._sound((*loc, "tls")):
            yield from self._require_tls(loc, listener)
        for key in ("access", "networks"):
            if key in listener.model_fields_set and self._sound((*loc, key)):
                problem = "says nothing with role: inbound, which takes mail from anyone for our own addresses only"
                yield self._at.fault((*loc, key), problem, "Take it out", _WARNING)

    def _needs_domain(self, loc: Loc, what: str) -> Iterator[Fault]:
        if self._config.bounces.domain is None and self._sound(loc, ("bounces",), ("bounces", "domain")):
            problem = f"{what} needs bounces.domain, and none is given"
            yield self._at.fault(loc, problem, "Set bounces: {domain: bounce.example.com}, with an MX that leads here")

    def _mailboxes(self) -> Iterator[Fault]:
        if not self._sound(("bounces",), ("bounces", "mailboxes")):
            return
        seen: set[str] = set()
        for index, mailbox in enumerate(self._config.bounces.mailboxes):
            loc: Loc = ("bounces", "mailboxes", index)
            password = (*loc, "password")
            if mailbox.name in seen:
                yield self._at.fault((*loc, "name"), f"{mailbox.name!r} is there already", "Give each its own name")
            seen.add(mailbox.name)
            if self._at.directory is not None and self._at.source(password) is None and self._sound(password):
                remedy = "Bring it by !env NAME, !file PATH or !credential NAME"
                yield self._at.fault(password, "the password is written in the file itself", remedy)
            if mailbox.tls is MailboxTLS.NONE and not _is_loopback(mailbox.host):
                problem = f"the password crosses the network in the clear, and nobody proves to be {mailbox.host}"
                yield self._at.fault((*loc, "tls"), problem, "Set tls: implicit or starttls", _WARNING)
            if mailbox.tls is MailboxTLS.NONE and mailbox.ca_file is not None:
                problem = "does nothing with tls: none, which verifies no certificate"
                yield self._at.fault((*loc, "ca_file"), problem, "Set tls: implicit, or take it out", _WARNING)

    def _access(self, loc: Loc, listener: Listener) -> Iterator[Fault]:
        access, given = (*loc, "access"), bool(listener.networks)
        if not self._sound(access, (*loc, "networks")):
            return
        someone = bool(self._config.credentials) or not self._sound(("credentials",))
        if listener.access in _NEEDS_NETWORK and not given:
            problem = f"access: {listener.access} needs networks, and none are given, so nobody could send"
            yield self._at.fault(access, problem, "Add networks: with names or CIDRs to this listener")
        if listener.access in _NEEDS_AUTH and not someone:
            problem = f"access: {listener.access} needs credentials, and there are none, so nobody could send"
            yield self._at.fault(access, problem, "Add one to credentials, or set access: network")
        if listener.access is Access.NETWORK_OR_AUTH and not given:
            if not someone:
                problem = "there are neither networks nor credentials, so nobody could send"
                yield self._at.fault(access, problem, "Add networks to this listener, or a credential")
            else:
                problem = "no networks are given, so this is the same as access: auth"
                yield self._at.fault(access, problem, "Add networks to this listener, or write access: auth", _WARNING)

    def _listener_networks(self, loc: Loc, listener: Listener) -> Iterator[Fault]:
        if not self._sound((*loc, "networks"), (*loc, "proxy_protocol")):
            return  # what remains of a list with faulty items no longer has its places
        outside = any(not bind.loopback for bind in listener.bind)
        for index, name in enumerate(listener.networks):
            here = (*loc, "networks", index)
            try:
                network = ipaddress.ip_network(name, strict=False)
            except ValueError:
                remedy = "Define it under networks, or write an address or CIDR here"
                yield from self._unknown(here, "network", name, self._networks, remedy)
                continue
            if network.prefixlen == 0 and outside and listener.access in (Access.NETWORK, Access.NETWORK_OR_AUTH):
                problem = "the whole internet may send through this listener without a password"
                yield self._at.fault(here, problem, "Name the addresses of your own machines", _WARNING)
        for index, proxy in enumerate(listener.proxy_protocol):
            if proxy.prefixlen == 0:
                problem = "any client may claim to be any other"
                here = (*loc, "proxy_protocol", index)
                yield self._at.fault(here, problem, "Name the addresses of your load balancers", _WARNING)

    def _names_and_binds(self) -> Iterator[Fault]:
        yield from self._twice("listeners", "name", lambda listener: listener.name, self._config.listeners)
        yield from self._twice("credentials", "username", lambda entry: entry.username, self._config.credentials)
        seen: dict[Any, str] = {}
        binds = [
            ((*loc, "bind", index), bind, f"the listener {listener.name}")
            for loc, listener in items(self._at, "listeners", self._config.listeners)
            for index, bind in enumerate(listener.bind)
            if self._sound((*loc, "bind"))
        ]
        binds += [
            (("web", key, index), bind, "web" if key == "bind" else f"web.{key}")
            for key in ("bind", "public", "public_tls")
            for index, bind in enumerate(getattr(self._config.web, key))
        ]
        for loc, bind, owner in binds:
            place = (bind.address, bind.port)
            if bind.port and place in seen:
                yield self._at.fault(loc, f"{bind} is taken by {seen[place]} already", "Use another port or address")
            seen.setdefault(place, owner)

    def _twice(self, section: str, key: str, name_of: Callable[[Any], str], values: Iterable[Any]) -> Iterator[Fault]:
        seen: dict[str, int] = {}
        for loc, value in items(self._at, section, values):
            name, here = name_of(value), (*loc, key)
            if not self._sound(here):
                continue
            if name in seen:
                first = f" in line {seen[name]}" if seen[name] else ""
                yield self._at.fault(
                    here, f"{name!r} is there already{first}", f"Give each of the {section} its own {key}"
                )
            seen.setdefault(name, self._at.place(here).line)

    def _credential(self, loc: Loc, credential: Credential) -> Iterator[Fault]:
        here, password = (*loc, "password"), credential.password.get_secret_value()
        if not self._sound(here):
            return
        if not password.startswith("$argon2id$"):
            kind = "is a hash of another kind" if password.startswith("$") else "is a plain-text password"
            remedy = "Run relayd config hash-password and put its answer, an argon2id hash, here"
            yield self._at.fault(here, kind, remedy)
            return
        try:
            extract_parameters(password)
        except InvalidHashError:
            problem = "is no complete argon2id hash, so nobody can log in with it"
            remedy = "Run relayd config hash-password and put its whole answer here, in quotes"
            yield self._at.fault(here, problem, remedy, _WARNING)

    def _no_account(self, loc: Loc) -> Iterator[Fault]:
        yield self._at.fault(loc, "a sandbox logs in nowhere, so there is no account", "Write keep or verp")

    def _upstream(self, loc: Loc, upstream: SMTPUpstream) -> Iterator[Fault]:
        port = (*loc, "ports" if upstream.ports and (*loc, "ports") in self._at.places else "port")
        if 25 in upstream.every_port and not upstream.allow_port_25 and self._sound(port, (*loc, "allow_port_25")):
            problem = "port 25 is for servers among each other: no login, and TLS is not assured"
            yield self._at.fault(port, problem, "Use 587, 465 or 2525; or set allow_port_25: true if it must be")
        username, password = (*loc, "username"), (*loc, "password")
        elsewhere = upstream.oauth is not None or bool(upstream.accounts) or not self._sound((*loc, "oauth"))
        if self._sound(username, password) and (upstream.username is None) != (upstream.password is None):
            if elsewhere:
                pass  # check_upstreams.py looks at those
            elif upstream.password is None:
                yield self._at.fault(username, "there is a username but no password", "Add password: !env, or !file")
            else:
                yield self._at.fault(password, "there is a password but no username", "Add username:")
        written = self._at.directory is not None and self._at.source(password) is None
        if upstream.password is not None and written and self._sound(password):
            remedy = "Bring it by !env NAME, !file PATH or !credential NAME"
            yield self._at.fault(password, "the password is written in the file itself", remedy)
        if self._sound((*loc, "tls")):
            yield from self._upstream_tls(loc, upstream)

    def _upstream_tls(self, loc: Loc, upstream: SMTPUpstream) -> Iterator[Fault]:
        tls, at_home = (*loc, "tls"), _is_loopback(upstream.host) or not self._sound((*loc, "host"))
        if upstream.tls is UpstreamTLS.NONE and upstream.implicit_tls and self._sound((*loc, "implicit_tls")):
            problem = "implicit_tls: true and tls: none exclude each other"
            yield self._at.fault((*loc, "implicit_tls"), problem, "Take one of them out")
        if upstream.tls is UpstreamTLS.REQUIRED:
            return
        if not at_home:
            what = "mail and password cross" if upstream.username else "mail crosses"
            when = "in the clear" if upstream.tls is UpstreamTLS.NONE else "in the clear where TLS is not offered"
            problem = f"{what} the network {when}, and nobody proves to be {upstream.host}"
            yield self._at.fault(tls, problem, "Set tls: required, unless this is meant", _WARNING)
        for key in ("ca_file", "tls_name"):
            if getattr(upstream, key) is not None:
                problem = f"does nothing with tls: {upstream.tls}, which verifies no certificate"
                yield self._at.fault((*loc, key), problem, "Set tls: required, or take it out", _WARNING)

    def _route(self, loc: Loc, route: Route) -> Iterator[Fault]:
        remedy = "Define it under upstreams, or name one that is there"
        here = (*loc, "upstream")
        for place, name in enumerate(route.upstreams):
            if isinstance(route.upstream, list):
                here = (*loc, "upstream", place)
            yield from self._unknown(here, "upstream", name, self._upstreams, remedy)
        match = route.match
        if match is None:
            return
        if match.network is not None:
            here, remedy = (*loc, "match", "network"), "Define it under networks; addresses cannot be written here"
            yield from self._unknown(here, "network", match.network, self._networks, remedy)
        if match.credential is not None and self._sound(("credentials",)):
            users = {credential.username for credential in self._config.credentials}
            if not {"*", "?"} & set(match.credential):
                here, remedy = (*loc, "match", "credential"), "Define it under credentials, or name one that is there"
                yield from self._unknown(here, "credential", match.credential, users, remedy)

    def _order_of_routes(self) -> Iterator[Fault]:
        routes = list(items(self._at, "routes", self._config.routes))
        catch_all: Loc | None = None
        seen: dict[str, Loc] = {}
        for loc, route in routes:
            if not self._sound((*loc, "match")):
                continue
            everything = route.match is None or route.match.everything
            rule = "" if everything or route.match is None else route.match.model_dump_json().lower()
            first = catch_all or seen.get(rule)
            if first is not None:
                why = "takes everything" if catch_all else "has the same match"
                line = self._at.place(first).line
                where = f"the route in line {line}" if line else f"routes[{first[1]}]"
                problem = f"this route is never reached, because {where} {why}"
                yield self._at.fault(loc, problem, "Move it up, or take it out")
            seen.setdefault(rule, loc)
            catch_all = loc if everything and catch_all is None else catch_all
        if routes and catch_all is None and self._sound(("routes",)):
            problem = "no route takes everything, so mail that fits none is refused (550 5.4.4)"
            remedy = "End with a route that has only an upstream, unless this is meant"
            yield self._at.fault(routes[-1][0], problem, remedy, _WARNING)

    def _dkim(self) -> Iterator[Fault]:
        seen: dict[tuple[str, str], int] = {}
        for loc, key in items(self._at, "dkim", self._config.dkim):
            if not self._sound((*loc, "domain"), (*loc, "selector")):
                continue
            name, line = (key.domain, key.selector), self._at.place(loc).line
            if name in seen:
                first = f" in line {seen[name]}" if seen[name] else ""
                problem = f"{key.selector}._domainkey.{key.domain} is there already{first}"
                yield self._at.fault((*loc, "selector"), problem, "Give each key of a domain its own selector")
            seen.setdefault(name, line)

    def _acme(self) -> Iterator[Fault]:
        section, acme, web = ("tracking", "acme"), self._config.tracking.acme, self._config.web
        if acme is None or not self._sound(("tracking",), section, ("web",)):
            return
        if self._config.tracking.host is None and self._sound(("tracking", "host")):
            problem = "there is no tracking.host, so there is nothing to get certificates for"
            yield self._at.fault(section, problem, "Set tracking.host, or take acme out")
        directory, agree = (*section, "directory"), (*section, "agree_terms")
        if not acme.agree_terms and self._sound(agree):
            problem = "the CA issues nothing before you agree to its terms of service"
            where = agree if agree in self._at.places else section
            yield self._at.fault(where, problem, "Read them, and set agree_terms: true")
        parts = urllib.parse.urlsplit(acme.directory)
        if parts.scheme != "https" and not _is_loopback(parts.hostname or "") and self._sound(directory):
            yield self._at.fault(directory, "is asked without TLS: anyone on the way can answer", "Use an https URL")
        if not (web.bind or web.public) and self._sound(("web", "bind"), ("web", "public")):
            problem = "the CA looks at port 80 of each host, and nothing here would answer"
            yield self._at.fault(section, problem, 'Set web.public: ["0.0.0.0:80"]')
        if not web.public_tls and self._sound(("web", "public_tls")):
            problem = "it gets certificates, and nothing shows them"
            yield self._at.fault(section, problem, 'Set web.public_tls: ["0.0.0.0:443"]')

    def _limits(self) -> Iterator[Fault]:
        limits, section = self._config.limits, ("limits",)
        lines = self._sound((*section, "line_length"), (*section, "line_length_max"))
        if limits.line_length > limits.line_length_max and lines:
            problem = f"is more than line_length_max ({format_size(limits.line_length_max)})"
            yield self._at.fault((*section, "line_length"), problem, "Write less, or raise line_length_max")
        if limits.memory < limits.message_size and self._sound((*section, "memory"), (*section, "message_size")):
            problem = f"is less than message_size ({format_size(limits.message_size)}), so such a mail never fits"
            yield self._at.fault((*section, "memory"), problem, "Write more, or lower message_size")
        per_ip = "connections_per_ip" in limits.model_fields_set and self._sound((*section, "connections"))
        if limits.connections_per_ip > limits.connections and per_ip:
            problem = f"is more than connections ({limits.connections}), so it limits nothing"
            yield self._at.fault((*section, "connections_per_ip"), problem, "Write less", _WARNING)

    def _times(self) -> Iterator[Fault]:
        spool, retry = self._config.spool, self._config.retry
        if spool.keep_body > spool.keep and self._sound(("spool", "keep"), ("spool", "keep_body")):
            problem = f"is longer than keep ({format_duration(spool.keep)}), and bodies go with the rest at the latest"
            yield self._at.fault(("spool", "keep_body"), problem, "Write keep or less, or raise keep")
        if retry.held_lifetime < retry.lifetime and self._sound(("retry", "lifetime"), ("retry", "held_lifetime")):
            problem = f"is less than lifetime ({format_duration(retry.lifetime)}), so holding mail would end it sooner"
            yield self._at.fault(("retry", "held_lifetime"), problem, "Write lifetime or more")
        # the default of delay_notice means "if it lasts that long", a written one is meant to happen
        meant = "delay_notice" in retry.model_fields_set and self._sound(("retry", "lifetime"))
        if meant and retry.delay_notice > retry.lifetime:
            problem = f"is longer than lifetime ({format_duration(retry.lifetime)}), so it would never be sent"
            yield self._at.fault(("retry", "delay_notice"), problem, "Write less than lifetime, or 0s for never")


def items(positions: Positions, section: str, values: Iterable[Any]) -> Iterator[tuple[Loc, Any]]:
    """The items of a list with their places, which in a faulty file are not their indexes."""
    kept = positions.kept.get(section)
    for index, value in enumerate(values):
        yield (section, kept[index] if kept is not None else index), value


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
