"""How a connection begins and ends: counted, named by a proxy, protected by TLS, greeted; and given back.

A listener with PROXY peers or implicit TLS accepts bare sockets and this class makes transports of them when it is
their time; others get a transport from asyncio. The dialogue is connection.py's.
"""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Any, cast

from relayd.config.models import ListenerTLS
from relayd.core.proxy import ProxyError, unmapped
from relayd.intake.session import ClientSession
from relayd.listener import replies
from relayd.listener.deadlines import Phase
from relayd.listener.ends import Gone, Goodbye
from relayd.listener.front import discard, read_proxy_header, waiting_octets
from relayd.listener.login import Login
from relayd.listener.observer import ListenerRefusal
from relayd.listener.stream import begins_tls

if TYPE_CHECKING:
    from relayd.listener.server import ListenerServer


class Opening(Login):
    """The part of a connection before its greeting, and its end."""

    __slots__ = (
        "_attached",
        "_begun",
        "_counted",
        "_held",
        "_proxied",
        "_socket",
        "peer_proxies",
        "transport",
    )

    def __init__(self, server: ListenerServer) -> None:
        super().__init__(server)
        self.peer_proxies = False
        """The TCP peer is in proxy_protocol, and the octets are its own: it may use XCLIENT."""
        self._proxied = False  # it has sent a PROXY header
        self._socket: socket.socket | None = None  # as long as there is no transport
        self._attached = False  # to a transport
        self._held: IPv4Address | IPv6Address | None = None
        self._counted = False
        self._begun = False

    # --- begin

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """There is a transport: at once, or after what this class did with the bare socket."""
        self.wire = cast("asyncio.Transport", transport)
        self.transport = self.wire
        self._attached = True
        if self.task is not None:
            self.start_timer()
            return
        peername = self.wire.get_extra_info("peername")
        if not peername:  # gone before we looked
            self.lost = True
            self.wire.abort()
        elif self._admitted(peername):
            self.start_timer()
            self.task = self.server.run(self)
        else:  # without lingering, else those beyond the cap would be as many as they like
            self.phase = Phase.CLOSING
            self.wire.write(replies.TOO_MANY_CONNECTIONS.wire())
            self.wire.close()

    def accept(self, sock: socket.socket, peername: Any) -> None:
        """Begin on a bare socket."""
        self._socket = sock
        if self._admitted(peername):
            self.task = self.server.run(self)
            return
        if self._readable:
            with suppress(OSError):
                sock.send(replies.TOO_MANY_CONNECTIONS.wire())
        self.connection_lost(None)

    def _admitted(self, peername: Any) -> bool:
        server = self.server
        listener = server.listener
        peer, loopback = _address(peername[0])
        self.client = ClientSession(listener, peer, peername[1], loopback)
        server.connections.add(self)
        if not server.counter.enter(self):
            refusal = ListenerRefusal.CONNECTIONS
            server.observer.refused(listener.name, refusal)
            server.odd("connection turned away", peer=str(peer), listener=listener.name, reason=refusal.value)
            return False
        self._counted = True
        self.peer_proxies = bool(listener.proxy_protocol) and self.is_proxy(peer)
        server.observer.connected(listener.name)
        return True

    async def run(self) -> None:
        """The session: opening, commands, end."""
        raise NotImplementedError

    async def open(self) -> None:
        """All up to the greeting. Raises Goodbye, Gone, OSError."""
        self._begun = True
        if self.server.draining:
            raise Goodbye(replies.DRAINING, ListenerRefusal.DRAINING)
        if self._socket is not None:
            await self._open_socket(self._socket)
        else:
            await asyncio.sleep(0)  # what came before is handed over by now: cheaper than to ask the kernel for it
            if self.lost:
                raise Gone
            self.hold_address()
        if self.pending:
            raise _too_early(self.take_input())
        self.phase = Phase.OURS
        self.greet()

    async def _open_socket(self, sock: socket.socket) -> None:
        try:
            if self.peer_proxies:
                await self._take_proxy_header(sock)
            self.hold_address()
            if self._readable:
                if self._proxied and discard(sock):
                    self.note_discarded()
                self._check_silence(sock.fileno())
        except Goodbye:
            if self._readable:
                await self._make_transport(sock)  # which knows how to let the client read our reply
            raise
        await self._make_transport(sock)

    def note_discarded(self) -> None:
        """Input came before its time and was thrown away: count it, and say so once."""
        name = self.client.listener.name
        self.server.observer.refused(name, ListenerRefusal.EARLY_TALKER)
        self.server.odd("early input discarded", peer=str(self.client.peer), listener=name)

    def _check_silence(self, fd: int) -> None:
        if waiting_octets(fd):
            first = b""
            with suppress(OSError):
                first = os.read(fd, 1)  # nobody else needs it: the connection ends
            raise _too_early(first)

    def greet(self) -> None:
        """Ask intake, then say hello (also behind XCLIENT). Raises Goodbye."""
        self.client.proxy = self.peer_proxies
        refused = self.server.door.connect(self.client)
        if refused is not None:
            raise Goodbye(refused)
        self.recognise()
        self.send(self.server.greeting)

    def recognise(self) -> None:
        """Tell the counter whether this is somebody who may send, or a stranger, who gives way to others."""
        if self.lost:  # it has left the counter, which must not hear of it again
            return
        client, counter = self.client, self.server.counter
        if client.network is None and client.credential is None:
            counter.stranger(self)
        else:
            counter.known(self)

    # --- who it is

    async def _take_proxy_header(self, sock: socket.socket) -> None:
        server = self.server
        try:
            header = await read_proxy_header(sock, server.proxy_start_timeout, server.proxy_timeout)
        except ProxyError:
            raise Goodbye(replies.PROXY_BAD, ListenerRefusal.PROXY) from None
        if header is None:
            return
        # From here on the octets are the client's: it must not say who it is by XCLIENT.
        self._proxied = True
        self.peer_proxies = False
        if header.source is not None:
            self.rename(header.source, header.port)

    def is_proxy(self, peer: IPv4Address | IPv6Address) -> bool:
        """Whether the configuration names this address as a proxy of ours."""
        return any(peer in net for net in self.client.listener.proxy_protocol)

    def rename(self, peer: IPv4Address | IPv6Address, port: int) -> None:
        """A trusted proxy says who the client is."""
        client = self.client
        client.peer, client.port = peer, port
        # Behind a proxy on this machine the client may be anywhere, and plain text on its way to the proxy.
        client.loopback = client.loopback and peer.is_loopback

    def hold_address(self) -> None:
        """Count the connection for the client's address. Raises Goodbye when there are too many."""
        self._release_address()
        if not self.server.counter.hold(self.client.peer):
            raise Goodbye(replies.TOO_MANY_FROM_YOU, ListenerRefusal.CONNECTIONS_PER_IP)
        self._held = self.client.peer

    def _release_address(self) -> None:
        if self._held is not None:
            self.server.counter.release(self._held)
            self._held = None

    # --- TLS

    @property
    def _readable(self) -> bool:
        """Whether the client could read a reply: not before the handshake that it expects."""
        return self.client.listener.tls is not ListenerTLS.IMPLICIT or self.client.tls is not None

    async def _make_transport(self, sock: socket.socket) -> None:
        if self.client.listener.tls is ListenerTLS.IMPLICIT and self.server.tls_context is None:
            raise Goodbye(None, ListenerRefusal.TLS)
        self._socket = None  # the loop's from here on, however it goes
        try:
            if self.client.listener.tls is ListenerTLS.IMPLICIT:
                await self._shake_hands(sock)
            else:
                await self.loop.connect_accepted_socket(lambda: self, sock)
        finally:
            if not self._attached:
                self.connection_lost(None)

    async def _shake_hands(self, sock: socket.socket) -> None:
        server = self.server
        try:
            await self.loop.connect_accepted_socket(
                lambda: self,
                sock,
                ssl=server.tls_context,
                ssl_handshake_timeout=server.tls_timeout,
                ssl_shutdown_timeout=server.tls_shutdown_timeout,
            )
        except OSError:  # ssl.SSLError and time-outs included; what it says is the client's doing
            raise Goodbye(None, ListenerRefusal.TLS) from None
        self._note_tls()
        await asyncio.sleep(0)  # what came with the end of the handshake is handed over by now

    async def start_tls(self) -> None:
        """Protect an open connection (STARTTLS). Raises Goodbye, Gone."""
        server, plain, wire = self.server, self.wire, None
        assert server.tls_context is not None  # noqa: S101 - smtp_STARTTLS has looked
        self.phase = Phase.OPENING
        try:
            wire = await self.loop.start_tls(
                plain,
                self,
                server.tls_context,
                server_side=True,
                ssl_handshake_timeout=server.tls_timeout,
                ssl_shutdown_timeout=server.tls_shutdown_timeout,
            )
        except OSError:
            raise Goodbye(None, ListenerRefusal.TLS) from None
        finally:
            if wire is None:  # no TLS layer tells us of the end of a connection that it could not protect
                plain.abort()
                self.connection_lost(None)
        if wire is None or self.lost:
            raise Gone
        self.wire = self.transport = wire
        self.reading = True
        self.phase = Phase.OURS
        self._note_tls()

    def _note_tls(self) -> None:
        if self.lost:
            raise Gone
        version = self.wire.get_extra_info("ssl_object").version() or "TLS"
        self.client.tls = version
        self.server.observer.tls(self.client.listener.name, version)

    # --- end

    def end_opening(self) -> None:
        """Close a socket that never got a transport."""
        if self._socket is not None:
            self.connection_lost(None)

    def connection_lost(self, error: Exception | None) -> None:
        """Give back what was counted; the task ends by itself."""
        if self.lost:
            return
        super().connection_lost(error)
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._counted:
            self._counted = False
            self.server.counter.leave(self)
            self.server.observer.disconnected(self.client.listener.name)
        self._release_address()
        self.server.forget(self)

    def drain(self) -> None:
        """The service stops: a client that waits between mails is told so at once, others at their next command."""
        if self.phase is Phase.OPENING:
            # nothing was promised yet. A task that has not begun would end without closing anything: it sees by itself
            if self.task is not None and self._begun:
                self.task.cancel()
        elif self.phase is Phase.COMMAND and self.at_rest:
            self.interrupt(Goodbye(replies.DRAINING, ListenerRefusal.DRAINING))

    def give_way(self) -> bool:
        """There are too many connections: leave at once, for somebody else. False while intake is at work for us."""
        if self.lost or self.phase is Phase.OURS or (self.phase is Phase.OPENING and not self._begun):
            return False
        refusal = ListenerRefusal.DISPLACED
        self.server.observer.refused(self.client.listener.name, refusal)
        self.server.odd(
            "session ended", peer=str(self.client.peer), listener=self.client.listener.name, reason=refusal.value
        )
        if self.phase in (Phase.OPENING, Phase.CLOSING):
            self.abort()
        else:
            self.hurry_out(replies.TOO_MANY_CONNECTIONS)
        return True

    def abort(self) -> None:
        """Cut the connection off."""
        if self.phase is not Phase.OPENING:
            self.wire.abort()
        elif self.task is not None:
            self.task.cancel()


@lru_cache(maxsize=1024)
def _address(text: str) -> tuple[IPv4Address | IPv6Address, bool]:
    """The address that the kernel names, and whether it is this machine's own. Clients come again."""
    address = unmapped(ip_address(text.partition("%")[0]))
    return address, address.is_loopback


def _too_early(octets: bytes) -> Goodbye:
    """What to say to whom speaks before the greeting, by what he says first."""
    if begins_tls(octets):
        return Goodbye(replies.TLS_TO_PLAIN, ListenerRefusal.PROTOCOL)
    return Goodbye(replies.EARLY_TALKER, ListenerRefusal.EARLY_TALKER)
