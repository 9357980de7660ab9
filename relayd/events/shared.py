"""Figures of several processes in one directory: where each keeps its own, and those of the supervisor.

Which metrics there are, and how workers sum them, is metrics.py's, which loads more than a supervisor needs.
"""

from __future__ import annotations

import os
from pathlib import Path

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, multiprocess, values


class SupervisorMetrics:
    """What only the supervisor knows, beside its workers' files."""

    def __init__(self, directory: Path) -> None:
        share(directory, "supervisor")
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._restarts = Counter(
            "relayd_worker_restarts_total", "Workers that ended and were started again.", registry=self.registry
        )
        self._directory = directory

    def died(self, slot: int) -> None:
        """A worker ended: its gauges go, its counters stay."""
        multiprocess.mark_process_dead(slot, str(self._directory))  # type: ignore[no-untyped-call]

    def restarted(self) -> None:
        """A worker is being started again."""
        self._restarts.inc()


def share(directory: Path, identity: str) -> None:
    """Keep this process's values in files of `directory`, under `identity` instead of the process id.

    prometheus_client knows one such place per process, named by the environment, chosen before the first metric.
    """
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(directory)
    values.ValueClass = values.MultiProcessValue(lambda: identity)  # type: ignore[no-untyped-call]


def clear(directory: Path) -> None:
    """Begin from nothing: make the directory, drop what an earlier run left. Raises OSError."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for file in directory.glob("*.db"):
        file.unlink()
