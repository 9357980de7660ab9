"""Which of an upstream's ports to try first: the preferred one, or the one that could be reached lately.

Pure. Each worker remembers for itself, in memory, for ten minutes: after that the preferred port gets its chance again.
"""

from __future__ import annotations

from collections.abc import Sequence

REMEMBERED = 600.0
"""Seconds that a port which could not be reached goes last."""


class Ports:
    """The ports of one upstream. Times in seconds of a steady clock."""

    def __init__(self, ports: Sequence[int]) -> None:
        self._ports = tuple(ports)
        self._unreachable: dict[int, float] = {}

    def order(self, now: float) -> tuple[int, ...]:
        """In which order to try them; those that failed lately come last, the longest ago first."""
        failed = {port: at for port, at in self._unreachable.items() if now - at < REMEMBERED}
        self._unreachable = failed
        if not failed:
            return self._ports
        return tuple(sorted(self._ports, key=lambda port: failed.get(port, -1.0)))

    def unreachable(self, port: int, now: float) -> None:
        """No connection came about."""
        self._unreachable[port] = now

    def reached(self, port: int) -> None:
        """It can be reached."""
        self._unreachable.pop(port, None)
