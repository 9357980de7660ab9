"""A served listener on a free port, and clients that speak from dialogues written as text."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
import trustme
import uvloop

from relayd.config.models import Limits, Listener
from relayd.core.counter import ConnectionCounter
from relayd.listener.observer import ListenerRefusal
from relayd.listener.server import ListenerServer
from tests.support.fake_door import FakeDoor


async def until(condition: Callable[[], object]) -> None:
    """Wait until the condition holds; for what happens inside the listener and sends nothing."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.001)


@dataclass
class Seen:
    """A ListenerObserver that remembers."""

    open: int = 0
    connections: int = 0
    versions: list[str] = field(default_factory=list)
    refusals: list[ListenerRefusal] = field(default_factory=list)
    long: int = 0

    def connected(self, listener: str) -> None:
        self.open += 1
        self.connections += 1

    def disconnected(self, listener: str) -> None:
        self.open -= 1

    def tls(self, listener: str, version: str) -> None:
        self.versions.append(version)

    def refused(self, listener: str, reason: ListenerRefusal) -> None:
        self.refusals.append(reason)

    def long_lines(self, listener: str, count: int) -> None:
        self.long += count


class Client:
    """One TCP connection to the listener."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, octets: bytes) -> None:
        self.writer.write(octets)

    async def reply(self) -> str:
        """The next reply, its lines joined by \\n; "" where the server has closed."""
        lines = []
        while True:
            async with asyncio.timeout(20):
                line = await self.reader.readline()
            if not line:
                return "\n".join(lines)
            assert line.endswith(b"\r\n"), line
            text = line.decode().rstrip("\r\n")
            assert re.match(r"\d{3}[- ]", text), text
            lines.append(text)
            if text[3] == " ":
                return "\n".join(lines)

    async def ask(self, command: str) -> str:
        """Send one command line and read its reply."""
        self.send(command.encode() + b"\r\n")
        return await self.reply()

    async def closed(self) -> bool:
        """Wait until the server closes; True when nothing came before."""
        async with asyncio.timeout(20):
            try:
                return not await self.reader.read(1)
            except ConnectionError:
                return True

    async def talk(self, dialogue: str) -> None:
        """Play a dialogue: lines "C: …" are sent, lines "S: …" are what must come; a trailing … stands for any rest.

        "S: closed" means that the server closes the connection.
        """
        for raw in dialogue.strip().splitlines():
            side, _, text = raw.strip().partition(": ") if ": " in raw else (raw.strip().rstrip(":"), "", "")
            if side == "C":
                self.send(text.encode() + b"\r\n")
            elif text == "closed":
                assert await self.closed(), dialogue
            else:
                got = await self.reply()
                wanted = text.replace("\\n", "\n")
                if wanted.endswith("…"):
                    assert got.startswith(wanted[:-1]), f"wanted {wanted!r}, got {got!r}"
                else:
                    assert got == wanted, f"wanted {wanted!r}, got {got!r}"

    async def start_tls(self, context: ssl.SSLContext, name: str = "relay.example.com") -> None:
        await self.writer.start_tls(context, server_hostname=name)

    async def close(self) -> None:
        self.writer.close()
        with suppress(ConnectionError, ssl.SSLError):
            await self.writer.wait_closed()


class Served:
    """A listener with its door and what was observed, and clients of it."""

    def __init__(
        self, server: ListenerServer, door: FakeDoor, seen: Seen, sock: socket.socket, stack: AsyncExitStack
    ) -> None:
        self.server = server
        self.door = door
        self.seen = seen
        self.address = sock.getsockname()[:2]
        self._stack = stack

    async def connect(self, source: str | None = None, **kwargs: Any) -> Client:
        """A connection, before the greeting is read."""
        local = (source, 0) if source else None
        reader, writer = await asyncio.open_connection(*self.address, local_addr=local, limit=2**20, **kwargs)
        client = Client(reader, writer)
        self._stack.push_async_callback(client.close)
        return client

    async def greeted(self, ehlo: bool = True, **kwargs: Any) -> Client:
        """A connection behind the greeting and EHLO."""
        client = await self.connect(**kwargs)
        assert await client.reply() == "220 relay.example.com ESMTP relayd"
        if ehlo:
            assert (await client.ask("EHLO client.example")).startswith("250-relay.example.com\n")
        return client

    async def talk(self, dialogue: str, **kwargs: Any) -> Client:
        """Play a whole dialogue, greeting included."""
        client = await self.connect(**kwargs)
        await client.talk(dialogue)
        return client

    @property
    def contents(self) -> list[bytes]:
        return [submission.content for submission in self.door.submissions]


def limits(**changes: Any) -> Limits:
    """Limits with some values changed, also to ones too small for a configuration."""
    return Limits().model_copy(update=changes)


Serve = Callable[..., Any]


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Both loops: relayd runs on uvloop, and their transports differ where it hurts (pausing, TLS, half-closing)."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("relay.example.com").configure_cert(context)
    return context


@pytest.fixture(scope="session")
def client_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Start listeners: await serve(tls="none", limits=…, door=…, context=…, timings={…}, host=…, …listener keys)."""
    async with AsyncExitStack() as stack:

        async def start(
            *,
            limits: Limits | None = None,
            door: FakeDoor | None = None,
            context: ssl.SSLContext | None = None,
            counter: ConnectionCounter | None = None,
            timings: dict[str, float] | None = None,
            host: str = "127.0.0.1",
            **keys: Any,
        ) -> Served:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            sock = socket.socket(family)
            sock.bind((host, 0))
            keys = {"name": "test", "bind": ["127.0.0.1:0"], "tls": "none", "access": "network-or-auth"} | keys
            door, seen = door or FakeDoor(), Seen()
            server = ListenerServer(
                Listener(**keys),
                limits or Limits(),
                door,
                tls_context=context,
                observer=seen,
                hostname="relay.example.com",
                counter=counter or ConnectionCounter(100, 50),
            )
            for name, value in (timings or {}).items():
                setattr(server, name, value)
            server.tick = min(server.tick, server.rate_window)
            await server.start([sock])
            clients = AsyncExitStack()

            async def stop() -> None:
                await clients.aclose()
                if door.gate is not None:
                    door.gate.set()
                await server.drain(5)
                assert not server.connections
                assert server.counter.open == 0
                assert seen.open == 0
                assert door.memory.used == 0

            stack.push_async_callback(stop)
            return Served(server, door, seen, sock, clients)

        yield start
