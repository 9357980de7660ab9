"""A scriptable SMTP server for what real ones cannot be made to do: drops, silence, nonsense, stripped or broken TLS.

It records every command, login and mail as it came. What a test means by it is the test's own business.

    async with FakeUpstream({"RCPT": [None, "450 4.2.1 later"], "DOT": SILENCE}, tls="starttls") as upstream:
        connector = SMTPConnector("fake", upstream.config(), "relay.test", ClientContexts())

A script maps a step to one action (every time) or to a list (first, second, … time; then the default again); None
is the default. Steps: greeting, EHLO, HELO, STARTTLS, handshake, AUTH, MAIL, RCPT, DATA, content, DOT, RSET, NOOP,
QUIT. An action is a reply ("550 5.1.1 no such user", several lines split by \\n), octets sent as they are, or one of
the classes below.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import functools
import hashlib
import hmac
import socket
import ssl
import struct
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import trustme

from relayd.config.models import SMTPUpstream


@dataclass(frozen=True)
class Drop:
    """End the connection without a word (after `reply`, if given)."""

    reply: str | bytes | None = None


@dataclass(frozen=True)
class Reset:
    """End the connection by RST."""


@dataclass(frozen=True)
class Silence:
    """Say nothing more, until the client goes. What it sends is read and thrown away."""


@dataclass(frozen=True)
class Stall:
    """Say nothing and read nothing any more."""


@dataclass(frozen=True)
class Split:
    """Send the reply in single octets, each in a packet of its own."""

    reply: str | bytes


@dataclass(frozen=True)
class Wait:
    """Reply only once the event is set."""

    event: asyncio.Event
    reply: str | bytes | None = None


@dataclass(frozen=True)
class Garble:
    """Put plain octets where a TLS record should be."""

    octets: bytes = b"\x15\x03\x03\x00\x02\x02\x50"


DROP, RESET, SILENCE, STALL = Drop(), Reset(), Silence(), Stall()

Action = str | bytes | Drop | Reset | Silence | Stall | Split | Wait | Garble
Script = Mapping[str, "Action | Sequence[Action | None] | None"]
Certificate = Literal["good", "expired", "wrong-name", "unknown-ca"]

EXTENSIONS = ("PIPELINING", "SIZE 52428800", "8BITMIME", "SMTPUTF8", "DSN", "ENHANCEDSTATUSCODES")


@dataclass
class ReceivedMail:
    """One transaction that came to its final dot; `content` is dot-unstuffed."""

    sender: str
    sender_parameters: list[str]
    recipients: list[str]
    recipient_parameters: list[list[str]]
    content: bytes
    tls: str | None
    username: str | None
    accepted: bool = False
    at: int = field(default_factory=lambda: time.time_ns() // 1_000_000)
    """When MAIL came, in milliseconds."""


@dataclass(frozen=True)
class Login:
    """A credential that was shown, whether it was right or not; `tls` None means in plain sight."""

    mechanism: str
    username: str
    password: str
    tls: str | None


class _GoneError(Exception):
    """The connection ended, from either side."""


@dataclass
class _Connection:
    upstream: FakeUpstream
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    buffer: bytearray = field(default_factory=bytearray)
    heard: bytearray = field(default_factory=bytearray)
    tls: str | None = None
    username: str | None = None
    mail: ReceivedMail | None = None

    async def run(self) -> None:
        if self.upstream.implicit:
            await self.handshake()
        await self.act("greeting", "220 fake.test ESMTP")
        while True:
            line = await self.line()
            self.upstream.commands.append(line)
            verb = line.split(" ", 1)[0].upper()
            handler = getattr(self, f"do_{verb.lower()}", None)
            if handler is None:
                await self.act(verb, "500 5.5.1 what?")
            else:
                await handler(line)

    # what goes out

    async def act(self, step: str, default: str | bytes) -> str:
        """Do what the script says at this step; the first three octets of what was said come back."""
        action = self.upstream.action(step)
        return await self.perform(default if action is None else action, default)

    async def interlude(self, step: str) -> None:
        """Do what the script says between two replies, if anything."""
        action = self.upstream.action(step)
        if action is not None:
            await self.perform(action, b"")

    async def perform(self, action: Action, default: str | bytes) -> str:
        match action:
            case Drop():
                if action.reply is not None:
                    await self.say(action.reply)
                raise _GoneError
            case Reset():
                sock = self.writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.writer.transport.abort()
                raise _GoneError
            case Silence():
                self.upstream.silent.set()
                await self.swallow()
            case Stall():
                self.upstream.silent.set()
                self.writer.transport.pause_reading()  # type: ignore[attr-defined]
                await self.upstream.stopping.wait()
                raise _GoneError
            case Split():
                for octet in self.wire(action.reply):
                    self.writer.write(bytes([octet]))
                    await self.writer.drain()
                    await asyncio.sleep(0)
                return self.wire(action.reply)[:3].decode("latin-1")
            case Wait():
                await action.event.wait()
                await self.say(action.reply if action.reply is not None else default)
                return self.wire(action.reply if action.reply is not None else default)[:3].decode("latin-1")
            case Garble():
                self.below_tls().write(action.octets)
                await self.writer.drain()
                raise _GoneError
            case _:
                await self.say(action)
                return self.wire(action)[:3].decode("latin-1")
        raise AssertionError("unreachable")

    @staticmethod
    def wire(reply: str | bytes) -> bytes:
        if isinstance(reply, bytes):
            return reply
        lines = reply.split("\n")
        code = lines[0][:3]
        texts = [lines[0][4:], *lines[1:]]
        out = [f"{code}-{text}\r\n" for text in texts[:-1]] + [f"{code} {texts[-1]}\r\n"]
        return "".join(out).encode("utf-8", "surrogateescape")

    async def say(self, reply: str | bytes) -> None:
        self.writer.write(self.wire(reply))
        await self.writer.drain()

    def below_tls(self) -> asyncio.WriteTransport:
        """What octets go to that shall not be encrypted."""
        transport: Any = self.writer.transport
        tls = getattr(transport, "_ssl_protocol", None)
        plain: asyncio.WriteTransport = transport if tls is None else tls._transport
        return plain

    # what comes in

    async def fill(self) -> None:
        data = await self.reader.read(65536)
        if not data:
            raise _GoneError
        self.buffer += data
        self.heard += data

    async def line(self) -> str:
        while (end := self.buffer.find(b"\r\n")) < 0:
            await self.fill()
        line = bytes(self.buffer[:end])
        del self.buffer[: end + 2]
        return line.decode("utf-8", "surrogateescape")

    async def content(self) -> bytes:
        self.buffer[:0] = b"\r\n"
        scan = 0
        while (end := self.buffer.find(b"\r\n.\r\n", scan)) < 0:
            scan = max(0, len(self.buffer) - 4)
            await self.fill()
        content = bytes(self.buffer[2 : end + 2])
        del self.buffer[: end + 5]
        return content[1:].replace(b"\n..", b"\n.") if content.startswith(b".") else content.replace(b"\n..", b"\n.")

    async def swallow(self) -> None:
        while True:
            await self.fill()
            self.upstream.ignored += len(self.buffer)
            self.buffer.clear()

    # commands

    async def do_ehlo(self, _line: str) -> None:
        lines = ["fake.test", *self.upstream.extensions]
        if self.upstream.starttls and self.tls is None:
            lines.append("STARTTLS")
        if self.upstream.auth and self.upstream.users and (self.tls or self.upstream.auth_in_plain):
            lines.append("AUTH " + " ".join(self.upstream.auth))
        await self.act("EHLO", "250 " + "\n".join(lines))

    async def do_helo(self, _line: str) -> None:
        await self.act("HELO", "250 fake.test")

    async def do_starttls(self, _line: str) -> None:
        if await self.act("STARTTLS", "220 2.0.0 go ahead") == "220":
            self.buffer.clear()
            await self.handshake()

    async def handshake(self) -> None:
        await self.interlude("handshake")
        await self.writer.start_tls(self.upstream.context)
        self.tls = self.writer.get_extra_info("ssl_object").version()

    async def do_auth(self, line: str) -> None:
        words = line.split(" ")
        mechanism = words[1].upper()
        if mechanism == "PLAIN":
            blob = words[2] if len(words) > 2 else await self.ask("")
            _, username, password = base64.b64decode(blob).decode().split("\0")
        elif mechanism == "LOGIN":
            first = words[2] if len(words) > 2 else await self.ask("Username:")
            username = base64.b64decode(first).decode()
            password = base64.b64decode(await self.ask("Password:")).decode()
        elif mechanism == "CRAM-MD5":
            challenge = "<1.2@fake.test>"
            username, digest = base64.b64decode(await self.ask(challenge)).decode().split(" ")
            expected = self.upstream.users.get(username, "")
            made = hmac.new(expected.encode(), challenge.encode(), hashlib.md5).hexdigest()
            password = expected if hmac.compare_digest(made, digest) else ""
        elif mechanism in ("XOAUTH2", "OAUTHBEARER"):
            await self.by_token(mechanism, base64.b64decode(words[2]).decode())
            return
        else:
            await self.act("AUTH", "504 5.5.4 mechanism unknown")
            return
        self.upstream.logins.append(Login(mechanism, username, password, self.tls))
        right = self.upstream.users.get(username) == password
        if await self.act("AUTH", "235 2.7.0 welcome" if right else "535 5.7.8 wrong") == "235":
            self.username = username

    async def by_token(self, mechanism: str, blob: str) -> None:
        """XOAUTH2, OAUTHBEARER (RFC 7628): what is wrong comes as JSON first. The tokens are the `users`' passwords."""
        head, *pairs = blob.split("\x01")
        username = head.removeprefix("user=").removeprefix("n,a=").rstrip(",")
        facts = dict(pair.split("=", 1) for pair in pairs if pair)
        token = facts["auth"].removeprefix("Bearer ")
        self.upstream.logins.append(Login(mechanism, username, token, self.tls))
        if self.upstream.users.get(username) != token:
            answer = await self.ask('{"status":"401","schemes":"bearer"}')
            assert answer == ("" if mechanism == "XOAUTH2" else "AQ==")
            await self.act("AUTH", f"535 5.7.3 unsuccessful {token}")
        elif await self.act("AUTH", "235 2.7.0 welcome") == "235":
            self.username = username

    async def ask(self, prompt: str) -> str:
        await self.say("334 " + base64.b64encode(prompt.encode()).decode())
        return await self.line()

    async def do_mail(self, line: str) -> None:
        address, parameters = _path(line)
        if self.upstream.require_auth and self.username is None:
            await self.act("MAIL", "530 5.7.0 log in first")
        elif await self.act("MAIL", "250 2.1.0 sender ok") == "250":
            self.mail = ReceivedMail(address, parameters, [], [], b"", self.tls, self.username)

    async def do_rcpt(self, line: str) -> None:
        address, parameters = _path(line)
        if self.mail is None:
            await self.act("RCPT", "503 5.5.1 MAIL first")
        elif (await self.act("RCPT", "250 2.1.5 recipient ok"))[0] == "2":
            self.mail.recipients.append(address)
            self.mail.recipient_parameters.append(parameters)

    async def do_data(self, _line: str) -> None:
        ready = self.mail is not None and (self.mail.recipients or self.upstream.data_without_recipients)
        if await self.act("DATA", "354 go ahead" if ready else "503 5.5.1 RCPT first") != "354":
            return
        if self.upstream.script.get("content") and not self.buffer:
            await self.fill()  # so that the client has begun to send, whatever happens now
        await self.interlude("content")
        content = await self.content()
        if self.mail is None:
            self.mail = ReceivedMail("", [], [], [], b"", self.tls, self.username)
        self.mail.content = content
        mail, self.mail = self.mail, None
        self.upstream.mails.append(mail)
        fine = "250 2.0.0 taken" if mail.recipients else "554 5.5.1 no recipients"
        mail.accepted = (await self.act("DOT", fine))[:1] == "2"

    async def do_rset(self, _line: str) -> None:
        self.mail = None
        await self.act("RSET", "250 2.0.0 forgotten")

    async def do_noop(self, _line: str) -> None:
        await self.act("NOOP", "250 2.0.0 nothing done")

    async def do_quit(self, _line: str) -> None:
        await self.act("QUIT", "221 2.0.0 bye")
        raise _GoneError


def _path(line: str) -> tuple[str, list[str]]:
    end = line.rindex(">")
    return line[line.index("<") + 1 : end], line[end + 1 :].split()


class FakeUpstream:
    """The server: enter it, point a client at `port` (or use `config()`), look at `mails`, `commands`, `logins`."""

    def __init__(
        self,
        script: Script | None = None,
        *,
        tls: Literal["none", "starttls", "implicit"] = "none",
        certificate: Certificate = "good",
        extensions: Sequence[str] = EXTENSIONS,
        users: Mapping[str, str] | None = None,
        auth: Sequence[str] = ("PLAIN", "LOGIN"),
        auth_in_plain: bool = False,
        require_auth: bool = False,
        data_without_recipients: bool = False,
    ) -> None:
        self.script: dict[str, Any] = {
            step: list(action) if isinstance(action, Sequence) and not isinstance(action, str | bytes) else action
            for step, action in (script or {}).items()
        }
        self.implicit = tls == "implicit"
        self.starttls = tls == "starttls"
        self.certificate: Certificate = certificate
        self.extensions = list(extensions)
        self.users = dict(users or {})
        self.auth = list(auth)
        self.auth_in_plain = auth_in_plain
        self.require_auth = require_auth
        self.data_without_recipients = data_without_recipients
        self.commands: list[str] = []
        self.heard: list[bytearray] = []
        """All octets of each connection, as they came."""
        self.logins: list[Login] = []
        self.mails: list[ReceivedMail] = []
        self.connections = 0
        self.open = 0
        """Connections at this moment."""
        self.most_open = 0
        self.ignored = 0
        """Octets thrown away in silence."""
        self.port = 0
        self.wanted_port = 0
        """Where to listen; 0: on any free port."""
        self.silent = asyncio.Event()
        """Set once the script has made the server silent."""
        self.stopping = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._transports: set[asyncio.WriteTransport] = set()

    @property
    def accepted(self) -> list[ReceivedMail]:
        """Mails that were answered with 2yz after the dot."""
        return [mail for mail in self.mails if mail.accepted]

    @functools.cached_property
    def context(self) -> ssl.SSLContext:
        """The server's TLS context, with the certificate asked for."""
        return server_context(self.certificate)

    def action(self, step: str) -> Action | None:
        """What the script has for this step now."""
        planned = self.script.get(step)
        found: Action | None = (planned.pop(0) if planned else None) if isinstance(planned, list) else planned
        return found

    def config(self, **overrides: Any) -> SMTPUpstream:
        """The upstream section that fits this server; time-outs are short, `overrides` win."""
        tls = "required" if self.implicit or self.starttls else "none"
        section: dict[str, Any] = {
            "host": "localhost" if tls == "required" else "127.0.0.1",
            "port": self.port,
            "tls": tls,
            "implicit_tls": self.implicit,
            "ca_file": ca_file() if tls == "required" else None,
            "timeouts": dict.fromkeys(("connect", "tls", "greeting", "command", "data", "dot"), 20.0),
        }
        if self.users:
            section["username"], section["password"] = next(iter(self.users.items()))
        return SMTPUpstream.model_validate(section | overrides)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.wanted_port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopping.set()
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for transport in self._transports:
            transport.abort()  # TLS would wait for the client's farewell
        await self._server.wait_closed()

    def hang_up(self) -> None:
        """Close all connections without a word."""
        for task in list(self._tasks):
            task.cancel()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._transports = {each for each in self._transports if not each.is_closing()} | {writer.transport}
        try:
            connection = _Connection(self, reader, writer)
            self.heard.append(connection.heard)
            await connection.run()
        except (_GoneError, OSError, asyncio.CancelledError):
            pass  # the script or the client ended it; so does the server when the test is over
        finally:
            self.open -= 1
            self._tasks.discard(task)
            with contextlib.suppress(OSError, RuntimeError):
                writer.close()


# certificates


@functools.cache
def authority() -> trustme.CA:
    """The CA that `ca_file()` trusts; one for the whole run."""
    return trustme.CA()


@functools.cache
def ca_file() -> Path:
    """A PEM file with the CA of good certificates."""
    with tempfile.NamedTemporaryFile("wb", suffix=".pem", delete=False) as file:
        file.write(authority().cert_pem.bytes())
    return Path(file.name)


@functools.cache
def server_context(certificate: Certificate) -> ssl.SSLContext:
    """A context whose certificate is good for localhost and 127.0.0.1, or wrong in one way."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    match certificate:
        case "good":
            cert = authority().issue_cert("localhost", "127.0.0.1", "::1")
        case "expired":
            long_ago = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=2)
            cert = authority().issue_cert("localhost", "127.0.0.1", not_after=long_ago)
        case "wrong-name":
            cert = authority().issue_cert("elsewhere.test")
        case "unknown-ca":
            cert = trustme.CA().issue_cert("localhost", "127.0.0.1")
    cert.configure_cert(context)
    return context
