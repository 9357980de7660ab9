"""Metrics: right in one process and summed over several, cheap to count, and all of them documented."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from relayd.core.event import Event, EventKind
from relayd.delivery.observer import DeliveryObserver
from relayd.events.metrics import Metrics
from relayd.events.tally import MOST_LABELS, Spread, Tallies
from relayd.intake.observer import AuthFailure, IntakeObserver, Refusal
from relayd.listener.observer import ListenerObserver, ListenerRefusal
from relayd.spool.store import LaneDepth
from relayd.web.http import CONTENT_TYPE

DOCS = Path(__file__).parent.parent.parent / "docs" / "metrics.md"


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return _value(metrics.render(), name, labels)


def _value(page: bytes, name: str, labels: dict[str, str]) -> float | None:
    for family in text_string_to_metric_families(page.decode()):
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return float(sample.value)
    return None


def event(kind: EventKind, n: int = 0, **detail: Any) -> Event:
    return Event(0, 1, n, kind, "you@example.org", "app@example.com", detail)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def test_events_are_counted_by_listener_upstream_and_class(metrics: Metrics) -> None:
    metrics.events([event(EventKind.ACCEPTED, 0, listener="local"), event(EventKind.ACCEPTED, 1, listener="local")])
    metrics.events([event(EventKind.DELIVERED, upstream="acme")])
    metrics.events([event(EventKind.BOUNCED, upstream="acme", **{"class": "no-mailbox"})])
    assert value(metrics, "relayd_accepted_total", listener="local") == 2
    assert value(metrics, "relayd_messages_accepted_total", listener="local") == 1
    assert value(metrics, "relayd_delivered_total", upstream="acme") == 1
    assert value(metrics, "relayd_bounced_total", **{"upstream": "acme", "class": "no-mailbox"}) == 1


@pytest.mark.parametrize("kind", EventKind)
def test_every_kind_of_event_has_a_counter_and_bears_missing_details(metrics: Metrics, kind: EventKind) -> None:
    metrics.events([event(kind)])
    page = metrics.render().decode()
    assert re.search(rf"^relayd_{kind}_total(\{{[^}}]*\}})? 1\.0$", page, re.M), page


def test_what_is_counted_is_handed_on_within_a_second_or_when_shown(metrics: Metrics) -> None:
    metrics.listeners.connected("local")
    assert metrics.registry.get_sample_value("relayd_connections_opened_total", {"listener": "local"}) is None
    metrics.flush()
    assert metrics.registry.get_sample_value("relayd_connections_opened_total", {"listener": "local"}) == 1


async def test_on_a_loop_one_timer_hands_on_what_was_counted(metrics: Metrics) -> None:
    metrics.intake.auth_succeeded("local")
    metrics.intake.auth_failed(AuthFailure.PASSWORD, "local")

    def shown() -> float | None:
        return metrics.registry.get_sample_value("relayd_auth_total", {"listener": "local", "result": "ok"})

    assert shown() is None
    async with asyncio.timeout(30):
        while shown() != 1:  # noqa: ASYNC110 - the timer is the metrics' own
            await asyncio.sleep(0.05)
    assert value(metrics, "relayd_auth_total", listener="local", result="password") == 1


def test_refusals_of_intake_and_listener_share_one_metric(metrics: Metrics) -> None:
    metrics.intake.refused(Refusal.SENDER_DENIED, "local")
    metrics.listeners.refused("local", ListenerRefusal.BARE_NEWLINE)
    assert value(metrics, "relayd_refused_total", listener="local", reason="sender-denied") == 1
    assert value(metrics, "relayd_refused_total", listener="local", reason="bare-newline") == 1


def test_connections_rise_and_fall(metrics: Metrics) -> None:
    metrics.listeners.connected("local")
    metrics.listeners.connected("local")
    metrics.listeners.disconnected("local")
    assert value(metrics, "relayd_connections", listener="local") == 1
    assert value(metrics, "relayd_connections_opened_total", listener="local") == 2


def test_an_emptied_lane_is_shown_as_empty(metrics: Metrics) -> None:
    metrics.queue([LaneDepth("acme", 5, 10_000)], now=70_000)
    assert value(metrics, "relayd_queue_depth", upstream="acme") == 5
    assert value(metrics, "relayd_queue_oldest_seconds", upstream="acme") == 60
    metrics.queue([], now=80_000)
    assert value(metrics, "relayd_queue_depth", upstream="acme") == 0
    assert value(metrics, "relayd_queue_oldest_seconds", upstream="acme") == 0


def test_histograms_of_attempts_and_commits(metrics: Metrics) -> None:
    metrics.delivery.attempt("acme", 0.02)
    metrics.commit(0.004, 17)
    assert value(metrics, "relayd_attempt_seconds_bucket", upstream="acme", le="0.025") == 1
    assert value(metrics, "relayd_commit_seconds_count") == 1
    assert value(metrics, "relayd_commit_batch_bucket", le="10.0") == 0
    assert value(metrics, "relayd_commit_batch_bucket", le="20.0") == 1


@given(st.lists(st.floats(0, 1000) | st.sampled_from([0.5, 1.0, 2.5])))
def test_what_waits_is_spread_over_buckets_as_the_library_does_it(amounts: list[float]) -> None:
    ours = CollectorRegistry()
    theirs = CollectorRegistry()
    buckets = (0.5, 1.0, 2.5, 100.0)
    spread = Spread(Histogram("seconds", "Text.", registry=ours, buckets=buckets), Tallies())
    histogram = Histogram("seconds", "Text.", registry=theirs, buckets=buckets)
    for amount in amounts:
        spread.observe(amount)
        histogram.observe(amount)
    spread.flush()
    found, expected = (text_string_to_metric_families(generate_latest(each).decode()) for each in (ours, theirs))
    for one, other in zip(found, expected, strict=True):
        assert [(s.name, s.labels, pytest.approx(s.value)) for s in one.samples] == [
            (s.name, s.labels, s.value) for s in other.samples
        ]


def test_label_combinations_are_bounded(metrics: Metrics) -> None:
    for number in range(MOST_LABELS + 50):
        metrics.events([event(EventKind.DELIVERED, upstream=f"u{number}")])
    metrics.flush()
    metrics.events([event(EventKind.DELIVERED, upstream=f"u{MOST_LABELS + 7}")])
    assert value(metrics, "relayd_delivered_total", upstream="other") == 51


def test_it_is_what_the_parts_take_as_their_observers(metrics: Metrics) -> None:
    intake: IntakeObserver = metrics.intake
    listeners: ListenerObserver = metrics.listeners
    delivery: DeliveryObserver = metrics.delivery
    for protocol, observer in ((IntakeObserver, intake), (ListenerObserver, listeners), (DeliveryObserver, delivery)):
        names = {name for name in vars(protocol) if not name.startswith("_")}
        assert names <= set(dir(observer))
    listeners.tls("local", "TLSv1.3")
    listeners.long_lines("local", 3)
    delivery.connections("acme", 1)
    delivery.connect_failed("acme", "auth")
    delivery.paused("acme", True)
    delivery.report("failure")
    assert value(metrics, "relayd_long_lines_total", listener="local") == 3
    assert value(metrics, "relayd_upstream_paused", upstream="acme") == 1


def test_the_docs_name_every_metric_with_its_labels_and_no_other(metrics: Metrics) -> None:
    documented = {
        match[1]: tuple(label.strip() for label in match[2].split(",") if label.strip())
        for match in re.finditer(r"^\| `(relayd_\w+)` \|([^|]*)\|", DOCS.read_text(), re.M)
    }
    real = {}
    for collector in metrics.registry._collector_to_names:
        name: str = collector._name  # type: ignore[attr-defined]
        suffix = "_total" if collector._type == "counter" else ""  # type: ignore[attr-defined]
        real[name + suffix] = tuple(collector._labelnames)  # type: ignore[attr-defined]
    real["relayd_worker_restarts_total"] = ()
    assert documented == real


def test_the_web_server_says_the_right_content_type() -> None:
    from relayd.events import metrics as module

    assert CONTENT_TYPE == module.CONTENT_TYPE


WORKER = """
import json, sys
from pathlib import Path
from relayd.core.event import Event, EventKind
from relayd.events.metrics import Metrics
from relayd.spool.store import LaneDepth
slot, directory = int(sys.argv[1]), Path(sys.argv[2])
metrics = Metrics(2, directory, slot)
metrics.events([Event(0, 1, 0, EventKind.DELIVERED, "r", "s", {"upstream": "acme"})] * 10)
metrics.queue([LaneDepth("acme", 3, 1000 * (slot + 1))], now=10_000)
metrics.disk(100 + slot, 0.5, 0.5)
metrics.delivery.paused("acme", slot == 1)
metrics.commit(0.001, 5)
metrics.flush()
print("up", flush=True)
sys.stdin.readline()
sys.stdout.write(metrics.render().decode())
"""


class WorkerProcess:
    """A process with its own Metrics on the shared directory."""

    def __init__(self, slot: int, directory: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(slot), str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line != b"up\n":
            self.kill()
            raise AssertionError("the worker did not start")

    def page(self) -> bytes:
        return self.process.communicate(b"\n", timeout=30)[0]

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=30)


def test_any_worker_shows_the_sum_of_all(tmp_path: Path) -> None:
    first, second = WorkerProcess(0, tmp_path), WorkerProcess(1, tmp_path)
    page = first.page()
    second.kill()
    assert _value(page, "relayd_delivered_total", {"upstream": "acme"}) == 20
    assert _value(page, "relayd_queue_depth", {"upstream": "acme"}) == 6
    assert _value(page, "relayd_queue_oldest_seconds", {"upstream": "acme"}) == 9
    assert _value(page, "relayd_disk_free_bytes", {}) == 100
    assert _value(page, "relayd_upstream_paused", {"upstream": "acme"}) == 1
    assert _value(page, "relayd_commit_seconds_count", {}) == 2
    assert _value(page, "relayd_workers", {}) == 2
    assert _value(page, "relayd_workers_wanted", {}) == 2


SUPERVISOR = """
import sys
from pathlib import Path
from relayd.events.shared import SupervisorMetrics
metrics = SupervisorMetrics(Path(sys.argv[1]))
metrics.died(1)
metrics.restarted()
"""


def test_a_dead_workers_gauges_go_and_its_counters_stay_and_go_on(tmp_path: Path) -> None:
    first, second = WorkerProcess(0, tmp_path), WorkerProcess(1, tmp_path)
    second.kill()
    subprocess.run([sys.executable, "-c", SUPERVISOR, str(tmp_path)], check=True)
    page = first.page()
    assert _value(page, "relayd_delivered_total", {"upstream": "acme"}) == 20
    assert _value(page, "relayd_queue_depth", {"upstream": "acme"}) == 3
    assert _value(page, "relayd_workers", {}) == 1
    assert _value(page, "relayd_worker_restarts_total", {}) == 1
    again = WorkerProcess(1, tmp_path).page()
    assert _value(again, "relayd_delivered_total", {"upstream": "acme"}) == 30
    assert _value(again, "relayd_queue_depth", {"upstream": "acme"}) == 6, (
        "the first one's gauges stay until it is marked"
    )
