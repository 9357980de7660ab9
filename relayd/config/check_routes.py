"""Finds what contradicts itself about routes and rules: names nobody knows, routes that are never reached."""

from __future__ import annotations

from collections.abc import Iterator

from relayd.config.fault import UNKNOWN, Fault, Loc, Positions, Severity
from relayd.config.models import Config, Route

_WARNING = Severity.WARNING


def check_routes(at: Positions, config: Config, known: set[str]) -> Iterator[Fault]:
    """Routes that name what is not there, and those that no mail reaches. `known`: the names of upstreams."""
    for loc, route in at.items("routes", config.routes):
        yield from _route(at, config, known, loc, route)
    yield from _order(at, config)


def _route(at: Positions, config: Config, known: set[str], loc: Loc, route: Route) -> Iterator[Fault]:
    here = (*loc, "upstream")
    for place, name in enumerate(route.upstreams):
        if isinstance(route.upstream, list):
            here = (*loc, "upstream", place)
        yield from at.unknown(here, "upstream", name, known, UNKNOWN)
    match = route.match
    if match is None:
        return
    if match.network is not None:
        networks = at.names("networks", config.networks)
        here, remedy = (*loc, "match", "network"), "Define it under networks; addresses cannot be written here"
        yield from at.unknown(here, "network", match.network, networks, remedy)
    if match.credential is not None and at.sound(("credentials",)):
        users = {credential.username for credential in config.credentials}
        if not {"*", "?"} & set(match.credential):
            here, remedy = (*loc, "match", "credential"), "Define it under credentials, or name one that is there"
            yield from at.unknown(here, "credential", match.credential, users, remedy)


def _order(at: Positions, config: Config) -> Iterator[Fault]:
    routes = list(at.items("routes", config.routes))
    catch_all: Loc | None = None
    seen: dict[str, Loc] = {}
    for loc, route in routes:
        if not at.sound((*loc, "match")):
            continue
        everything = route.match is None or route.match.everything
        rule = "" if everything or route.match is None else route.match.model_dump_json().lower()
        first = catch_all or seen.get(rule)
        if first is not None:
            why = "takes everything" if catch_all else "has the same match"
            line = at.place(first).line
            where = f"the route in line {line}" if line else f"routes[{first[1]}]"
            problem = f"this route is never reached, because {where} {why}"
            yield at.fault(loc, problem, "Move it up, or take it out")
        seen.setdefault(rule, loc)
        catch_all = loc if everything and catch_all is None else catch_all
    if routes and catch_all is None and at.sound(("routes",)):
        problem = "no route takes everything, so mail that fits none is refused (550 5.4.4)"
        remedy = "End with a route that has only an upstream, unless this is meant"
        yield at.fault(routes[-1][0], problem, remedy, _WARNING)


def check_rules(at: Positions, config: Config, known: set[str]) -> Iterator[Fault]:
    """Rules about upstreams that are not there."""
    for loc, rule in at.items("rules", config.rules):
        if rule.upstream is not None:
            yield from at.unknown((*loc, "upstream"), "upstream", rule.upstream, known, UNKNOWN)
