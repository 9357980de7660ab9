"""Both ends of SMTP without sockets: a listener's connection and an upstream's client, fed with octets piece by piece.

Real protocol classes on the running loop; only the transport is made up. What must hold of the result is targets.py's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from relayd.config.models import Limits, Listener, SMTPUpstream
from relayd.core.counter import ConnectionCounter
from relayd.core.mail import Envelope, Recipient
from relayd.core.session import ConnectFailedError, Outgoing, Sent
from relayd.delivery.client import OPEN_ERRORS, Client
from relayd.delivery.protocol import ReplyProtocol
from relayd.delivery.smtp import SMTPConnector, SMTPSession
from relayd.delivery.tls import ClientContexts
from relayd.inbound.imap import LINE_MAX
from relayd.listener.connection import Connection
from relayd.listener.observer import ListenerRefusal
from relayd.listener.server import ListenerServer
from tests.support.fake_door import FakeDoor

PATIENCE = 20.0
LIMITS = Limits().model_copy(update={"message_size": 4096, "line_length_max": 1200, "errors": 30, "commands": 60})
TIMES = dict.fromkeys(("connect", "tls", "greeting", "command", "data", "dot"), 30.0)
UPSTREAM = SMTPUpstream.model_validate(
    {"host": "127.0.0.1", "port": 25, "tls": "none", "username": "shop", "password": "a secret word", "timeouts": TIMES}
)


class MemoryTransport(asyncio.Transport):
    """Remembers what is written, and tells its protocol of the end as a real one does."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._protocol = protocol
        self._closing = False
        self.written = bytearray()
        self.turns: list[bytes] = []
        """Writes one by one."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("192.0.2.7", 4711) if name == "peername" else default

    def write(self, data: Any) -> None:
        if not self._closing:
            self.written += data
            self.turns.append(bytes(data))

    def get_write_buffer_size(self) -> int:
        return 0

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """The other side sees the end, and goes."""
        self.close()

    def pause_reading(self) -> None:
        """All octets that there will be are fed by hand."""

    def resume_reading(self) -> None:
        """See pause_reading."""

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    abort = close


class Quiet:
    """A ListenerObserver that counts refusals."""

    def __init__(self) -> None:
        self.refusals: list[ListenerRefusal] = []

    def connected(self, listener: str) -> None:
        """Nothing to do."""

    disconnected = connected

    def tls(self, listener: str, version: str) -> None:
        """Nothing to do."""

    def refused(self, listener: str, reason: ListenerRefusal) -> None:
        self.refusals.append(reason)

    def long_lines(self, listener: str, count: int) -> None:
        """Nothing to do."""


async def dialogue(packets: Sequence[bytes], *, normalise: bool, proxy: bool) -> tuple[bytes, FakeDoor, Quiet]:
    """Feed a listener's connection; what it answered, what reached the door, what was refused."""
    door, seen = FakeDoor(logins={"shop": "x"}), Quiet()
    listener = Listener.model_validate(
        {
            "name": "fuzz",
            "bind": ["127.0.0.1:0"],
            "tls": "starttls",
            "access": "network-or-auth",
            "bare_newlines": "normalise" if normalise else "refuse",
        }
    )
    server = ListenerServer(listener, LIMITS, door, None, seen, "relay.example.com", ConnectionCounter(10, 10))
    connection = Connection(server)
    transport = MemoryTransport(connection)
    connection.connection_made(transport)
    connection.peer_proxies = proxy
    for packet in packets:
        await asyncio.sleep(0)
        if transport.is_closing():
            break
        if packet:
            connection.data_received(packet)
        await asyncio.sleep(0)
    if not transport.is_closing() and not connection.eof_received():
        transport.close()
    assert connection.task is not None
    async with asyncio.timeout(PATIENCE):
        await connection.task
        transport.close()
        await asyncio.sleep(0)
    assert connection.lost
    assert door.memory.used == 0
    assert server.counter.open == 0
    return bytes(transport.written), door, seen


class Sink:
    """The StreamWriter of a client whose server has said everything already."""

    def __init__(self) -> None:
        self.transport = self

    def write(self, data: bytes) -> None:
        """Nobody listens."""

    async def drain(self) -> None:
        """Nothing waits."""

    def abort(self) -> None:
        """Nothing to end."""


def said(octets: bytes) -> tuple[Any, Any]:
    """Reader and writer of a connection over which the server says this, and goes."""
    reader = asyncio.StreamReader(limit=LINE_MAX)
    reader.feed_data(octets)
    reader.feed_eof()
    return reader, Sink()


class _Scripted(Client):
    """Its upstream says the next packet whenever something was written to it, and hangs up when it has none."""

    def __init__(self, packets: Sequence[bytes]) -> None:
        super().__init__(UPSTREAM, "relay.test", ClientContexts())
        self.packets = list(packets)
        self.wire: _Answering | None = None

    async def _dial(self) -> ReplyProtocol:
        loop = asyncio.get_running_loop()
        protocol = ReplyProtocol(loop, greeting=True)
        self.wire = _Answering(protocol, self)
        protocol.connection_made(self.wire)
        self.protocol = self.opened = protocol
        self.transport = self.wire
        self.wire.begin()
        return protocol


class _Answering(MemoryTransport):
    """Says the next packet when something was written to it, or after some turns of the loop without."""

    TURNS = 8

    def __init__(self, protocol: ReplyProtocol, client: _Scripted) -> None:
        super().__init__(protocol)
        self._client = client
        self._idle = 0

    def write(self, data: Any) -> None:
        super().write(data)
        self._idle = self.TURNS

    def begin(self) -> None:
        """The greeting, and what follows."""
        self._idle = self.TURNS
        asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._idle += 1
        if self._closing:
            return
        if self._idle > self.TURNS:
            self._idle = 0
            if not self._client.packets:
                self.close()
                return
            self._protocol.data_received(self._client.packets.pop(0))
        asyncio.get_running_loop().call_soon(self._turn)


async def transaction(packets: Sequence[bytes], content: bytes) -> tuple[bytes, Sent | ConnectFailedError]:
    """One session with an upstream that says these packets, and one mail through it: what went out, what came of it."""
    connector = SMTPConnector("fuzz", UPSTREAM, "relay.test", ClientContexts())
    client = _Scripted(packets)
    mail = Outgoing("m", Envelope("a@example.com"), (Recipient("b@example.net"), Recipient("c@example.net")), content)
    result: Sent | ConnectFailedError
    async with asyncio.timeout(PATIENCE):
        try:
            protocol = await client.open()
        except OPEN_ERRORS as error:
            connector._abandon(client)
            result = connector._failed(client, "fuzz:25", error)
        else:
            session = SMTPSession(connector, "fuzz:25", client, protocol, connector._secrets_of(client))
            result = await session.send(mail)
            await session.close()
    if client.wire is not None:
        client.wire.close()
        await asyncio.sleep(0)
    return bytes(client.wire.written) if client.wire is not None else b"", result
