"""Prometheus metrics: every name relayd shows. What the parts report goes through observers.py.

Counting on the hot path is a dictionary entry; prometheus_client hears of it once a second. With several workers
the figures live in files that any of them can sum. docs/metrics.md explains each name to people.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess

from relayd.core.event import Event, EventKind
from relayd.core.mail import upstream_of
from relayd.core.units import Millis
from relayd.events.observers import DeliveryMetrics, InboundMetrics, IntakeMetrics, ListenerMetrics
from relayd.events.shared import share
from relayd.events.tally import Spread, Tallies, Tally
from relayd.spool.store import LaneDepth
from relayd.version import installed

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_BATCH = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class Metrics:
    """One process's metrics: a reader of the store's events, and the observers of the parts that do the work.

    `intake`, `listeners`, `delivery` and `inbound` are what those parts take as their observer.
    """

    def __init__(self, slots: int = 1, directory: Path | None = None, slot: int = 0) -> None:
        """With several `slots` the figures are kept in `directory`, shared by the workers.

        A restarted worker goes on counting in the files of its `slot`, so that counters never fall.
        """
        self._directory = directory if slots > 1 else None
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        if self._directory is not None:
            share(self._directory, str(slot))
        self.registry = CollectorRegistry()
        self._tallies = Tallies()
        self._events = self._event_table()
        self._messages = self._tally("relayd_messages_accepted_total", "Messages kept.", "listener")
        self._maillog_dropped = self._tally("relayd_maillog_dropped_total", "Lines the mail log could not write.")
        refused = self._tally("relayd_refused_total", "Refusals to clients.", "listener", "reason")
        self.intake = IntakeMetrics(refused, self._tally("relayd_auth_total", "Logins tried.", "listener", "result"))
        self.listeners = self._listener_metrics(refused)
        self.delivery = self._delivery_metrics()
        self.inbound = self._inbound_metrics()
        self._spool_metrics()
        self._machine_metrics(slots)

    # -- what there is

    def _tally(self, name: str, text: str, *labels: str) -> Tally:
        return self._tallied(Counter(name, text, labels, registry=self.registry), len(labels))

    def _tallied(self, metric: Counter | Gauge, labels: int) -> Tally:
        tally = Tally(metric, labels, self._tallies)
        self._tallies.all.append(tally)
        return tally

    def _gauge(self, name: str, text: str, *labels: str, mode: str = "livesum") -> Gauge:
        return Gauge(name, text, labels, registry=self.registry, multiprocess_mode=mode)  # type: ignore[arg-type]

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(name, text, labels, registry=self.registry, buckets=buckets)

    def _spread(self, histogram: Histogram) -> Spread:
        spread = Spread(histogram, self._tallies)
        self._tallies.all.append(spread)
        return spread

    def _event_table(self) -> dict[EventKind, tuple[Tally, tuple[str, ...]]]:
        """Event → its tally and the details that label it."""

        def row(name: str, text: str, *labels: str) -> tuple[Tally, tuple[str, ...]]:
            return self._tally(name, text, *labels), labels

        return {
            EventKind.ACCEPTED: row("relayd_accepted_total", "Recipients kept.", "listener"),
            EventKind.DELIVERED: row("relayd_delivered_total", "Recipients delivered.", "upstream"),
            EventKind.DEFERRED: row("relayd_deferred_total", "Attempts that failed for now.", "upstream", "class"),
            EventKind.BOUNCED: row("relayd_bounced_total", "Recipients refused for good.", "upstream", "class"),
            EventKind.EXPIRED: row("relayd_expired_total", "Recipients whose lifetime ended.", "upstream"),
            EventKind.UNCERTAIN: row("relayd_uncertain_total", "Attempts silent after the final dot.", "upstream"),
            EventKind.SUPPRESSED: row("relayd_suppressed_total", "Recipients not mailed: blocked.", "class"),
            EventKind.HELD: row("relayd_held_total", "Recipients put on hold."),
            EventKind.RELEASED: row("relayd_released_total", "Recipients released from hold."),
            EventKind.DELAYED: row("relayd_delayed_total", "Recipients whose sender was told of a delay."),
            EventKind.RETRIED: row("relayd_retried_total", "Recipients an operator retried at once."),
            EventKind.MOVED: row("relayd_moved_total", "Recipients that took another upstream.", "upstream"),
            EventKind.POSTPONED: row("relayd_postponed_total", "Delays reported from behind an upstream.", "upstream"),
            EventKind.NOTED: row("relayd_noted_total", "Failures reported after the end: nothing changed.", "upstream"),
            EventKind.COMPLAINED: row("relayd_complained_total", "Recipients who reported spam.", "upstream"),
            EventKind.REPLIED: row("relayd_replied_total", "Automatic answers of recipients.", "upstream"),
            EventKind.CONFIRMED: row(
                "relayd_confirmed_total", "Successes reported from behind an upstream.", "upstream"
            ),
            EventKind.DELETED: row("relayd_deleted_total", "Recipients an operator deleted."),
        }

    def _listener_metrics(self, refused: Tally) -> ListenerMetrics:
        return ListenerMetrics(
            refused,
            self._tally("relayd_connections_opened_total", "Client connections taken.", "listener"),
            self._tally("relayd_tls_connections_total", "TLS handshakes with clients.", "listener", "version"),
            self._tally("relayd_long_lines_total", "Lines over limits.line_length, relayed as they came.", "listener"),
            self._tallied(self._gauge("relayd_connections", "Open client connections.", "listener"), 1),
        )

    def _delivery_metrics(self) -> DeliveryMetrics:
        failed = "Connections to upstreams that did not come about."
        return DeliveryMetrics(
            self._histogram("relayd_attempt_seconds", "Time of one transaction.", _SECONDS, "upstream"),
            self._gauge("relayd_upstream_connections", "Open connections to upstreams.", "upstream"),
            self._gauge("relayd_upstream_paused", "1 while trouble pauses it.", "upstream", mode="livemax"),
            self._tally("relayd_upstream_connect_failed_total", failed, "upstream", "class"),
            self._tally("relayd_reports_total", "Reports to senders.", "kind"),
            suspended=self._gauge("relayd_upstream_suspended", "1 while suspended.", "upstream", mode="livemax"),
            events=self._tally("relayd_upstream_events_total", "What happened to upstreams.", "upstream", "event"),
            spread=self._spread,
        )

    def _inbound_metrics(self) -> InboundMetrics:
        tally = self._tally
        return InboundMetrics(
            tally("relayd_inbound_total", "Mails that came back and were read.", "kind"),
            tally("relayd_inbound_facts_total", "What they said about recipients of ours.", "kind", "result"),
            tally("relayd_inbound_unmatched_total", "Reports that name no mail of ours.", "kind"),
            tally("relayd_inbound_filed_total", "Mails filed for people to read."),
            fetched=tally("relayd_mailbox_fetched_total", "Mails fetched from mailboxes.", "mailbox"),
            failed=tally("relayd_mailbox_failures_total", "Attempts to read a mailbox that failed.", "mailbox"),
        )

    def _spool_metrics(self) -> None:
        gauge = self._gauge
        commit = self._histogram("relayd_commit_seconds", "Time of one commit to the spool.", _SECONDS)
        self._commit = self._spread(commit)
        self._batch = self._spread(self._histogram("relayd_commit_batch", "Changes that shared one commit.", _BATCH))
        self._depth = gauge("relayd_queue_depth", "Recipients waiting.", "upstream")
        age = "Age of the oldest waiting recipient."
        self._oldest = gauge("relayd_queue_oldest_seconds", age, "upstream", mode="livemax")
        self._blocks = gauge("relayd_blocks", "Addresses and domains that are blocked.", "class", mode="livemax")
        lives = "How long the login of an account still lives."
        self._credential = gauge(
            "relayd_upstream_credential_expires_seconds", lives, "upstream", "account", mode="livemin"
        )
        labels = ("upstream", "account", "kind", "window")
        limit, used = "What a budget allows in a window.", "What was used of it, leased permits included."
        self._budget_limit = gauge("relayd_upstream_budget_limit", limit, *labels, mode="livemax")
        self._budget_used = gauge("relayd_upstream_budget_used", used, *labels, mode="livemax")
        waiting = "1 while mail waits for a budget."
        self._budget_waiting = gauge("relayd_upstream_budget_waiting", waiting, "upstream", "account", mode="livemax")
        self._budgets: set[tuple[str, str, str, str]] = set()
        self._damaged = gauge("relayd_spool_damaged_segments", "Spool files set aside as damaged.")
        self._lanes: set[str] = set()
        state = "1 for the state that a sender domain is in."
        self._domain_state = gauge("relayd_domain_state", state, "domain", "state", mode="livemax")
        self._domains: set[tuple[str, str]] = set()
        lasts = "How long the certificate of a tracking host is still good; below 0: it has expired."
        self._certificate = gauge("relayd_certificate_expires_seconds", lasts, "host", mode="livemin")
        self._certified: set[str] = set()
        self._blocked: set[str] = set()

    def _machine_metrics(self, slots: int) -> None:
        gauge = self._gauge
        self._disk_free = gauge("relayd_disk_free_bytes", "Room for the spool.", mode="livemin")
        self._disk_ratio = gauge("relayd_disk_free_ratio", "Free share of the disk.", mode="livemin")
        self._inodes = gauge("relayd_disk_free_inodes_ratio", "Free share of inodes.", mode="livemin")
        self._memory = gauge("relayd_memory_used_bytes", "Octets of messages in memory.")
        self._memory_limit = gauge("relayd_memory_limit_bytes", "Octets of messages allowed in memory.")
        gauge("relayd_workers", "Workers that run.").set(1)
        gauge("relayd_workers_wanted", "Workers configured.", mode="livemax").set(slots)
        info = gauge("relayd_build_info", "1; the versions are its labels.", "version", "python", mode="livemax")
        info.labels(installed(), ".".join(map(str, sys.version_info[:3]))).set(1)

    # -- the store

    def events(self, events: Sequence[Event]) -> None:
        """A reader of the store's events."""
        table = self._events
        for event in events:
            tally, keys = table[event.kind]
            detail = event.detail
            values = [detail.get(key) or "" for key in keys]
            if keys and keys[0] == "upstream" and "/" in str(values[0]):
                values[0] = upstream_of(str(values[0]))
            tally.count(tuple(values))
            if event.n == 0 and event.kind is EventKind.ACCEPTED:
                self._messages.count((detail.get("listener") or "",))

    def commit(self, seconds: float, changes: int) -> None:
        """One commit took that long and carried so many changes."""
        self._commit.observe(seconds)
        self._batch.observe(changes)

    def damaged(self, segments: int) -> None:
        """So many spool files of this worker are set aside."""
        self._damaged.set(segments)

    def blocks(self, counts: Mapping[str, int]) -> None:
        """So many addresses and domains are blocked, by class."""
        for cls in self._blocked - counts.keys():
            self._blocks.labels(cls).set(0)
        for cls, count in counts.items():
            self._blocks.labels(cls).set(count)
        self._blocked |= counts.keys()

    def queue(self, lanes: Iterable[LaneDepth], now: Millis) -> None:
        """What waits in this worker's spool."""
        found: dict[str, tuple[int, float]] = {}
        for lane in lanes:
            depth, oldest = found.get(upstream_of(lane.lane), (0, 0.0))
            age = 0.0 if lane.oldest is None else max(now - lane.oldest, 0) / 1000
            found[upstream_of(lane.lane)] = (depth + lane.depth, max(oldest, age))
        seen = set(found)
        for name, (depth, oldest) in found.items():
            self._depth.labels(name).set(depth)
            self._oldest.labels(name).set(oldest)
        for name in self._lanes - seen:
            # an emptied lane is shown as empty: a series that ends would look like one that was forgotten
            self._depth.labels(name).set(0)
            self._oldest.labels(name).set(0)
        self._lanes |= seen

    def credential(self, upstream: str, account: str, seconds: float) -> None:
        """The login of an account lives so long."""
        self._credential.labels(upstream, account).set(seconds)

    def budgets(self, found: Mapping[tuple[str, str, str, str], tuple[int, int]], waiting: Mapping[str, bool]) -> None:
        """Upstream, account, kind and window → limit and use; lane → whether its mail waits for a budget."""
        for labels in self._budgets - found.keys():
            self._budget_limit.labels(*labels).set(0)
            self._budget_used.labels(*labels).set(0)
        for labels, (limit, used) in found.items():
            self._budget_limit.labels(*labels).set(limit)
            self._budget_used.labels(*labels).set(used)
        self._budgets = set(found)
        for lane, waits in waiting.items():
            upstream, _, account = lane.partition("/")
            self._budget_waiting.labels(upstream, account).set(waits)

    def domains(self, states: Iterable[tuple[str, str]]) -> None:
        """The sender domains with their states, all of them."""
        now = set(states)
        for domain, state in self._domains - now:
            self._domain_state.labels(domain, state).set(0)
        for domain, state in now:
            self._domain_state.labels(domain, state).set(1)
        self._domains |= now

    def certificates(self, seconds: Mapping[str, float]) -> None:
        """The certificates of tracking hosts are good for so long, all of them."""
        for host in self._certified - set(seconds):
            self._certificate.labels(host).set(math.inf)  # nothing is left of it that could expire
        for host, left in seconds.items():
            self._certificate.labels(host).set(left)
        self._certified |= set(seconds)

    # -- the machine

    def disk(self, free_bytes: int, free_ratio: float, free_inodes: float) -> None:
        """Room where the spool is: octets, and the free shares (0 to 1) of octets and inodes."""
        self._disk_free.set(free_bytes)
        self._disk_ratio.set(free_ratio)
        self._inodes.set(free_inodes)

    def memory(self, used: int, limit: int) -> None:
        """Octets of messages in memory, and their limit, of this worker."""
        self._memory.set(used)
        self._memory_limit.set(limit)

    def maillog_dropped(self, lines: int) -> None:
        """The mail log lost lines."""
        self._maillog_dropped.add(count=lines)

    # -- showing it

    def flush(self) -> None:
        """Make what was counted visible to the other workers now (it is within a second anyway)."""
        self._tallies.flush()

    def render(self) -> bytes:
        """The text format, summed over all workers. Raises OSError when the shared files cannot be read."""
        self.flush()
        return self._render()

    async def page(self) -> bytes:
        """The same without holding up the loop: reading many workers' files takes milliseconds."""
        self.flush()
        return await asyncio.to_thread(self._render)

    def _render(self) -> bytes:
        if self._directory is None:
            return generate_latest(self.registry)
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry, str(self._directory))  # type: ignore[no-untyped-call]
        return generate_latest(registry)
