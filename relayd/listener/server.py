"""One configured listener: makes connections for its sockets, stops taking them, drains them, takes on new settings.

Sockets are bound by the caller; which worker listens on what is workers/'s.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterable
from typing import Any

import structlog
from structlog.typing import FilteringBoundLogger

from relayd.config.models import BareNewlines, Limits, Listener, ListenerTLS, Role
from relayd.core.counter import ConnectionCounter
from relayd.intake.door import Door
from relayd.listener.connection import Connection
from relayd.listener.content import Rules
from relayd.listener.observer import ListenerObserver
from relayd.listener.opening import Opening
from relayd.listener.turnstile import Turnstile

TICK = 60.0
"""Seconds between looks at a session's deadlines, at most."""
BACKLOG = 1024
ACCEPT_BATCH = 64
ACCEPT_PAUSE = 1.0
"""Seconds to wait where the machine can give us no more connections."""
ODD_LINES = 20
"""Log lines about odd clients within a second; more are only counted, so that no client can fill a disk."""


class ListenerServer:
    """Serves one listener. Call from the event loop's thread only.

    `tls_context` may be None for a listener without TLS. `counter` is shared by all listeners of the worker.
    """

    rate_window = 60.0
    """Seconds over which `limits.min_rate` is averaged."""
    proxy_start_timeout = 2.0
    """Seconds for a peer in `proxy_protocol` to begin a PROXY header; one that stays silent is greeted as a client."""
    proxy_timeout = 5.0
    """Seconds for the rest of the header."""
    tls_timeout = 30.0
    tls_shutdown_timeout = 5.0

    def __init__(  # noqa: PLR0917
        self,
        listener: Listener,
        limits: Limits,
        door: Door,
        tls_context: ssl.SSLContext | None,
        observer: ListenerObserver,
        hostname: str,
        counter: ConnectionCounter,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.door = door
        self.company = door.company
        self.observer = observer
        self.hostname = hostname
        self.counter = counter
        self.turnstile = Turnstile(self.loop)
        self.connections: set[Opening] = set()
        self.draining = False
        self._sockets: list[socket.socket] = []
        self._servers: list[asyncio.Server] = []
        self._closed: list[asyncio.Server] = []
        self._accepting_bare = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._processors: Any = None
        self._odd_second = 0
        self._odd_lines = 0
        self.greeting = b""
        self.helo = b""
        self._extensions: dict[tuple[bool, bool, bool], bytes] = {}
        self._settle(listener, limits, tls_context)

    def _settle(self, listener: Listener, limits: Limits, tls_context: ssl.SSLContext | None) -> None:
        self.listener = listener
        self._task_name = f"smtp {listener.name}"
        self.limits = limits
        self.tls_context = tls_context
        self.tick = min(TICK, limits.idle, limits.data_idle, limits.session, self.rate_window)
        normalise = listener.bare_newlines is BareNewlines.NORMALISE
        self.rules = Rules(limits.message_size, limits.line_length, limits.line_length_max, normalise)
        self.greeting = f"220 {self.hostname} ESMTP relayd\r\n".encode("ascii")
        self.helo = f"250 {self.hostname}\r\n".encode("ascii")
        self._extensions.clear()

    def apply(
        self, listener: Listener, limits: Limits, tls_context: ssl.SSLContext | None, hostname: str | None = None
    ) -> None:
        """Take on new settings without dropping a connection.

        Limits hold at once, new handshakes show the new certificate; intake judges open sessions by the new listener
        from their next mail on.
        """
        self.hostname = hostname or self.hostname
        self._settle(listener, limits, tls_context)
        if self._servers and self._needs_bare_sockets:
            self._close_servers()
            self._accept_bare()

    def protocol(self) -> Connection:
        """A new connection's protocol, for loop.create_server."""
        return Connection(self)

    async def start(self, sockets: Iterable[socket.socket]) -> None:
        """Listen on bound sockets, which are this object's from now on. Raises OSError."""
        await self.prepare(sockets)
        await self.serve()

    async def prepare(self, sockets: Iterable[socket.socket]) -> None:
        """Everything about listening that may fail, but accept nobody yet. Raises OSError, and nothing is left then."""
        self._sockets = list(sockets)
        if self._needs_bare_sockets:
            return
        try:
            for sock in self._sockets:
                # A duplicate, so that after a reload the socket can be served in the other way without a pause.
                server = await self.loop.create_server(
                    self.protocol, sock=sock.dup(), backlog=BACKLOG, start_serving=False
                )
                self._servers.append(server)
        except BaseException:
            self.discard()
            raise

    async def serve(self) -> None:
        """Accept from now on."""
        if self._needs_bare_sockets:
            self._accept_bare()
        for server in self._servers:
            await server.start_serving()

    def discard(self) -> None:
        """What was prepared is not wanted; the sockets stay their owner's."""
        self._close_servers()
        self._sockets.clear()

    @property
    def _needs_bare_sockets(self) -> bool:
        return bool(self.listener.proxy_protocol) or self.listener.tls is ListenerTLS.IMPLICIT

    def _accept_bare(self) -> None:
        self._accepting_bare = True
        for sock in self._sockets:
            sock.setblocking(False)
            sock.listen(BACKLOG)
            self.loop.add_reader(sock.fileno(), self._accept, sock)

    def _accept(self, sock: socket.socket) -> None:
        for _ in range(ACCEPT_BATCH):
            try:
                accepted, peername = sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # out of descriptors or memory: the socket stays readable, so wait a moment
                structlog.get_logger("relayd.listener").error(
                    "cannot accept", listener=self.listener.name, error=str(error)
                )
                self.loop.remove_reader(sock.fileno())
                self.loop.call_later(ACCEPT_PAUSE, self._accept_again, sock)
                return
            accepted.setblocking(False)
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            Connection(self).accept(accepted, peername)

    def _accept_again(self, sock: socket.socket) -> None:
        if self._accepting_bare:
            self.loop.add_reader(sock.fileno(), self._accept, sock)

    def stop_accepting(self) -> None:
        """Close the listening sockets; connections go on."""
        self._close_servers()
        for sock in self._sockets:
            if self._accepting_bare:
                self.loop.remove_reader(sock.fileno())
            sock.close()
        self._accepting_bare = False
        self._sockets.clear()

    def _close_servers(self) -> None:
        for server in self._servers:
            server.close()
        self._closed += self._servers
        self._servers = []

    async def drain(self, timeout: float) -> None:
        """Let mails that are being sent be finished, tell all others 421, and return when every client is gone.

        After `timeout` seconds the rest is cut off. A commit that is under way is never cancelled: intake owns it.
        """
        self.stop_accepting()
        self.draining = True
        for connection in list(self.connections):
            connection.drain()
        try:
            async with asyncio.timeout(timeout):
                await self._empty.wait()
        except TimeoutError:
            await self._cut_off()
        for server in self._closed:
            await server.wait_closed()
        self._closed.clear()

    async def _cut_off(self) -> None:
        for connection in list(self.connections):
            connection.abort()
        for task in self._tasks:
            task.cancel()
        await self._empty.wait()

    # --- for connections

    @property
    def log(self) -> FilteringBoundLogger:
        """Made once for each set-up of logging: making one for each connection would cost more than its greeting."""
        processors = structlog.get_config()["processors"]
        if processors is not self._processors:
            self._processors = processors
            self._log: FilteringBoundLogger = structlog.get_logger("relayd.listener").bind()
        return self._log

    def run(self, connection: Opening) -> asyncio.Task[None]:
        """Start a session's task. It is owned here until it has ended and its socket is gone."""
        task = self.loop.create_task(connection.run(), name=self._task_name)
        self._tasks.add(task)
        self._empty.clear()
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._look()

    def forget(self, connection: Opening) -> None:
        """The connection's socket is gone."""
        self.connections.discard(connection)
        self._look()

    def _look(self) -> None:
        if not self._tasks and not self.connections:
            self._empty.set()

    async def breathe(self) -> None:
        """Let other sessions have a turn."""
        await asyncio.sleep(0)

    def extensions(self, starttls: bool, auth: bool, xclient: bool) -> bytes:
        """The reply to EHLO; without enhanced codes, as RFC 2034 3 has it."""
        key = (starttls, auth, xclient)
        octets = self._extensions.get(key)
        if octets is None:
            words = [
                self.hostname,
                "PIPELINING",
                f"SIZE {self.limits.message_size}",
                "8BITMIME",
                "SMTPUTF8",
                "ENHANCEDSTATUSCODES",
                "CHUNKING",
            ]
            if self.listener.role is not Role.INBOUND:  # where mail ends, nobody is owed a report about it
                words.insert(-1, "DSN")
            words += (
                ["STARTTLS"] * starttls + ["AUTH PLAIN LOGIN"] * auth + ["XCLIENT ADDR PORT NAME HELO PROTO"] * xclient
            )
            lines = [f"250-{word}\r\n" for word in words[:-1]] + [f"250 {words[-1]}\r\n"]
            octets = self._extensions[key] = "".join(lines).encode("ascii")
        return octets

    def odd(self, event: str, **facts: Any) -> None:
        """Log what an odd client did, in one line, as long as there are not too many of them."""
        second = int(self.loop.time())
        if second != self._odd_second:
            hidden = self._odd_lines - ODD_LINES
            self._odd_second, self._odd_lines = second, 0
            if hidden > 0:
                structlog.get_logger("relayd.listener").info("more odd clients", count=hidden)
        self._odd_lines += 1
        if self._odd_lines <= ODD_LINES:
            structlog.get_logger("relayd.listener").info(event, **facts)
