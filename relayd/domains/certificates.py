"""Which hosts need a certificate, when it is got or renewed, and what a failure means for the next attempt. Pure.

Getting one is issuing.py's, keys and contexts are issued.py's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from relayd.config.models import Config
from relayd.core.units import Millis
from relayd.spool.certificates import Certificate
from relayd.spool.domains import Everything, TrackingDomain, TrackingState

ORDER_AGAIN: Millis = 3_600_000
"""After an order that failed, so long at least until the next for that host: CAs count failed ones by the hour."""
_LOOK_AGAIN: Millis = 300_000
"""After a failure before the order: a port that leads elsewhere, a CA that is away."""
_LONGEST: Millis = 86_400_000
_ASKED_MOST: Millis = 7 * 86_400_000
"""How far a CA's Retry-After is followed."""
_EVERYONE_MOST: Millis = 3_600_000
"""How long the refusal of one host's order may hold up the orders of all."""
_RENEW_FROM, _RENEW_TO = 0.6, 0.66
"""Share of the lifetime that is over when it is renewed: before the last third begins."""


class CAError(Exception):
    """An order failed; the text tells an operator why.

    `retry_after`: seconds that the CA asked for. `limited`: it says that we ask too much. `down`: it serves nobody now.
    """

    def __init__(self, text: str, *, retry_after: int = 0, limited: bool = False, down: bool = False) -> None:
        super().__init__(text)
        self.retry_after = retry_after
        self.limited = limited
        self.down = down


def wants_one(tracking: TrackingDomain) -> bool:
    """A verified host that leads to our own listener: three steps lead to a TLS front, which has its own."""
    return tracking.state is TrackingState.VERIFIED and tracking.steps == 1


def wanted(everything: Everything, config: Config) -> list[str]:
    """The hosts that need a certificate, the shared one first."""
    if config.tracking.acme is None or config.tracking.host is None:
        return []
    return [config.tracking.host, *(each.name for each in everything.tracking if wants_one(each))]


def due(everything: Everything, config: Config, now: Millis, unusable: Iterable[str] = ()) -> list[str]:
    """The hosts whose certificate is to be got or renewed now. `unusable`: whose key cannot be opened any more."""
    acme = config.tracking.acme
    if acme is None:
        return []
    known = {each.host: each for each in everything.certificates}
    lost = set(unusable)
    return [host for host in wanted(everything, config) if _is_due(known.get(host), acme.directory, now, host in lost)]


def _is_due(known: Certificate | None, directory: str, now: Millis, lost: bool) -> bool:
    if known is None or known.directory != directory:
        return True  # another CA than the last attempt's: nothing of what happened there counts
    return now >= known.due or (lost and not known.failures and bool(known.chain))


def renew_at(not_before: Millis, not_after: Millis, chance: float) -> Millis:
    """When a certificate is to be renewed. `chance` (0 to 1) spreads those that were got together."""
    share = _RENEW_FROM + (_RENEW_TO - _RENEW_FROM) * chance
    return not_before + round((not_after - not_before) * share)


def ordering(known: Certificate, directory: str, now: Millis) -> Certificate:
    """An order is about to be made: written down before, so that a crash in between does not order again and again."""
    return replace(known, directory=directory, ordered_at=now, due=now + ORDER_AGAIN)


def failed(
    known: Certificate, directory: str, error: CAError, *, ordered: bool, now: Millis, chance: float
) -> Certificate:
    """An attempt failed. `ordered`: the CA has counted it. `chance` (0 to 1) is for jitter."""
    failures = known.failures + 1
    base = ORDER_AGAIN if ordered else _LOOK_AGAIN
    wait = min(base << min(failures - 1, 16), _LONGEST)
    asked = min(error.retry_after * 1000, _ASKED_MOST)
    return replace(
        known,
        directory=directory,
        due=now + max(round(wait * (1 + 0.1 * chance)), asked),
        failures=failures,
        failed_at=now,
        error=str(error),
    )


def pause(error: CAError) -> Millis:
    """How long no host is to be ordered for after this failure; 0: it is that host's alone."""
    asked = error.retry_after * 1000
    if error.down:
        return min(max(asked, _LOOK_AGAIN), _LONGEST)
    return min(asked, _EVERYONE_MOST) if error.limited else 0


def got(
    known: Certificate, chain: str, private: bytes, lives: tuple[Millis, Millis], *, now: Millis, chance: float
) -> Certificate:
    """It is there. `lives`: not before, not after."""
    # a clock that differs from the CA's must not make it look old at once, and have it renewed without end
    least = now + min(ORDER_AGAIN, (lives[1] - lives[0]) // 10)
    return replace(
        known,
        chain=chain,
        private=private,
        not_before=lives[0],
        not_after=lives[1],
        due=max(renew_at(*lives, chance), least),
        failures=0,
        failed_at=None,
        error="",
    )


def earliest(known: Certificate | None, now: Millis) -> Millis:
    """When an operator may have it ordered again at the earliest: CAs count orders that succeed, too."""
    if known is None or known.ordered_at is None:
        return now
    return max(now, known.ordered_at + ORDER_AGAIN)


def secure(host: str, everything: Everything, now: Millis) -> bool:
    """Links to this host may be https: it has a certificate that is good now, or a TLS front that has."""
    if any(each.name == host and each.steps > 1 for each in everything.tracking):
        return True
    known = next((each for each in everything.certificates if each.host == host), None)
    return known is not None and (known.not_before or 0) <= now < (known.not_after or 0)
