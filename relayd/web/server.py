"""The HTTP side of a worker, on sockets it is given, inside the worker's own loop: health and metrics for those who run
it, tracking hosts for the world, in plain and by TLS.

What healthy means, which metrics and certificates there are is said by the callables it is handed; HTTP is http.py's.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from relayd.web.health import Health

if TYPE_CHECKING:
    from relayd.web.http import Server

__all__ = ["Health", "Pages", "WebServer"]


@dataclass(frozen=True, slots=True)
class Pages:
    """What is shown. All of it is asked on every request, or handshake, and must be quick."""

    metrics: Callable[[], Awaitable[bytes]]
    """The page in Prometheus text format."""
    health: Callable[[], Health]
    challenge: Callable[[str], Awaitable[str | None]]
    """Token of a CA's challenge → its answer; None for unknown ones."""
    tls: ssl.SSLContext | None = None
    """For the sockets of "web.public_tls"; it picks the certificate by the name that the client asks for."""


class WebServer:
    """uvicorn inside our loop, on our sockets, without its signal handlers."""

    def __init__(self, sockets: Mapping[str, Sequence[socket.socket]], pages: Pages) -> None:
        """`sockets` by use: "web", "web.public", "web.public_tls"."""
        self._sockets = sockets
        self._pages = pages
        self._running: list[tuple[Server, asyncio.Task[None]]] = []

    async def start(self) -> None:
        """Serve until `stop`. Without sockets there is nothing to serve. Raises OSError."""
        if not any(self._sockets.values()):
            return
        from relayd.web import http  # noqa: PLC0415 - FastAPI and uvicorn are 11 MiB in every worker

        pages = self._pages
        # uvicorn closes what it served on; the sockets themselves may go on after a reload, and are their owner's
        own = {use: [sock.dup() for sock in sockets] for use, sockets in self._sockets.items()}
        inside, plain, secure = (own.get(use, []) for use in ("web", "web.public", "web.public_tls"))
        # two servers, so that the world cannot use up the connections of those who look after it
        if inside:
            await self._serve(http.Server(http.private(pages.metrics, pages.health, pages.challenge)), inside)
        if plain or secure:
            await self._serve(http.Server(http.public(pages.challenge), secure, pages.tls), [*plain, *secure])

    async def _serve(self, server: Server, sockets: list[socket.socket]) -> None:
        task = asyncio.create_task(server.serve(sockets=sockets), name="web server")
        self._running.append((server, task))
        listening = asyncio.create_task(server.listening.wait(), name="web server listens")
        await asyncio.wait({task, listening}, return_when=asyncio.FIRST_COMPLETED)
        if not server.listening.is_set():
            listening.cancel()
            await task  # raises what went wrong

    async def stop(self) -> None:
        """Stop accepting, let answers under way finish for a moment, end. The sockets are left to their owner."""
        running, self._running = self._running, []
        for server, _ in running:
            server.should_exit = True
        for _, task in running:
            await task
