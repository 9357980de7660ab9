"""HTTP by FastAPI on uvicorn, with the limits that uvicorn lacks. Loaded only where `web.bind` asks for it.

Starting and stopping is server.py's.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import cast

import structlog
import uvicorn
from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from relayd.core.counter import ConnectionCounter
from relayd.web.handshakes import SecureListener
from relayd.web.health import Health

CONNECTIONS = 100
"""Open connections of one worker, and as many that shake hands. Who has waited longest for nothing makes room."""
HEAD_LIMIT = 16 * 1024
"""Octets of request line and headers."""
BODY_LIMIT = 64 * 1024
"""Octets of a body: no page here wants one."""
HEAD_SECONDS = 10.0
"""Time for a TLS handshake, and for a request to arrive whole, from the connection's begin or its first octet."""
CONTENT_TYPE = "text/plain; version=1.0.0; charset=utf-8"
"""Of /metrics, as prometheus_client writes it."""
_STOP_SECONDS = 2
_TOKEN = re.compile(r"[A-Za-z0-9_-]{16,256}")
"""RFC 8555 8.3: base64url, 128 bits at least."""

Challenges = Callable[[str], Awaitable[str | None]]
"""Token → what proves to a CA that the host is ours; None for tokens that nobody has issued."""


def public(challenges: Challenges) -> FastAPI:
    """What the world may see. No pages that document it: there is no API yet."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)

    @app.get("/.well-known/acme-challenge/{token}")
    async def challenge(token: str) -> Response:
        """The answer to an HTTP-01 challenge (RFC 8555 8.3)."""
        answer = await challenges(token) if _TOKEN.fullmatch(token) else None
        if answer is None:
            return Response("not found\n", 404, media_type="text/plain")
        return Response(answer, media_type="application/octet-stream")

    return app


def private(metrics: Callable[[], Awaitable[bytes]], health: Callable[[], Health], challenges: Challenges) -> FastAPI:
    """The application for those who run relayd: health, metrics, and all that is public."""
    app = public(challenges)

    @app.get("/healthz")
    async def healthz() -> Response:
        """The process is alive."""
        alive = health().alive
        return JSONResponse({"status": "ok" if alive else "failing"}, 200 if alive else 503)

    @app.get("/readyz")
    async def readyz() -> Response:
        """The worker takes mail; or why not."""
        state = health()
        ready = state.alive and not state.reasons
        return JSONResponse(
            {"status": "ready" if ready else "not ready", "reasons": list(state.reasons)}, 200 if ready else 503
        )

    @app.get("/metrics")
    async def show_metrics() -> Response:
        """Prometheus text format, summed over all workers."""
        try:
            return Response(await metrics(), media_type=CONTENT_TYPE)
        except (OSError, ValueError):
            structlog.get_logger("relayd.web").exception("metrics_unreadable")
            return Response("metrics cannot be read: the log says why\n", 503, media_type="text/plain")

    return app


class Server(uvicorn.Server):
    """uvicorn.Server that leaves signals to the daemon, says when it listens, and speaks TLS on some of its sockets."""

    def __init__(self, app: FastAPI, secure: Sequence[socket.socket] = (), tls: ssl.SSLContext | None = None) -> None:
        """`secure`: those of the sockets given to `serve` that speak TLS, by the context `tls`."""
        config = uvicorn.Config(
            app,
            http=GuardedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=_STOP_SECONDS,
        )
        super().__init__(config)
        self.listening = asyncio.Event()
        self.crowd = ConnectionCounter(CONNECTIONS, CONNECTIONS)
        self._handshakes = ConnectionCounter(CONNECTIONS, CONNECTIONS)
        self._secure = frozenset(secure)
        self._tls = tls

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Signals are the daemon's."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and tell."""
        await super().startup([])  # uvicorn knows one TLS setting for all, and lets a handshake take a minute
        loop = asyncio.get_running_loop()
        for sock in sockets or ():
            backlog = self.config.backlog
            if sock in self._secure and self._tls is not None:
                secure = SecureListener(
                    sock, self._tls, self._protocol, self._handshakes, patience=HEAD_SECONDS, backlog=backlog
                )
                self.servers.append(cast("asyncio.Server", secure))  # which is closed, and nothing else
            else:
                self.servers.append(await loop.create_server(self._protocol, sock=sock, backlog=backlog))
        self.listening.set()

    def _protocol(self) -> asyncio.Protocol:
        return GuardedProtocol(self)


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol with what it lacks: a cap on connections, and limits of time and size for a request."""

    def __init__(self, server: Server) -> None:
        super().__init__(server.config, server.server_state, server.lifespan.state)
        self._crowd = server.crowd
        self._counted = False
        self._deadline: asyncio.TimerHandle | None = None
        self._octets = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._counted = self._crowd.enter(self)
        if not self._counted:
            transport.abort()
            return
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        if self._counted:
            self._crowd.leave(self)
        super().connection_lost(exc)

    def give_way(self) -> bool:
        """Leave for somebody else, unless an answer is under way."""
        if self.cycle is not None and not self.cycle.response_complete:
            return False
        self.transport.abort()
        return True

    def data_received(self, data: bytes) -> None:
        if self._deadline is None:
            self._arm()
        self._octets += len(data)
        if self._octets > HEAD_LIMIT + BODY_LIMIT:
            self.transport.abort()
            return
        super().data_received(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._octets > HEAD_LIMIT:
            self.transport.abort()
        super().on_header(name, value)

    def on_message_complete(self) -> None:
        self._disarm()
        self._octets = 0
        super().on_message_complete()

    def _arm(self) -> None:
        self._deadline = self.loop.call_later(HEAD_SECONDS, self._late)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _late(self) -> None:
        self._deadline = None
        self.transport.abort()
