"""Trial: somebody in the middle before TLS begins, who strips STARTTLS, answers in its place, injects octets.

Once between relayd and its upstream, once between a client and relayd's listener. What he may reach is a connection
that ends; never a credential or mail in clear, and never an effect of his octets behind the handshake.
"""

# ruff: noqa: E501 - lists of words are read best in few lines
from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
import ssl
from collections import Counter
from dataclasses import dataclass, field

from relayd.config.models import Limits, Listener
from relayd.core.counter import ConnectionCounter
from relayd.core.lifecycle import OutcomeKind
from relayd.core.session import ConnectFailedError
from relayd.delivery.smtp import SMTPConnector
from relayd.delivery.tls import ClientContexts
from relayd.listener.server import ListenerServer
from tests.delivery.upstream.helpers import outgoing
from tests.fuzz.wire import Quiet
from tests.support.fake_door import FakeDoor
from tests.support.fake_upstream import FakeUpstream, authority, server_context
from tests.support.log_lines import log_lines
from tests.torture.trial import Context, Figures, Trial

SESSIONS = 15
"""Of each kind in one round."""
PATIENCE = 30.0
_ALLOWED = re.compile(rb"(?:(?:EHLO [^\r\n]*|STARTTLS|QUIT)\r\n)*")
"""All that may be said in clear where TLS is required."""
_REPLIES = (
    b"220 2.0.0 go ahead\r\n", b"250 ok\r\n", b"250-evil\r\n250-PIPELINING\r\n250 AUTH PLAIN LOGIN\r\n", b"250-evil", b"235 welcome\r\n",
    b"354 go on\r\n", b"220", b"\r\n", b"\x16\x03\x01\x00\x05hello", b"\x15\x03\x03\x00\x02\x02\x28", b"421 bye\r\n", b"454 4.7.0 no TLS\r\n",
)  # fmt: skip
_COMMANDS = (
    b"NOOP\r\n", b"EHLO evil\r\n", b"MAIL FROM:<evil@example.com>\r\n", b"RCPT TO:<b@example.net>\r\n", b"DATA\r\n", b"x\r\n.\r\n",
    b"AUTH PLAIN AHNob3AAeA==\r\n", b"RSET\r\n", b"EHL", b"\r\n", b"BDAT 1 LAST\r\nx", b"STARTTLS\r\n", b"QUIT\r\n", b"\x16\x03\x01\x00\x05hello",
)  # fmt: skip


@dataclass
class Middle:
    """Between relayd and an upstream. Keeps what relayd said in clear; from the first TLS record on it only passes on."""

    port: int
    rng: random.Random
    clear: bytearray = field(default_factory=bytearray)
    plan: str = ""
    at: int = 1
    """Which reply is touched: the greeting, that to EHLO, or the 220 to STARTTLS."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._commands(reader, far_writer, writer), name="commands")
                group.create_task(self._replies(far_reader, writer), name="replies")
        except* OSError:
            pass
        finally:
            for one in (writer, far_writer):
                one.close()

    async def _commands(
        self, reader: asyncio.StreamReader, far: asyncio.StreamWriter, near: asyncio.StreamWriter
    ) -> None:
        protected = False
        while data := await reader.read(65536):
            protected = protected or data[:1] == b"\x16"
            if not protected:
                self.clear += data
                if data == b"STARTTLS\r\n" and self.plan == "answer":
                    near.write(self.rng.choice(_REPLIES))
                    continue
            far.write(data)
        far.close()

    async def _replies(self, reader: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        number = 0
        while data := await reader.read(65536):
            if data[:1] not in b"\x16\x14\x17\x15":
                number += 1
                data = self._changed(data, number)
                if self.plan == "split":
                    for octet in data:
                        near.write(bytes([octet]))
                        await asyncio.sleep(0)
                    continue
                if self.plan == "late" and data.startswith(b"220 2.0.0"):
                    near.write(data)
                    await asyncio.sleep(self.rng.random() * 0.01)
                    data = self.rng.choice(_REPLIES)
            near.write(data)
        near.close()

    def _changed(self, data: bytes, number: int) -> bytes:
        match self.plan:
            case "strip":
                return data.replace(b"STARTTLS", b"XXXXXXXX")
            case "offer login":
                return data.replace(b"250-PIPELINING", b"250-AUTH PLAIN LOGIN\r\n250-PIPELINING")
            case "append" if number == self.at:
                return data + self._injected()
            case "put ahead" if number == self.at:
                return self._injected() + data
        return data

    def _injected(self) -> bytes:
        return b"".join(self.rng.choice(_REPLIES) for _ in range(self.rng.randrange(1, 4)))


PLANS = ("strip", "answer", "append", "append", "put ahead", "late", "split", "offer login", "pass")


async def _as_client(context: Context, upstream: FakeUpstream, contexts: ClientContexts) -> str:
    """relayd opens a session through the middle, and sends a mail where it can."""
    middle = Middle(upstream.port, context.rng, plan=context.rng.choice(PLANS), at=context.rng.randrange(1, 4))
    server = await asyncio.start_server(middle.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    # a reply that never comes ends a session in any case; one that a busy machine has late is not to
    patience = 1.0 if context.timed else 10.0
    settings = upstream.config(port=port, timeouts=dict.fromkeys(("connect", "tls", "greeting", "command"), patience))
    before = len(upstream.accepted)
    try:
        session = await SMTPConnector("acme", settings, "relay.test", contexts).open()
    except ConnectFailedError as error:
        context.promise(error.outcome.kind is OutcomeKind.TROUBLE, f"{middle.plan}: {error.outcome}")
        result = "ended before mail"
    else:
        sent = await session.send(outgoing())
        await session.close()
        context.promise(session.tls, f"{middle.plan}: a session without TLS")
        context.promise(session.offers.size == 52428800, f"{middle.plan}: offers from before TLS: {session.offers}")
        context.promise(len(upstream.accepted) == before + 1, f"{middle.plan}: {sent}")
        result = "mail sent over TLS"
    finally:
        server.close()
    context.promise(_ALLOWED.fullmatch(bytes(middle.clear)), f"{middle.plan}: in clear: {bytes(middle.clear)!r}")
    return f"relayd as client, {result}"


async def _as_server(context: Context, port: int, door: FakeDoor, tls: ssl.SSLContext) -> str:
    """A client's STARTTLS, with commands of somebody else behind it before the handshake."""
    rng = context.rng
    injected = b"".join(rng.choice(_COMMANDS) for _ in range(rng.randrange(5)))
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    before = (len(door.submissions), len(door.sizes), len(door.attempts))
    result = "ended in the handshake"
    with contextlib.suppress(ConnectionError, ssl.SSLError, TimeoutError, asyncio.IncompleteReadError):
        async with asyncio.timeout(PATIENCE):
            await reader.readuntil(b"220 relay.test ESMTP relayd\r\n")
            writer.write(b"EHLO honest\r\n")
            await reader.readuntil(b"250 AUTH PLAIN LOGIN\r\n")
            octets = b"STARTTLS\r\n" + injected
            cut = rng.choice((len(octets), rng.randrange(1, len(octets))))
            writer.write(octets[:cut])
            if cut < len(octets):
                await asyncio.sleep(0)
                writer.write(octets[cut:])
            await reader.readuntil(b"220 2.0.0 Ready to start TLS\r\n")
            await writer.start_tls(tls, server_hostname="localhost")
            writer.write(b"NOOP\r\nMAIL FROM:<honest@example.com>\r\n")
            answers = (await reader.readline(), await reader.readline())
            wanted = (b"250 2.0.0 OK\r\n", b"503 5.5.1 Send EHLO first\r\n")
            context.promise(answers == wanted, f"behind {injected!r}: {answers}")
            result = "clean behind the handshake"
    writer.close()
    after = (len(door.submissions), len(door.sizes), len(door.attempts))
    context.promise(after == before, f"{injected!r} had an effect")
    context.promise(injected or result.startswith("clean"), "an honest client did not get TLS")
    return f"relayd as server, {result}"


async def _rounds(context: Context) -> Figures:
    count: Counter[str] = Counter()
    with log_lines() as log:
        await _sessions(context, count)
    context.promise(not log.errors, f"the log tells of errors: {log.errors[:3]}")
    return dict(count)


async def _sessions(context: Context, count: Counter[str]) -> None:
    door, tls = FakeDoor(logins={"shop": "x"}), ssl.create_default_context()
    tls.load_verify_locations(cadata=authority().cert_pem.bytes().decode())
    listener = Listener(name="tried", bind=["127.0.0.1:0"], tls="starttls", access="network-or-auth")
    server = ListenerServer(
        listener, Limits(), door, server_context("good"), Quiet(), "relay.test", ConnectionCounter(99, 99)
    )
    sock = socket.create_server(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    async with FakeUpstream(tls="starttls", users={"shop": "a secret word"}) as upstream:
        await server.start([sock])
        contexts = ClientContexts()
        for _ in context.rounds():
            for _ in range(SESSIONS):
                count[await _as_client(context, upstream, contexts)] += 1
                count[await _as_server(context, port, door, tls)] += 1
        context.promise(all(login.tls for login in upstream.logins), "a login in clear")
        await server.drain(5)


TRIAL = Trial(
    "starttls", 2, "Whoever sits in the middle before TLS begins gets nothing, and nothing of his counts.", _rounds
)
