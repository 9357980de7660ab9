"""Asks DNS: every authoritative server of a name's zone, and a resolver as receivers use one. dnspython does the wire.

Facts only: what an answer means is judge.py's. One Lookup serves one verification: it remembers what it was told.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import dns.asyncquery
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.resolver
import dns.rrset

from relayd.domains.records import Answer, Question, Status, bare

T = TypeVar("T")
Place = tuple[str, int]
"""Address and port."""

MAX_CHAIN = 8
"""CNAMEs that are followed; resolvers give up at about as many."""
MAX_SERVERS = 13
_PARALLEL = 16
_PAYLOAD = 1232
_HEADER_ERRORS = {dns.rcode.REFUSED: Status.LAME, dns.rcode.NOTAUTH: Status.LAME, dns.rcode.SERVFAIL: Status.SERVFAIL}


@dataclass(frozen=True, slots=True)
class Zone:
    """The zone a name belongs to."""

    name: str
    servers: tuple[tuple[str, str], ...]
    """Name and address of each authoritative server that has an address."""
    homeless: tuple[str, ...] = ()
    """Servers named for the zone without an address."""


def system_resolvers() -> list[Place]:
    """Those of /etc/resolv.conf."""
    try:
        found = dns.resolver.Resolver()
    except (dns.resolver.NoResolverConfiguration, OSError):
        return [("127.0.0.1", 53)]
    return [(str(address), found.port) for address in found.nameservers if isinstance(address, str)]


class Lookup:
    """Asks and remembers. All methods may be called at the same time; none raises for what DNS does."""

    def __init__(self, resolvers: Sequence[Place], *, port: int = 53, timeout: float = 3.0, tries: int = 2) -> None:
        """`port`: of authoritative servers. `timeout`: seconds for one try."""
        self._resolvers = list(resolvers) or system_resolvers()
        self._port = port
        self._timeout = timeout
        self._tries = tries
        self._known: dict[object, asyncio.Task[Any]] = {}
        self._gate = asyncio.Semaphore(_PARALLEL)
        self._heard: set[Place] = set()
        self._silent: set[Place] = set()
        """Servers that never said a word: asked no more, or one dead server would cost its time-out again and again."""

    async def close(self) -> None:
        """End what is still being asked."""
        tasks = list(self._known.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- what callers ask

    async def everywhere(self, question: Question) -> list[Answer]:
        """The answers of every authoritative server, and of the resolver."""
        by_servers, by_resolver = await asyncio.gather(self.authoritative(question), self.resolver(question))
        return [*by_servers, by_resolver]

    async def resolver(self, question: Question) -> Answer:
        """The answer of the first resolver that gives one."""
        return await self._once(("resolver", question), lambda: self._by_resolver(question))

    async def authoritative(self, question: Question) -> list[Answer]:
        """The answers of every server of the name's zone; CNAMEs are followed into other zones."""
        return await self._once(("servers", question), lambda: self._by_servers(question, ()))

    async def zone(self, name: str) -> Zone | None:
        """The zone that holds a name; None where it cannot be found out."""
        return await self._once(("zone", bare(name)), lambda: self._find_zone(bare(name)))

    async def retry_after(self, name: str) -> int:
        """Seconds that the zone's SOA gives for coming back: its negative TTL; 0 where unknown."""
        zone = await self.zone(name)
        if zone is None:
            return 0
        answer = await self.resolver((zone.name, "SOA"))
        if answer.status is not Status.FOUND:
            return 0
        return min(int(answer.records[0].split()[-1]), answer.ttl or 86400)

    async def _once(self, key: object, ask: Callable[[], Awaitable[T]]) -> T:
        task = self._known.get(key)
        if task is None:
            task = asyncio.ensure_future(_boxed(ask))
            task.set_name(f"dns {key}")
            self._known[key] = task
        return cast("T", await asyncio.shield(task))

    # -- resolver

    async def _by_resolver(self, question: Question) -> Answer:
        answer = Answer("resolver", False, Status.TIMEOUT)
        for place in self._resolvers:
            response = await self._exchange(question, place, recursive=True)
            answer = _understood("resolver", False, question, response)
            if answer.status is Status.SERVFAIL:
                unchecked = await self._exchange(question, place, recursive=True, checking=False)
                if not isinstance(unchecked, Status) and unchecked.rcode() in {dns.rcode.NOERROR, dns.rcode.NXDOMAIN}:
                    return replace(answer, status=Status.DNSSEC)
            if answer.status not in {Status.TIMEOUT, Status.ERROR, Status.LAME}:
                return answer
        return answer

    # -- authoritative servers

    async def _find_zone(self, name: str) -> Zone | None:
        labels = name.split(".")
        above = [".".join(labels[start:]) for start in range(len(labels))]
        # all at once: a resolver that is silent about one name costs its time-out once, and may know the next
        answers = await asyncio.gather(*(self.resolver((candidate, "NS")) for candidate in above))
        for candidate, answer in zip(above, answers, strict=True):
            if answer.status is Status.FOUND and not answer.chain:
                # were this not the right cut after all, its servers would answer without authority, which says nothing
                return await self._with_addresses(candidate, answer.records)
        return None

    async def _with_addresses(self, name: str, servers: Iterable[str]) -> Zone:
        names = sorted(bare(server) for server in servers)[:MAX_SERVERS]
        found = await asyncio.gather(*(self._address(server) for server in names))
        pairs = tuple((server, address) for server, address in zip(names, found, strict=True) if address)
        homeless = tuple(server for server, address in zip(names, found, strict=True) if not address)
        return Zone(name, pairs, homeless)

    async def _address(self, server: str) -> str:
        # one address each: a machine without IPv6 would find every second address dead
        for kind in ("A", "AAAA"):
            answer = await self.resolver((server, kind))
            if answer.status is Status.FOUND:
                return answer.records[0]
        return ""

    async def _by_servers(self, question: Question, way: tuple[str, ...]) -> list[Answer]:
        zone = await self.zone(question[0])
        if zone is None:
            return []
        answers = await asyncio.gather(
            *(self._by_server(question, server, address, way) for server, address in zone.servers)
        )
        return [*answers, *(Answer(server, True, Status.ERROR) for server in zone.homeless)]

    async def _by_server(self, question: Question, server: str, address: str, way: tuple[str, ...]) -> Answer:
        response = await self._exchange(question, (address, self._port), recursive=False)
        answer = _understood(server, True, question, response)
        if answer.chain and answer.status in {Status.NODATA, Status.NXDOMAIN}:
            return await self._follow(question, answer, (*way, bare(question[0])))
        return answer

    async def _follow(self, question: Question, answer: Answer, way: tuple[str, ...]) -> Answer:
        """The server knows only that the name is an alias: ask for the target where it lives."""
        target = answer.chain[-1]
        chain = answer.chain
        if target in way or len(way) + len(chain) > MAX_CHAIN:
            return replace(answer, status=Status.LOOP)
        # not remembered by the question alone: the way to it decides where a circle closes
        further = await self._by_servers((target, question[1]), (*way, *chain[:-1]))
        best = next((each for each in further if each.status is Status.FOUND), further[0] if further else None)
        if best is None:
            return answer
        return replace(best, source=answer.source, chain=(*chain, *best.chain), ttl=min(answer.ttl, best.ttl))

    # -- the wire

    async def _exchange(
        self, question: Question, place: Place, *, recursive: bool, checking: bool = True
    ) -> dns.message.Message | Status:
        """One question to one server; the status where there is no answer to read."""
        try:
            name = dns.name.from_text(question[0])
            query = dns.message.make_query(name, question[1], use_edns=0, payload=_PAYLOAD)
            address = str(ipaddress.ip_address(place[0]))
        except (dns.exception.DNSException, ValueError):
            return Status.ERROR
        if not recursive:
            query.flags &= ~dns.flags.RD
        if not checking:
            query.flags |= dns.flags.CD
        if place in self._silent:
            return Status.TIMEOUT
        status = Status.TIMEOUT
        for _ in range(self._tries):
            async with self._gate:
                try:
                    response, _tcp = await dns.asyncquery.udp_with_fallback(
                        query, address, self._timeout, place[1], ignore_unexpected=True, ignore_errors=True
                    )
                except dns.exception.Timeout:
                    continue
                except (dns.exception.DNSException, OSError, EOFError):
                    status = Status.ERROR
                    continue
            self._heard.add(place)
            return response
        if status is Status.TIMEOUT and place not in self._heard:
            self._silent.add(place)
        return status


async def _boxed(ask: Callable[[], Awaitable[T]]) -> T:
    return await ask()


def _understood(source: str, authoritative: bool, question: Question, response: dns.message.Message | Status) -> Answer:
    """What a response says about the question."""
    if isinstance(response, Status):
        return Answer(source, authoritative, response)
    rcode = response.rcode()
    if rcode not in {dns.rcode.NOERROR, dns.rcode.NXDOMAIN}:
        status = _HEADER_ERRORS.get(rcode, Status.ERROR)
        if status is Status.LAME and not authoritative:
            status = Status.ERROR  # a resolver that refuses us
        return Answer(source, authoritative, status)
    chain, records, ttls, loop = _walk(response, question)
    ttl = min(ttls, default=0)
    if loop:
        return Answer(source, authoritative, Status.LOOP, chain=chain, ttl=ttl)
    if authoritative and not response.flags & dns.flags.AA:
        return Answer(source, True, Status.LAME)
    if records:
        return Answer(source, authoritative, Status.FOUND, records, chain, ttl)
    status = Status.NXDOMAIN if rcode == dns.rcode.NXDOMAIN else Status.NODATA
    return Answer(source, authoritative, status, (), chain, min([_negative_ttl(response), *ttls]))


def _walk(
    response: dns.message.Message, question: Question
) -> tuple[tuple[str, ...], tuple[str, ...], list[int], bool]:
    """Follow the CNAMEs within one response: chain, records of the wanted type, TTLs, and whether it is a circle."""
    wanted = dns.rdatatype.from_text(question[1])
    name = dns.name.from_text(question[0])
    chain: list[str] = []
    ttls: list[int] = []
    seen = {name}
    while True:
        found = response.get_rrset(response.answer, name, dns.rdataclass.IN, wanted)
        if found is not None:
            ttls.append(found.ttl)
            return tuple(chain), tuple(sorted(_text(rdata) for rdata in found)), ttls, False
        alias = response.get_rrset(response.answer, name, dns.rdataclass.IN, dns.rdatatype.CNAME)
        if alias is None:
            return tuple(chain), (), ttls, False
        ttls.append(alias.ttl)
        name = alias[0].target
        chain.append(bare(name.to_text()))
        if name in seen or len(chain) > MAX_CHAIN:
            return tuple(chain), (), ttls, True
        seen.add(name)


def _text(rdata: dns.rdata.Rdata) -> str:
    """TXT: the strings joined, octets as latin-1. Other types: as zone files have them, without the last dot."""
    strings = getattr(rdata, "strings", None)
    if strings is not None:
        return b"".join(strings).decode("latin-1")
    text = rdata.to_text()
    return text if text.endswith(" .") else text.rstrip(".") if text != "." else text


def _negative_ttl(response: dns.message.Message) -> int:
    """How long the absence may be believed (RFC 2308 5); 0 where the server does not say."""
    for rrset in response.authority:
        if rrset.rdtype == dns.rdatatype.SOA:
            return min(int(rrset.ttl), int(rrset[0].minimum))
    return 0
