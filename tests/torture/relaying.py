"""Trial: who may relay. Every cell of a matrix is tried on real sockets, and must do what the table here says.

Access mode × TLS × who the TCP peer is × whom a proxy names, and how × credential × sender × address family. The client
is an attacker: refused at one step, it goes on with the next as though nothing had been said. The listeners and intake
are real; only the store is in memory.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from argon2 import PasswordHasher

from relayd.config.models import Config
from relayd.core.counter import ConnectionCounter
from relayd.core.mail import Message, Recipient
from relayd.core.proxy import SIGNATURE
from relayd.intake.auth import PasswordVerifier
from relayd.intake.disk import DiskWatch
from relayd.intake.guesses import GuessLimiter, Peer
from relayd.intake.intake import Intake
from relayd.intake.networks import NetworkBook
from relayd.intake.observer import AuthFailure, Refusal
from relayd.intake.rates import RateBook
from relayd.listener.server import ListenerServer
from relayd.spool.state import StateDB
from tests.fuzz.wire import Quiet
from tests.support.clock import Clock
from tests.support.fake_upstream import authority, server_context
from tests.support.log_lines import log_lines
from tests.support.memory_store import MemoryStore
from tests.torture.trial import Context, Figures, Trial

CELLS = 120
"""In one round."""
AT_ONCE = 32
TRIES = 4
"""A PROXY header that comes late on a busy machine is refused, which is safe: so who should relay may try again."""
PATIENCE = 30.0
PASSWORD = "open sesame"
NETWORKS = ["127.0.1.0/24", "127.0.3.1/32", "192.0.2.0/24", "2001:db8::/32", "::ffff:198.51.100.0/120"]
PROXIES = ["127.0.3.0/24"]
"""The first address of these is in NETWORKS, too: who is taken for the proxy itself may relay."""
INSIDE, OUTSIDE, PROXY, PROXY_OUTSIDE = "127.0.1.1", "127.0.2.1", "127.0.3.1", "127.0.3.2"

ACCESS = ("network", "auth", "network-or-auth", "network-and-auth")
TLS = ("none", "starttls, unused", "starttls, used", "starttls-required, unused", "starttls-required, used", "implicit")
CREDENTIALS = ("none", "wrong", "right", "right, in clear before TLS")
SENDERS = {
    "a@shop.example.com": True,
    "A@Shop.Example.Com": True,
    "boss@example.com": True,
    "": False,
    "a@evil.example": False,
    "a@sub.shop.example.com": False,
    "a@xshop.example.com": False,
    '"a@shop.example.com"@evil.example': False,
    "xboss@example.com": False,
}
"""Sender → whether the credential may use it; where the network alone lets in, all may be used."""
NAMED = {
    "192.0.2.7": True,
    "203.0.113.7": False,
    "2001:db8::7": True,
    "2001:db9::7": False,
    "::ffff:192.0.2.7": True,
    "::ffff:203.0.113.7": False,
    "198.51.100.7": True,
    "127.0.1.1": True,
    "127.0.2.1": False,
    "::1": False,
    "::192.0.2.7": False,
}
"""Whom a proxy may name → whether it is in a network."""
WAYS = ("v1", "v2", "xclient")
LATE = ("v1, then xclient", "xclient twice")
"""A client that was named tries to name itself anew, as the proxy."""
UNKNOWN = ("v1 unknown", "v2 unspecified")


@dataclass(frozen=True, slots=True)
class Cell:
    """One case."""

    access: str
    tls: str
    family: str
    """v4, mapped (IPv4 on a socket of both families), v6."""
    peer: str
    """The address of the TCP connection."""
    way: str
    """How it is named: direct, one of WAYS, LATE, UNKNOWN, or v2 local."""
    named: str
    credential: str
    sender: str

    @property
    def trusted(self) -> bool:
        """The TCP peer is a proxy."""
        return self.peer in (PROXY, PROXY_OUTSIDE)

    @property
    def client(self) -> str | None:
        """For whom it has to be taken; "" for nobody known; None where the connection must be ended."""
        match self.way:
            case "direct" | "v2 local" if self.trusted or self.way == "direct":
                return self.peer
            case "xclient" | "xclient twice":
                return self.named if self.trusted else self.peer
            case "v1" | "v2" | "v1, then xclient" if self.trusted:
                return self.named
            case "v1 unknown" | "v2 unspecified" if self.trusted:
                return ""
        return None

    @property
    def relays(self) -> bool:
        """The table: whether this mail is taken."""
        client = self.client
        if client is None:
            return False
        inside = (NAMED | {INSIDE: True, OUTSIDE: False, PROXY: True, PROXY_OUTSIDE: False, "": False})[client]
        over_tls = self.tls.endswith(", used") or self.tls == "implicit"
        if "required" in self.tls and not over_tls:
            return False
        local = client != "" and (client == "::1" or client.startswith("127."))
        safe = over_tls or (local and "required" not in self.tls)
        # logged in before STARTTLS is not logged in behind it
        right = self.credential == "right" or (self.credential.startswith("right,") and not self.tls.endswith(", used"))
        logged_in = right and safe and self.access != "network"
        if self.access == "network-and-auth" and not (inside and logged_in):
            return False
        if logged_in:
            return SENDERS[self.sender]
        return inside and self.access in ("network", "network-or-auth")


def cells() -> Iterator[Cell]:
    """The whole matrix."""
    for access, tls, who, credential in itertools.product(ACCESS, TLS, _peers(), CREDENTIALS):
        direct = who[2] == "direct"
        senders = tuple(SENDERS) if direct else ("a@shop.example.com", "a@evil.example")
        # without a login the sender decides nothing
        for sender in senders if credential.startswith("right") else ("a@shop.example.com", "")[: 1 + direct]:
            yield Cell(access, tls, *who, credential, sender)


def _peers() -> list[tuple[str, str, str, str]]:
    """Family, TCP peer, way and name of every client."""
    stranger, known = "203.0.113.7", "192.0.2.7"
    found = [("v6", "::1", way, known if way in WAYS + LATE else "") for way in ("direct", *WAYS, *LATE, *UNKNOWN)]
    for family, peer in itertools.product(("v4", "mapped"), (INSIDE, OUTSIDE, PROXY, PROXY_OUTSIDE)):
        found += [(family, peer, way, "") for way in ("direct", "v2 local", *UNKNOWN)]
        found += [(family, peer, way, stranger) for way in LATE]
        named = NAMED if (family, peer) == ("v4", PROXY) else (known, stranger)
        found += [(family, peer, way, name) for way in WAYS for name in named]
    return found


class _Patient(GuessLimiter):
    """Guessing is another trial's."""

    def blocked(self, peer: Peer) -> bool:
        del peer
        return False

    def failed(self, peer: Peer) -> float:
        del peer
        return 0.0


class _Uncounted:
    """An IntakeObserver."""

    def refused(self, reason: Refusal, listener: str) -> None:
        """Nothing to do."""

    def auth_failed(self, reason: AuthFailure, listener: str) -> None:
        """Nothing to do."""

    def auth_succeeded(self, listener: str) -> None:
        """Nothing to do."""


class Site:
    """Listeners for all access modes and kinds of TLS, and the store that knows what was taken."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.ports: dict[tuple[str, str, str], int] = {}
        self.numbers = itertools.count()
        self.client_tls = ssl.create_default_context()
        self.client_tls.load_verify_locations(cadata=authority().cert_pem.bytes().decode())

    @property
    def taken(self) -> set[str]:
        """Recipients of all mail that was kept."""
        return {waiting.recipient.address for one in self.store.accepted for waiting in one.recipients}

    async def try_one(self, cell: Cell) -> bool:
        """Play the attacker; whether the mail was kept."""
        for _ in range(TRIES if cell.relays else 1):
            if await self._attempt(cell):
                return True
        return False

    async def _attempt(self, cell: Cell) -> bool:
        recipient = f"cell{next(self.numbers)}@example.net"
        host = {"v4": "127.0.0.1", "mapped": "127.0.0.1", "v6": "::1"}[cell.family]
        port = self.ports[cell.access, _listener_tls(cell.tls), cell.family]
        async with asyncio.timeout(PATIENCE):
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                reader, writer = await asyncio.open_connection(host, port, local_addr=(cell.peer, 0))
                try:
                    await _Attack(cell, reader, writer, self.client_tls).play(recipient)
                finally:
                    writer.close()
                    with contextlib.suppress(OSError):
                        await writer.wait_closed()
        return recipient in self.taken


def _listener_tls(tls: str) -> str:
    return tls.partition(",")[0]


@dataclass
class _Attack:
    """One session."""

    cell: Cell
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    context: ssl.SSLContext

    async def play(self, recipient: str) -> None:
        """All steps in turn, whatever is answered, until the connection ends."""
        cell = self.cell
        header = _header(cell)
        self.writer.write(header)
        if cell.tls == "implicit":
            await self.writer.start_tls(self.context, server_hostname="localhost")
        await self.reply()
        await self.hello()
        if "xclient" in cell.way:
            await self.xclient()
        if cell.credential.startswith("right,") and cell.tls.endswith(", used"):
            await self.login()
        if cell.tls.endswith(", used") and (await self.ask("STARTTLS")).startswith("220"):
            await self.writer.start_tls(self.context, server_hostname="localhost")
            await self.hello()
        elif cell.credential != "none":
            await self.login()
        if cell.credential in ("right", "wrong") and cell.tls.endswith(", used"):
            await self.login()
        await self.ask(f"MAIL FROM:<{cell.sender}>")
        await self.ask(f"RCPT TO:<{recipient}>")
        if (await self.ask("DATA")).startswith("354"):
            await self.ask("Subject: x\r\n\r\nx\r\n.")
        await self.ask("QUIT")

    async def hello(self) -> None:
        await self.ask("EHLO attacker")

    async def xclient(self) -> None:
        cell = self.cell
        if cell.way != "v1, then xclient":
            await self.ask(f"XCLIENT ADDR={_xclient_address(cell.named)}")
            await self.hello()
        if cell.way in LATE:
            await self.ask(f"XCLIENT ADDR={PROXY}")
            await self.hello()

    async def login(self) -> None:
        password = "guess" if self.cell.credential == "wrong" else PASSWORD
        await self.ask("AUTH PLAIN " + base64.b64encode(f"\0shop\0{password}".encode()).decode())

    async def ask(self, line: str) -> str:
        self.writer.write(line.encode() + b"\r\n")
        return await self.reply()

    async def reply(self) -> str:
        """The last line of the next reply. Raises ConnectionResetError at the end."""
        while line := await self.reader.readline():
            if line[3:4] != b"-":
                return line.decode()
        raise ConnectionResetError


def _xclient_address(named: str) -> str:
    return f"IPV6:{named}" if ":" in named else named


def _header(cell: Cell) -> bytes:
    """The PROXY header that it begins with."""
    named = ip_address(cell.named or "0.0.0.0")
    match cell.way:
        case "v1" | "v1, then xclient":
            kind, target = ("TCP4", "127.0.0.1") if named.version == 4 else ("TCP6", "::1")
            return f"PROXY {kind} {cell.named} {target} 4711 25\r\n".encode()
        case "v2":
            body = named.packed + bytes(len(named.packed)) + b"\x12\x67\x00\x19"
            family = b"\x11" if named.version == 4 else b"\x21"
            return SIGNATURE + b"\x21" + family + len(body).to_bytes(2, "big") + body
        case "v1 unknown":
            return b"PROXY UNKNOWN\r\n"
        case "v2 unspecified":
            return SIGNATURE + b"\x21\x00\x00\x00"
        case "v2 local":
            return SIGNATURE + b"\x20\x00\x00\x00"
    return b""


def _config() -> Config:
    listeners = [
        {
            "name": f"{access}.{tls}",
            "bind": ["127.0.0.1:0"],
            "tls": tls.removesuffix("-required"),
            "require_tls": tls.endswith("-required"),
            "access": access,
            "networks": NETWORKS,
            "proxy_protocol": PROXIES,
        }
        for access in ACCESS
        for tls in dict.fromkeys(map(_listener_tls, TLS))
    ]
    hashed = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(PASSWORD)
    senders = ["*@shop.example.com", "boss@example.com"]
    values: dict[str, Any] = {
        "hostname": "relay.test",
        "listeners": listeners,
        "credentials": [{"username": "shop", "password": hashed, "senders": senders}],
        "upstreams": {"sandbox": {"type": "sandbox"}},
        "routes": [{"upstream": "sandbox"}],
    }
    return Config.model_validate(values)


def _lane(message: Message, recipient: Recipient) -> str:
    del message, recipient
    return "sandbox"


@contextlib.asynccontextmanager
async def site(context: Context) -> AsyncIterator[Site]:
    """All listeners, serving."""
    clock, config = Clock(), _config()
    state = StateDB(context.directory / "state.db")
    await state.open()
    store = MemoryStore(clock)
    passwords = PasswordVerifier(config, clock)
    intake = Intake(
        config,
        store,  # type: ignore[arg-type]  # the half of Store that accepts
        NetworkBook(config, state, clock),
        passwords,
        _Patient(config, clock),
        RateBook(config, state, clock),
        DiskWatch(context.directory, 0.0),
        lane_of=_lane,
        on_kept=lambda delivery: None,
        observer=_Uncounted(),
        clock=clock,
    )
    made, counter, servers = Site(store), ConnectionCounter(1000, 1000), []
    for listener in config.listeners:
        server = ListenerServer(listener, config.limits, intake, server_context("good"), Quiet(), "relay.test", counter)
        server.proxy_start_timeout = 0.5  # for proxies that are silent, or use XCLIENT
        sockets = {family: _socket(family) for family in ("v4", "mapped", "v6")}
        access, tls = listener.name.split(".", 1)
        made.ports |= {(access, tls, family): sock.getsockname()[1] for family, sock in sockets.items()}
        await server.start(sockets.values())
        servers.append(server)
    try:
        yield made
    finally:
        await asyncio.gather(*(server.drain(5) for server in servers))
        await passwords.close()
        await state.close()


def _socket(family: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET if family == "v4" else socket.AF_INET6)
    if family == "mapped":
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(({"v4": "127.0.0.1", "mapped": "::", "v6": "::1"}[family], 0))
    return sock


async def _rounds(context: Context) -> Figures:
    matrix = list(cells())
    context.rng.shuffle(matrix)
    count: Counter[str] = Counter()
    with log_lines("info") as log:
        await _all(context, matrix, count)
    context.promise(not log.errors, f"the log tells of errors: {log.errors[:3]}")
    tried = count.total()
    return {"cells of the matrix": len(matrix), "cells tried": tried} | {
        f"cells {what}": n for what, n in count.items()
    }


async def _all(context: Context, matrix: list[Cell], count: Counter[str]) -> None:
    async with site(context) as made:
        for number in context.rounds(most=-(-len(matrix) // CELLS)):
            chosen = matrix[number * CELLS : (number + 1) * CELLS]
            for batch in (chosen[at : at + AT_ONCE] for at in range(0, len(chosen), AT_ONCE)):
                for cell, relayed in zip(batch, await asyncio.gather(*map(made.try_one, batch)), strict=True):
                    count["relayed" if relayed else "refused"] += 1
                    context.promise(relayed is cell.relays, f"{'relayed' if relayed else 'refused'}: {cell}")


TRIAL = Trial("open-relay", 4, "Only who the configuration lets in can send mail, whoever he says he is.", _rounds)
