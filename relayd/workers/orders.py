"""What the daemon and its supervisor know of the configuration: a few values, and the whole of it sealed, for workers.

Nothing here loads relayd.config: its models and pydantic take as much memory as all else that a supervisor needs.
Who makes orders of a configuration, and opens them, is sealing.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ListenerOrders:
    """Where a listener listens."""

    name: str
    bind: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WebOrders:
    """Where the web server listens, by use."""

    bind: tuple[str, ...]
    public: tuple[str, ...]
    public_tls: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LogOrders:
    """How to log, and what must not be seen there."""

    format: str
    level: str
    secrets: frozenset[str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Orders:
    """A configuration that was checked. Workers get the very values that were: they read no file that may change."""

    data_dir: Path
    worker_count: int
    shutdown: float
    """Seconds."""
    log: LogOrders
    listeners: tuple[ListenerOrders, ...]
    web: WebOrders
    version: str
    """Of the relayd that checked it: another one may mean something else by it."""
    sealed: bytes = field(repr=False)
    """All of it, secrets too."""


@dataclass(frozen=True, slots=True)
class Report:
    """What became of a look at a file: orders, or the faults for which there are none, in lines for people."""

    orders: Orders | None
    faults: tuple[str, ...]
    warnings: tuple[str, ...]
    changes: tuple[str, ...]
    """What differs from the orders that hold."""


@dataclass(frozen=True, slots=True)
class Handover:
    """What `relayd serve` leaves to the daemon that takes its place."""

    orders: Orders
    config_path: Path
    greet: bool
    program: str
    """How relayd was called."""
    lock: int
    """The descriptor that holds the lock of data_dir."""
