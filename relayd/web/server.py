"""The HTTP side of a worker: /healthz, /readyz and /metrics, on sockets it is given, inside the worker's own loop.

What healthy means and which metrics there are is said by the callables it is handed; HTTP itself is http.py's.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from relayd.web.health import Health

if TYPE_CHECKING:
    from relayd.web.http import Server

__all__ = ["Health", "WebServer"]


class WebServer:
    """uvicorn inside our loop, on our sockets, without its signal handlers."""

    def __init__(
        self, sockets: Sequence[socket.socket], metrics: Callable[[], Awaitable[bytes]], health: Callable[[], Health]
    ) -> None:
        """`metrics` gives the page in Prometheus text format, `health` is asked on every request and must be quick."""
        self._sockets = list(sockets)
        self._metrics = metrics
        self._health = health
        self._server: Server | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Serve until `stop`. Without sockets there is nothing to serve. Raises OSError."""
        if not self._sockets:
            return
        from relayd.web.http import Server, build  # noqa: PLC0415 - FastAPI and uvicorn are 11 MiB in every worker

        self._server = server = Server(build(self._metrics, self._health))
        # uvicorn closes what it served on; the sockets themselves may go on after a reload, and are their owner's
        own = [sock.dup() for sock in self._sockets]
        self._task = asyncio.create_task(server.serve(sockets=own), name="web server")
        listening = asyncio.create_task(server.listening.wait(), name="web server listens")
        await asyncio.wait({self._task, listening}, return_when=asyncio.FIRST_COMPLETED)
        if not server.listening.is_set():
            listening.cancel()
            await self._task  # raises what went wrong

    async def stop(self) -> None:
        """Stop accepting, let answers under way finish for a moment, end. The sockets are left to their owner."""
        if self._task is None or self._server is None:
            return
        self._server.should_exit = True
        await self._task
        self._task = None
