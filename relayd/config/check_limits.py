"""Finds limits that cannot hold, or say nothing beside others.

Single limits are judged by windows.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from relayd.config.fault import Fault, Loc, Positions, Severity
from relayd.config.models import SMTPUpstream, Upstream, UpstreamLimits
from relayd.core.units import Rate


def check_limits(at: Positions, loc: Loc, upstream: Upstream) -> Iterator[Fault]:
    """Faults in the limits of one upstream and its accounts."""
    yield from _limits(at, (*loc, "limits"), upstream.limits)
    if not isinstance(upstream, SMTPUpstream):
        return
    for index, account in enumerate(upstream.accounts):
        here = (*loc, "accounts", index, "limits")
        if account.limits is not None:
            yield from _limits(at, here, account.limits)
            yield from _beyond(at, here, account.limits, upstream.limits)


def _limits(at: Positions, loc: Loc, limits: UpstreamLimits) -> Iterator[Fault]:
    concurrency = limits.concurrency
    if concurrency is not None and concurrency > limits.connections and at.sound((*loc, "concurrency")):
        problem = f"is more than connections ({limits.connections}), each of which sends one message at a time"
        yield at.fault((*loc, "concurrency"), problem, "Lower it, or raise connections")
    for messages, recipients in _same_period(limits.messages, limits.recipients):
        if messages.count > recipients.count and at.sound((*loc, "messages")):
            problem = (
                f"{messages} can never be reached, because a message has a recipient and recipients is {recipients}"
            )
            yield at.fault((*loc, "messages"), problem, "Lower it, or raise recipients", Severity.WARNING)


def _beyond(at: Positions, loc: Loc, own: UpstreamLimits, whole: UpstreamLimits) -> Iterator[Fault]:
    """An account that may have more than all accounts together."""
    for kind in ("messages", "recipients"):
        for mine, theirs in _same_period(getattr(own, kind), getattr(whole, kind)):
            if mine.count > theirs.count and at.sound((*loc, kind)):
                problem = f"{mine} can never be reached, because all accounts together have {theirs}"
                yield at.fault((*loc, kind), problem, "Lower it, or raise that of the upstream", Severity.WARNING)


def _same_period(first: tuple[Rate, ...], second: tuple[Rate, ...]) -> Iterator[tuple[Rate, Rate]]:
    by_period = {rate.seconds: rate for rate in second}
    return ((rate, by_period[rate.seconds]) for rate in first if rate.seconds in by_period)
