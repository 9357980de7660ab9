"""bind9 on loopback: a real server of zones that take updates (RFC 2136), and a resolver of them."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import dns.message
import dns.query
import dns.rcode
import dns.rdatatype
import dns.update

from tests.support.ports import free_port

PROGRAM = shutil.which("named", path="/usr/sbin:/usr/bin:/sbin:/bin")
ADDRESSES = ("127.0.0.1",)
"""Both name servers of every zone are one process."""
_PATIENCE = 30.0

_ZONE = """\
$TTL 1
@ IN SOA ns1.{zone}. hostmaster.{zone}. 1 3600 600 86400 1
@ IN NS ns1.{zone}.
@ IN NS ns2.{zone}.
ns1 IN A 127.0.0.1
ns2 IN A 127.0.0.1
"""

_ROOT = """\
$TTL 1
@ IN SOA ns. hostmaster. 1 3600 600 86400 1
@ IN NS ns.
ns IN A 127.0.0.1
"""


class Bind:
    """A running named. TTLs are one second, negative ones, too."""

    def __init__(self, zones: Sequence[str]) -> None:
        self.zones = tuple(zones)
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._directory = tempfile.TemporaryDirectory(prefix="bind-")

    def __enter__(self) -> Self:
        assert PROGRAM is not None
        directory = Path(self._directory.name)
        for _ in range(5):
            self.port = free_port(socket.SOCK_DGRAM)
            self._configure(directory)
            log = (directory / "log").open("wb")
            command = [PROGRAM, "-g", "-c", str(directory / "named.conf"), "-p", str(self.port), "-n", "1"]
            with log:
                self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=directory)
            if self._answers():
                return self
            self._end()
        raise AssertionError((directory / "log").read_text())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        self._directory.cleanup()

    def _end(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(_PATIENCE)

    def _configure(self, directory: Path) -> None:
        listen = "; ".join(ADDRESSES)
        lines = [
            f'options {{ directory "{directory}"; listen-on port {self.port} {{ {listen}; }};',
            "  listen-on-v6 { none; };",
            f'  pid-file "{directory}/pid"; session-keyfile "{directory}/key"; recursion yes; dnssec-validation no;',
            "  notify no; };",
            "controls { };",
        ]
        # a root of its own: it follows CNAMEs from zone to zone as resolvers do, and never asks the world
        (directory / "root.db").write_text(_ROOT)
        lines.append(f'zone "." {{ type primary; file "{directory}/root.db"; }};')
        for zone in self.zones:
            path = directory / f"{zone}.db"
            path.write_text(_ZONE.format(zone=zone))
            lines.append(f'zone "{zone}" {{ type primary; file "{path}"; allow-update {{ 127.0.0.0/8; }}; }};')
        (directory / "named.conf").write_text("\n".join(lines) + "\n")

    def _answers(self) -> bool:
        assert self._process is not None
        query = dns.message.make_query(self.zones[0], "SOA")
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                return bool(dns.query.tcp(query, ADDRESSES[0], 1.0, self.port).answer)
            except (OSError, dns.exception.Timeout, EOFError):
                time.sleep(0.05)
        return False

    def add(self, zone: str, host: str, kind: str, text: str) -> None:
        """Add a record, by zone update. `text` as in a zone file, names with their last dot."""
        update = dns.update.UpdateMessage(zone)
        update.add(f"{host}.", 1, kind, text)
        self._send(update)

    def delete(self, zone: str, host: str, kind: str) -> None:
        """Take all records of a name and type away."""
        update = dns.update.UpdateMessage(zone)
        update.delete(f"{host}.", kind)
        self._send(update)

    def ask(self, host: str, kind: str) -> list[str]:
        """The records of a name and type, as in a zone file."""
        answer = dns.query.tcp(dns.message.make_query(f"{host}.", kind), ADDRESSES[0], _PATIENCE, self.port)
        return [record.to_text() for records in answer.answer for record in records]

    def _send(self, update: dns.update.UpdateMessage) -> None:
        response = dns.query.tcp(update, ADDRESSES[0], _PATIENCE, self.port)
        assert response.rcode() == dns.rcode.NOERROR, response
