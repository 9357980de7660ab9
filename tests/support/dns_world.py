"""A small DNS of real servers on loopback: two authoritative ones and a resolver, with zones and troubles to choose.

    with World() as world:
        zone = world.zone("example.jp")
        zone.add("TXT", "example.jp", "v=spf1 -all")
        zone.trouble["ns2"] = "servfail"
        lookup = Lookup([world.resolver], port=world.port)

Servers: 127.0.0.2 is ns1, 127.0.0.3 is ns2, 127.0.0.1 the resolver; one port for all.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from dnslib import CNAME, MX, NS, QTYPE, RCODE, RD, RR, SOA, TXT, A, DNSError, DNSRecord
from dnslib.server import BaseResolver, DNSHandler, DNSServer

from tests.support.dns import Quiet
from tests.support.ports import free_port

HOSTS = {"resolver": "127.0.0.1", "ns1": "127.0.0.2", "ns2": "127.0.0.3"}
NEGATIVE_TTL = 300
TTL = 3600
_DEPTH = 10


@dataclass
class Record:
    """One record. A TXT value may come in strings."""

    type: str
    value: str | tuple[str, ...]
    ttl: int = TTL

    def rdata(self) -> RD:
        match self.type:
            case "TXT":
                parts = (self.value,) if isinstance(self.value, str) else self.value
                pieces = [piece for part in parts for piece in _pieces(part.encode())]
                return TXT(pieces)
            case "CNAME":
                return CNAME(str(self.value))
            case "NS":
                return NS(str(self.value))
            case "A":
                return A(str(self.value))
            case "MX":
                preference, _, target = str(self.value).partition(" ")
                return MX(target, int(preference))
        raise AssertionError(self.type)


def _pieces(octets: bytes) -> list[bytes]:
    return [octets[start : start + 255] for start in range(0, len(octets), 255)] or [b""]


Records = dict[str, list[Record]]
"""By name."""


@dataclass
class Zone:
    """One zone with its two servers."""

    name: str
    records: Records = field(default_factory=dict)
    only: dict[str, Records] = field(default_factory=dict)
    """Server → what this one has instead of `records`; "resolver" has it in its cache."""
    trouble: dict[str, str] = field(default_factory=dict)
    """Server → servfail, timeout, lame, refused, nonsense; for the resolver dnssec, too."""
    servers: tuple[str, ...] = ("ns1", "ns2")
    homeless: tuple[str, ...] = ()
    negative_ttl: int = NEGATIVE_TTL

    def add(self, kind: str, host: str, *values: str | tuple[str, ...], on: str = "", ttl: int = TTL) -> Self:
        """Records of one name, everywhere or `on` one server."""
        place = self.records if not on else self.only.setdefault(on, {})
        place.setdefault(host.lower(), []).extend(Record(kind, value, ttl) for value in values)
        return self

    def of(self, server: str) -> Records:
        return self.only.get(server, self.records)


class World:
    """The servers. Zones may be added and changed while they run."""

    def __init__(self) -> None:
        self.zones: dict[str, Zone] = {}
        self.port = 0
        self.asked: list[tuple[str, str, str]] = []
        """Server, name, type of every question."""
        self._servers: list[DNSServer] = []

    @property
    def resolver(self) -> tuple[str, int]:
        return HOSTS["resolver"], self.port

    def zone(self, name: str, **facts: object) -> Zone:
        made = self.zones[name] = Zone(name, **facts)  # type: ignore[arg-type]
        return made

    def __enter__(self) -> Self:
        for _ in range(20):
            self.port = free_port(socket.SOCK_DGRAM)
            try:
                for server, host in HOSTS.items():
                    for tcp in (False, True):
                        made = DNSServer(_Server(self, server), host, self.port, tcp=tcp, logger=Quiet())
                        self._servers.append(made)
                break
            except OSError:  # taken on one of the addresses
                self._close()
        for each in self._servers:
            each.start_thread()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in self._servers:
            each.stop()
        self._close()

    def _close(self) -> None:
        for each in self._servers:
            each.server.server_close()
        self._servers.clear()

    def of(self, name: str) -> Zone | None:
        """The zone that holds a name."""
        labels = name.split(".")
        for start in range(len(labels)):
            found = self.zones.get(".".join(labels[start:]))
            if found is not None:
                return found
        return None


class _Server(BaseResolver):  # type: ignore[misc]
    def __init__(self, world: World, server: str) -> None:
        self._world = world
        self._server = server

    def resolve(self, request: DNSRecord, handler: DNSHandler) -> DNSRecord:
        del handler
        name, kind = str(request.q.qname).rstrip(".").lower(), QTYPE[request.q.qtype]
        self._world.asked.append((self._server, name, kind))
        reply = request.reply(ra=self._server == "resolver", aa=0)
        if self._server == "resolver" and _is_host(name):
            return _address(reply, name, kind)
        zone = self._world.of(name)
        if zone is None:
            reply.header.rcode = RCODE.NXDOMAIN if self._server == "resolver" else RCODE.REFUSED
            return reply
        trouble = zone.trouble.get(self._server, "")
        if trouble and not (kind in {"NS", "SOA"} and self._server == "resolver" and name == zone.name):
            return _trouble(trouble, request, reply)
        if self._server == "resolver":
            return self._recurse(reply, name, kind)
        reply.header.aa = 1
        self._answer(reply, zone, name, kind, 0)
        return reply

    def _recurse(self, reply: DNSRecord, name: str, kind: str) -> DNSRecord:
        for depth in range(_DEPTH):
            zone = self._world.of(name)
            if zone is None:
                reply.header.rcode = RCODE.NXDOMAIN
                return reply
            target = self._answer(reply, zone, name, kind, depth)
            if not target:
                return reply
            name = target
        reply.header.rcode = RCODE.SERVFAIL  # as resolvers do with circles
        return reply

    def _answer(self, reply: DNSRecord, zone: Zone, name: str, kind: str, depth: int) -> str:
        """Add what this server has; the target of an alias that leads on."""
        if name == zone.name and kind in {"NS", "SOA"}:
            _apex(reply, zone, kind)
            return ""
        records = zone.of(self._server)
        found = records.get(name) or records.get(f"*.{name.partition('.')[2]}") or []
        matching = [record for record in found if record.type == kind]
        if matching:
            for record in matching:
                reply.add_answer(RR(name, getattr(QTYPE, kind), rdata=record.rdata(), ttl=record.ttl))
            return ""
        alias = next((record for record in found if record.type == "CNAME"), None)
        if alias is not None:
            reply.add_answer(RR(name, QTYPE.CNAME, rdata=alias.rdata(), ttl=alias.ttl))
            target = str(alias.value).rstrip(".").lower()
            if self._server == "resolver":
                return target
            if self._world.of(target) is zone and depth < _DEPTH:
                return self._answer(reply, zone, target, kind, depth + 1)
            return ""
        exists = found or any(other.endswith("." + name) for other in records)
        reply.header.rcode = RCODE.NOERROR if exists or name == zone.name else RCODE.NXDOMAIN
        reply.add_auth(_soa(zone))
        return ""


def _is_host(name: str) -> bool:
    return name.partition(".")[2] == "servers.test"


def _address(reply: DNSRecord, name: str, kind: str) -> DNSRecord:
    host = HOSTS.get(name.partition(".")[0])
    if host is None:
        reply.header.rcode = RCODE.NXDOMAIN
    elif kind == "A":
        reply.add_answer(RR(name, QTYPE.A, rdata=A(host), ttl=TTL))
    return reply


def _apex(reply: DNSRecord, zone: Zone, kind: str) -> None:
    if kind == "SOA":
        reply.add_answer(_soa(zone))
        return
    for server in (*zone.servers, *zone.homeless):
        reply.add_answer(RR(zone.name, QTYPE.NS, rdata=NS(f"{server}.servers.test"), ttl=TTL))


def _soa(zone: Zone) -> RR:
    times = (1, 3600, 600, 86400, zone.negative_ttl)
    return RR(zone.name, QTYPE.SOA, rdata=SOA("ns1.servers.test", "hostmaster.test", times), ttl=zone.negative_ttl)


def _trouble(trouble: str, request: DNSRecord, reply: DNSRecord) -> DNSRecord:
    match trouble:
        case "servfail":
            reply.header.rcode = RCODE.SERVFAIL
        case "dnssec":
            # a validating resolver: with CD set it hands out what it has, right or not
            reply.header.rcode = RCODE.NOERROR if request.header.cd else RCODE.SERVFAIL
        case "refused":
            reply.header.rcode = RCODE.REFUSED
        case "lame":
            reply.header.aa = 0  # knows nothing of it, and points upwards
            reply.add_auth(RR("test", QTYPE.NS, rdata=NS("ns1.servers.test"), ttl=TTL))
        case "timeout":
            raise DNSError("no answer")  # which dnslib takes for a request that it drops
        case "nonsense":
            reply.header.rcode = RCODE.NOTIMP
    return reply
