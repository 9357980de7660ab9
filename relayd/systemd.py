"""Telling systemd how we are: the sd_notify protocol (READY, RELOADING, STOPPING, STATUS, WATCHDOG).

Without NOTIFY_SOCKET every call does nothing, so that callers need not ask. What "healthy" means is their business.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, MutableMapping

import structlog


class Notifier:
    """Sends state to the service manager (sd_notify(3)). Never raises: a manager that is gone stops nothing."""

    def __init__(self, address: str | None = None, watchdog: float | None = None) -> None:
        """`address`: path of the manager's socket, "@…" for an abstract one. `watchdog`: its limit in seconds."""
        self.watchdog = watchdog
        self._address: str | None = None
        self._socket: socket.socket | None = None
        if address is not None and address[:1] in {"/", "@"}:
            self._address = "\0" + address[1:] if address.startswith("@") else address
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            # a manager whose queue is full must not stop our event loop
            self._socket.setblocking(False)

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str] = os.environ) -> Notifier:
        """What systemd set for this process; the variables are removed, for our children are not the service."""
        address = environ.pop("NOTIFY_SOCKET", None)
        usec = environ.pop("WATCHDOG_USEC", "")
        pid = environ.pop("WATCHDOG_PID", str(os.getpid()))
        watchdog = int(usec) / 1e6 if usec.isdigit() and int(usec) > 0 and pid == str(os.getpid()) else None
        return cls(address, watchdog)

    @property
    def active(self) -> bool:
        """Someone listens."""
        return self._socket is not None

    def ready(self, status: str) -> None:
        """Started, or done with a reload."""
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """A reload began; MONOTONIC_USEC tells the manager which of its requests this answers."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, seconds: float) -> None:
        """Stopping began and may take that long: the manager waits at least as long before it kills."""
        self._send("STOPPING=1", "STATUS=draining", f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def starting(self, seconds: float, status: str) -> None:
        """Still starting; give us that long before giving up."""
        self._send(f"STATUS={status}", f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={text}")

    def alive(self) -> None:
        """Feed the watchdog."""
        self._send("WATCHDOG=1")

    def close(self) -> None:
        """Release the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *fields: str) -> None:
        if self._socket is None or self._address is None:
            return
        # a line end inside a value would start another assignment
        message = "\n".join(" ".join(field.splitlines()) for field in fields)
        try:
            self._socket.sendto(message.encode("utf-8", "replace"), self._address)
        except OSError as error:
            structlog.get_logger("relayd.systemd").warning("notify_failed", reason=error.strerror)


async def feed_watchdog(notifier: Notifier, healthy: Callable[[], bool]) -> None:
    """Feed the watchdog from the event loop at half its limit, while `healthy`. Runs until cancelled."""
    if notifier.watchdog is None:
        return
    while True:
        if healthy():
            notifier.alive()
        await asyncio.sleep(notifier.watchdog / 2)
