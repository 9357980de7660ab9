"""What each part of the work tells of itself, counted: the observers of intake, listeners, inbound and delivery.

Which figures there are, by what names, is metrics.py's; what the methods mean, the observer.py of each part says.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import Gauge, Histogram

from relayd.core.mail import upstream_of
from relayd.events.tally import Spread, Tally


class IntakeMetrics:
    """An intake observer (relayd/intake/observer.py)."""

    def __init__(self, refused: Tally, auth: Tally) -> None:
        self._refused = refused
        self._auth = auth

    def refused(self, reason: str, listener: str) -> None:
        """A connection, command or message was refused by admission or at the spool."""
        self._refused.add(listener, reason)

    def auth_failed(self, reason: str, listener: str) -> None:
        """A login failed."""
        self._auth.add(listener, reason)

    def auth_succeeded(self, listener: str) -> None:
        """A login succeeded."""
        self._auth.add(listener, "ok")


class ListenerMetrics:
    """A listener observer (relayd/listener/observer.py)."""

    def __init__(self, refused: Tally, total: Tally, tls: Tally, long_lines: Tally, open_: Tally) -> None:
        self._refused = refused
        self._total = total
        self._tls = tls
        self._long_lines = long_lines
        self._open = open_

    def connected(self, listener: str) -> None:
        """A connection was taken in."""
        self._total.add(listener)
        self._open.add(listener)

    def disconnected(self, listener: str) -> None:
        """It is gone."""
        self._open.add(listener, count=-1)

    def tls(self, listener: str, version: str) -> None:
        """A handshake succeeded."""
        self._tls.add(listener, version)

    def refused(self, listener: str, reason: str) -> None:
        """A command, message or connection was refused by the listener itself."""
        self._refused.add(listener, reason)

    def long_lines(self, listener: str, count: int) -> None:
        """A message was taken with so many lines over the standard length."""
        self._long_lines.add(listener, count=count)


class InboundMetrics:
    """An inbound observer (relayd/inbound/observer.py)."""

    def __init__(
        self, mails: Tally, facts: Tally, unmatched: Tally, filed: Tally, *, fetched: Tally, failed: Tally
    ) -> None:
        self._mails = mails
        self._facts = facts
        self._unmatched = unmatched
        self._filed = filed
        self._fetched = fetched
        self._failed = failed

    def read(self, kind: str) -> None:
        """A mail that came back was read to its end."""
        self._mails.add(kind)

    def fact(self, kind: str, applied: str) -> None:
        """A fact about one of our recipients was handed over."""
        self._facts.add(kind, applied)

    def unmatched(self, kind: str) -> None:
        """A report names no mail that we have."""
        self._unmatched.add(kind)

    def filed(self) -> None:
        """A mail was filed for people to read."""
        self._filed.add()

    def fetched(self, mailbox: str) -> None:
        """A mail was fetched from a mailbox and kept."""
        self._fetched.add(mailbox)

    def mailbox_failed(self, mailbox: str) -> None:
        """A mailbox could not be read."""
        self._failed.add(mailbox)


class DeliveryMetrics:
    """A delivery observer (relayd/delivery/observer.py)."""

    def __init__(
        self,
        attempt: Histogram,
        connections: Gauge,
        paused: Gauge,
        failed: Tally,
        reports: Tally,
        *,
        suspended: Gauge,
        events: Tally,
        spread: Callable[[Histogram], Spread],
    ) -> None:
        self._attempt = attempt
        self._spread = spread
        self._connections = connections
        self._paused = paused
        self._failed = failed
        self._reports = reports
        self._attempts: dict[str, Spread] = {}
        self._in_trouble: set[str] = set()
        self._suspended = suspended
        self._events = events
        self._shut: set[str] = set()

    def attempt(self, upstream: str, seconds: float) -> None:
        """One transaction took that long."""
        child = self._attempts.get(upstream)
        if child is None:
            child = self._attempts[upstream] = self._spread(self._attempt.labels(upstream_of(upstream)))
        child.observe(seconds)

    def connections(self, upstream: str, change: int) -> None:
        """A connection to the upstream was opened (+1) or closed (-1)."""
        self._connections.labels(upstream_of(upstream)).inc(change)

    def connect_failed(self, upstream: str, cls: str) -> None:
        """A connection to the upstream did not come about."""
        self._failed.add(upstream_of(upstream), cls)

    def paused(self, upstream: str, paused: bool) -> None:
        """The upstream's trouble began or ended; with accounts, that of one of them."""
        (self._in_trouble.add if paused else self._in_trouble.discard)(upstream)
        name = upstream_of(upstream)
        self._paused.labels(name).set(int(any(upstream_of(each) == name for each in self._in_trouble)))

    def suspended(self, upstream: str, suspended: bool) -> None:
        """An operator or the storm guard suspended it, or lets it go on; with accounts, one of them."""
        (self._shut.add if suspended else self._shut.discard)(upstream)
        name = upstream_of(upstream)
        self._suspended.labels(name).set(int(any(upstream_of(each) == name for each in self._shut)))

    def upstream_event(self, upstream: str, event: str) -> None:
        """Something happened to an upstream."""
        self._events.add(upstream_of(upstream), event)

    def report(self, kind: str) -> None:
        """A report to a sender was made."""
        self._reports.add(kind)
