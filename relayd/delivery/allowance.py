"""From `limits` of the configuration to the budgets of each lane. Pure.

Each account has its own, and all of an upstream share the upstream's; what is left of them is in state.db.
"""

from __future__ import annotations

from collections.abc import Iterable

from relayd.config.models import Account, Config, SMTPUpstream, UpstreamLimits
from relayd.config.presets import BUDGETS
from relayd.core.permits import Kind, Share, Window
from relayd.core.units import Rate
from relayd.delivery.accounts import lane_name


def limits_of(upstream: SMTPUpstream, account: Account) -> UpstreamLimits:
    """The limits of one account: its own, and where it says nothing the upstream's; budgets are its own alone."""
    own = account.limits or UpstreamLimits()
    known = {name: getattr(own, name) for name in own.model_fields_set}
    return upstream.limits.model_copy(update=dict.fromkeys(BUDGETS, ()) | known)


def shares_of(config: Config) -> dict[str, tuple[Share, ...]]:
    """Lane → the budgets that its mail has to fit in, its own first."""
    out: dict[str, tuple[Share, ...]] = {}
    for name, upstream in config.upstreams.items():
        whole = tuple(_shares(name, upstream.limits))
        if not isinstance(upstream, SMTPUpstream) or not upstream.accounts:
            out[name] = whole
            continue
        for account in upstream.accounts:
            lane = lane_name(name, account)
            out[lane] = (*_shares(lane, limits_of(upstream, account)), *whole)
    return out


def _shares(name: str, limits: UpstreamLimits) -> Iterable[Share]:
    for kind, rates in ((Kind.MESSAGES, limits.messages), (Kind.RECIPIENTS, limits.recipients)):
        if rates:
            yield Share(name, kind, tuple(map(_window, rates)))


def _window(rate: Rate) -> Window:
    return Window(rate.count, round(rate.seconds * 1000))
