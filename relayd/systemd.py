"""Talking with systemd: how we are (sd_notify), and the listening sockets that it keeps for us while we restart.

Without NOTIFY_SOCKET every call does nothing, so that callers need not ask. What "healthy" means is their business.
"""

from __future__ import annotations

import array
import asyncio
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping, MutableMapping

import structlog

_FIRST_FD = 3
"""Where inherited descriptors begin (sd_listen_fds(3))."""


def inherited(environ: MutableMapping[str, str] = os.environ) -> list[socket.socket]:
    """The listening TCP sockets that systemd hands over: kept from the run before, or those of a socket unit.

    The variables are removed: our children inherit nothing of it.
    """
    count, pid = environ.pop("LISTEN_FDS", ""), environ.pop("LISTEN_PID", "")
    if not count.isdecimal() or pid != str(os.getpid()):
        return []
    found = []
    for fd in range(_FIRST_FD, _FIRST_FD + int(count)):
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
        tcp = sock.family in (socket.AF_INET, socket.AF_INET6) and sock.type == socket.SOCK_STREAM
        if tcp and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            sock.setblocking(False)
            found.append(sock)
        else:
            sock.close()
    return found


class Notifier:
    """Sends state to the service manager (sd_notify(3)). Never raises: a manager that is gone stops nothing."""

    def __init__(self, address: str | None = None, watchdog: float | None = None, *, stale: Iterable[str] = ()) -> None:
        """`address`: path of the manager's socket, "@…" for an abstract one. `watchdog`: its limit in seconds.

        `stale`: names of what it still keeps from the run before.
        """
        self.watchdog = watchdog
        self._address: str | None = None
        self._socket: socket.socket | None = None
        self._kept: frozenset[str] = frozenset()
        self._stale = frozenset(stale)
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
        stale = environ.pop("LISTEN_FDNAMES", "").split(":")
        return cls(address, watchdog, stale=filter(None, stale))

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

    def alive(self) -> None:
        """Feed the watchdog."""
        self._send("WATCHDOG=1")

    def keep(self, sockets: Mapping[str, socket.socket]) -> None:
        """Let the manager hold these, by name, and no others: clients wait while we restart instead of being refused.

        Needs FileDescriptorStoreMax= in the unit; without it the manager drops what it is sent.
        """
        # first what is left of the run before: a socket that nobody accepts from would swallow connections
        stale, self._stale = self._stale, frozenset()
        for name in stale | (self._kept - sockets.keys()):
            self._send("FDSTOREREMOVE=1", f"FDNAME={name}")
        for name in sockets.keys() - self._kept:
            self._send("FDSTORE=1", f"FDNAME={name}", fd=sockets[name].fileno())
        self._kept = frozenset(sockets)

    def close(self) -> None:
        """Release the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *fields: str, fd: int = -1) -> None:
        if self._socket is None or self._address is None:
            return
        # a line end inside a value would start another assignment
        message = "\n".join(" ".join(field.splitlines()) for field in fields)
        try:
            rights = [] if fd < 0 else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
            self._socket.sendmsg([message.encode("utf-8", "replace")], rights, 0, self._address)
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
