"""Finds what contradicts itself: keys that are right one by one and wrong together, or dangerous.

Each part of the file has its own check_….py; what is left is here. Single values are judged where their kinds are, in
quantities.py, names.py and places.py.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterable, Iterator

from relayd.config.check_files import check_files
from relayd.config.check_listeners import check_credentials, check_listeners, check_networks
from relayd.config.check_returns import check_mailboxes
from relayd.config.check_routes import check_routes, check_rules
from relayd.config.check_upstreams import check_overflow, check_upstreams
from relayd.config.fault import Fault, Positions, Severity, sorted_faults
from relayd.config.models import Config
from relayd.core.bind import is_loopback
from relayd.core.units import format_duration, format_size

_WARNING = Severity.WARNING


def check(config: Config, positions: Positions | None = None) -> list[Fault]:
    """Every fault between keys, and of the files that they name, in the order of lines.

    `positions` tells where keys stand and which are faulty already: nothing is concluded from those.
    """
    at = positions or Positions()
    return sorted_faults(fault for part in _parts(at, config) for fault in part)


def _parts(at: Positions, config: Config) -> Iterator[Iterable[Fault]]:
    upstreams = at.names("upstreams", config.upstreams)
    yield _secret(at, config)
    yield check_networks(at, config)
    yield check_listeners(at, config)
    yield check_credentials(at, config)
    yield check_upstreams(at, config)
    yield check_mailboxes(at, config)
    yield check_routes(at, config, upstreams)
    if ("upstreams",) not in at.faulty:
        yield check_overflow(at, config, upstreams)
        yield check_rules(at, config, upstreams)
    yield _dkim(at, config)
    yield _acme(at, config)
    yield _limits(at, config)
    yield _times(at, config)
    yield check_files(config, at)


def _secret(at: Positions, config: Config) -> Iterator[Fault]:
    secret = config.secret
    if secret is None or not at.sound(("secret",)):
        return
    if len(secret.get_secret_value()) < 16:
        yield at.fault(
            ("secret",), "is short enough to be guessed", "Use 32 random letters or more, or leave it out", _WARNING
        )
    if at.open(("secret",)):
        remedy = "Bring it by !file, !credential or !env, or leave it out and one is made"
        yield at.fault(("secret",), "is written in the file itself", remedy, _WARNING)


def _dkim(at: Positions, config: Config) -> Iterator[Fault]:
    seen: dict[tuple[str, str], int] = {}
    for loc, key in at.items("dkim", config.dkim):
        if not at.sound((*loc, "domain"), (*loc, "selector")):
            continue
        name, line = (key.domain, key.selector), at.place(loc).line
        if name in seen:
            first = f" in line {seen[name]}" if seen[name] else ""
            problem = f"{key.selector}._domainkey.{key.domain} is there already{first}"
            yield at.fault((*loc, "selector"), problem, "Give each key of a domain its own selector")
        seen.setdefault(name, line)


def _acme(at: Positions, config: Config) -> Iterator[Fault]:
    section, acme, web = ("tracking", "acme"), config.tracking.acme, config.web
    if acme is None or not at.sound(("tracking",), section, ("web",)):
        return
    if config.tracking.host is None and at.sound(("tracking", "host")):
        problem = "there is no tracking.host, so there is nothing to get certificates for"
        yield at.fault(section, problem, "Set tracking.host, or take acme out")
    directory, agree = (*section, "directory"), (*section, "agree_terms")
    if not acme.agree_terms and at.sound(agree):
        problem = "the CA issues nothing before you agree to its terms of service"
        where = agree if agree in at.places else section
        yield at.fault(where, problem, "Read them, and set agree_terms: true")
    parts = urllib.parse.urlsplit(acme.directory)
    if parts.scheme != "https" and not is_loopback(parts.hostname or "") and at.sound(directory):
        yield at.fault(directory, "is asked without TLS: anyone on the way can answer", "Use an https URL")
    if not (web.bind or web.public) and at.sound(("web", "bind"), ("web", "public")):
        problem = "the CA looks at port 80 of each host, and nothing here would answer"
        yield at.fault(section, problem, 'Set web.public: ["0.0.0.0:80"]')
    if not web.public_tls and at.sound(("web", "public_tls")):
        problem = "it gets certificates, and nothing shows them"
        yield at.fault(section, problem, 'Set web.public_tls: ["0.0.0.0:443"]')


def _limits(at: Positions, config: Config) -> Iterator[Fault]:
    limits, section = config.limits, ("limits",)
    lines = at.sound((*section, "line_length"), (*section, "line_length_max"))
    if limits.line_length > limits.line_length_max and lines:
        problem = f"is more than line_length_max ({format_size(limits.line_length_max)})"
        yield at.fault((*section, "line_length"), problem, "Write less, or raise line_length_max")
    if limits.memory < limits.message_size and at.sound((*section, "memory"), (*section, "message_size")):
        problem = f"is less than message_size ({format_size(limits.message_size)}), so such a mail never fits"
        yield at.fault((*section, "memory"), problem, "Write more, or lower message_size")
    per_ip = "connections_per_ip" in limits.model_fields_set and at.sound((*section, "connections"))
    if limits.connections_per_ip > limits.connections and per_ip:
        problem = f"is more than connections ({limits.connections}), so it limits nothing"
        yield at.fault((*section, "connections_per_ip"), problem, "Write less", _WARNING)


def _times(at: Positions, config: Config) -> Iterator[Fault]:
    spool, retry = config.spool, config.retry
    if spool.keep_body > spool.keep and at.sound(("spool", "keep"), ("spool", "keep_body")):
        problem = f"is longer than keep ({format_duration(spool.keep)}), and bodies go with the rest at the latest"
        yield at.fault(("spool", "keep_body"), problem, "Write keep or less, or raise keep")
    if retry.held_lifetime < retry.lifetime and at.sound(("retry", "lifetime"), ("retry", "held_lifetime")):
        problem = f"is less than lifetime ({format_duration(retry.lifetime)}), so holding mail would end it sooner"
        yield at.fault(("retry", "held_lifetime"), problem, "Write lifetime or more")
    # the default of delay_notice means "if it lasts that long", a written one is meant to happen
    meant = "delay_notice" in retry.model_fields_set and at.sound(("retry", "lifetime"))
    if meant and retry.delay_notice > retry.lifetime:
        problem = f"is longer than lifetime ({format_duration(retry.lifetime)}), so it would never be sent"
        yield at.fault(("retry", "delay_notice"), problem, "Write less than lifetime, or 0s for never")
