"""Accepts connections that begin with TLS, no more at once than there are places, and none for long.

asyncio's own server knows no such bound: a client that opens connections and says nothing would cost 55 KiB each.
HTTP is http.py's.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress

import structlog

from relayd.core.counter import ConnectionCounter

BATCH = 64
PAUSE = 1.0
"""Seconds to wait where the machine can give us no more connections."""


class Handshake:
    """One connection between its acceptance and the end of its handshake."""

    def __init__(self, counter: ConnectionCounter) -> None:
        self._counter = counter
        self._task: asyncio.Task[None] | None = None

    def give_way(self) -> bool:
        """Somebody else waits for the place."""
        if self._task is not None:
            self._task.cancel()
        return True

    def start(
        self, sock: socket.socket, tls: ssl.SSLContext, protocol: Callable[[], asyncio.Protocol], patience: float
    ) -> asyncio.Task[None]:
        """Shake hands, within `patience` seconds; the protocol goes on from there."""
        self._task = asyncio.create_task(self._shake(sock, tls, protocol, patience), name="web TLS handshake")
        self._task.add_done_callback(self._ended)
        return self._task

    async def _shake(
        self, sock: socket.socket, tls: ssl.SSLContext, protocol: Callable[[], asyncio.Protocol], patience: float
    ) -> None:
        loop = asyncio.get_running_loop()
        with suppress(OSError):  # ssl.SSLError and time-outs included: the client's doing
            await loop.connect_accepted_socket(protocol, sock, ssl=tls, ssl_handshake_timeout=patience)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._counter.leave(self)
        if not task.cancelled() and (error := task.exception()) is not None:
            structlog.get_logger("relayd.web").error("TLS handshake failed", exc_info=error)


class SecureListener:
    """Stands where asyncio's server would for uvicorn: it is closed, and that is all."""

    def __init__(
        self,
        sock: socket.socket,
        tls: ssl.SSLContext,
        protocol: Callable[[], asyncio.Protocol],
        counter: ConnectionCounter,
        *,
        patience: float,
        backlog: int,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._tls = tls
        self._protocol = protocol
        self._counter = counter
        self._patience = patience
        self._tasks: set[asyncio.Task[None]] = set()
        self._again: asyncio.TimerHandle | None = None
        sock.setblocking(False)
        sock.listen(backlog)
        self._loop.add_reader(sock.fileno(), self._accept)

    def close(self) -> None:
        """Accept nobody any more, and let go of those who have not shaken hands."""
        if self._again is not None:
            self._again.cancel()
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()
        for task in self._tasks:
            task.cancel()

    async def wait_closed(self) -> None:
        """Wait until no handshake is left."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self) -> None:
        for _ in range(BATCH):
            try:
                accepted, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # out of descriptors or memory: the socket stays readable, so wait a moment
                structlog.get_logger("relayd.web").error("cannot accept", error=str(error))
                self._loop.remove_reader(self._sock.fileno())
                self._again = self._loop.call_later(PAUSE, self._accept_again)
                return
            handshake = Handshake(self._counter)
            if not self._counter.enter(handshake):
                accepted.close()
                continue
            accepted.setblocking(False)
            task = handshake.start(accepted, self._tls, self._protocol, self._patience)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _accept_again(self) -> None:
        self._again = None
        self._loop.add_reader(self._sock.fileno(), self._accept)
