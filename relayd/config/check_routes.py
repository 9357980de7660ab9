"""Finds what contradicts itself about several upstreams: overflow in a circle, rules about upstreams nobody knows.

Routes themselves are judged by check.py.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from relayd.config.fault import Fault, Loc, Positions, Severity
from relayd.config.models import Config, SMTPUpstream


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
            yield _unknown(at, loc, other, known)
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
    return not any(rate.seconds >= DAY for each in limits for rate in (*each.messages, *each.recipients))


DAY = 86_400.0
"""Seconds of the shortest budget whose end overflow waits for."""


def check_rules(at: Positions, config: Config, known: set[str]) -> Iterator[Fault]:
    """Rules about upstreams that are not there."""
    kept = at.kept.get("rules")
    for index, rule in enumerate(config.rules):
        loc: Loc = ("rules", kept[index] if kept is not None else index, "upstream")
        if rule.upstream is not None and rule.upstream not in known and at.sound(loc):
            yield _unknown(at, loc, rule.upstream, known)


def _unknown(at: Positions, loc: Loc, name: str, known: set[str]) -> Fault:
    near = difflib.get_close_matches(name, sorted(known), 1)
    remedy = f"Did you mean {near[0]}?" if near else "Define it under upstreams, or name one that is there"
    return at.fault(loc, f"there is no upstream {name!r}", remedy)
