"""A real DNS server on loopback with records that a test chooses, for verifiers that look up keys."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from dnslib import QTYPE, RCODE, RR, TXT, DNSQuestion, DNSRecord
from dnslib.server import BaseResolver, DNSHandler, DNSServer

from tests.support.ports import free_port


class ZoneServer:
    """TXT records by name (lower case, without the last dot), over UDP and TCP. Anything else is NXDOMAIN."""

    def __init__(self, zone: Mapping[str, bytes] | None = None) -> None:
        self.zone = dict(zone or {})
        self.asked: list[str] = []
        self.port = 0
        self._servers: list[DNSServer] = []

    def __enter__(self) -> Self:
        while not self._servers:
            self.port = free_port(socket.SOCK_DGRAM)
            try:
                for tcp in (False, True):
                    server = DNSServer(_Resolver(self), "127.0.0.1", self.port, tcp=tcp, logger=Quiet())
                    self._servers.append(server)
            except OSError:  # the other protocol's port of this number is taken
                for server in self._servers:
                    server.server.server_close()
                self._servers.clear()
        for server in self._servers:
            server.start_thread()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self._servers:
            server.stop()
            server.server.server_close()

    def txt(self, name: bytes, timeout: int = 5) -> bytes | None:
        """Ask over the wire, as dkimpy's `dnsfunc` does."""
        question = DNSRecord.question(name.decode().rstrip("."), "TXT")
        answer = DNSRecord.parse(question.send("127.0.0.1", self.port, tcp=True, timeout=timeout))
        for record in answer.rr:
            return b"".join(record.rdata.data)
        return None


class _Resolver(BaseResolver):  # type: ignore[misc]
    def __init__(self, zones: ZoneServer) -> None:
        self._zones = zones

    def resolve(self, request: DNSRecord, handler: DNSHandler) -> DNSRecord:
        del handler
        reply = request.reply()
        question: DNSQuestion = request.q
        name = str(question.qname).rstrip(".").lower()
        self._zones.asked.append(name)
        value = self._zones.zone.get(name)
        if value is None:
            reply.header.rcode = RCODE.NXDOMAIN
        elif question.qtype in (QTYPE.TXT, QTYPE.ANY):
            strings = [value[start : start + 255] for start in range(0, len(value), 255)]
            reply.add_answer(RR(question.qname, QTYPE.TXT, rdata=TXT(strings), ttl=60))
        return reply


class Quiet:
    """dnslib prints what it does unless told not to."""

    def __getattr__(self, name: str) -> object:
        return lambda *_: None
