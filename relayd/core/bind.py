"""Where to listen: an IP address and a port, written as one text; and whether a host is this machine.

Checked by config/places.py; bound by sockets.py.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address


class Bind(str):
    """An address and port to listen on, like 0.0.0.0:587 or [::]:587."""

    __slots__ = ()

    @property
    def host(self) -> str:
        return self.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        return int(self.rpartition(":")[2])

    @property
    def address(self) -> IPv4Address | IPv6Address:
        return ip_address(self.host)

    @property
    def loopback(self) -> bool:
        """Only this machine can reach it."""
        return self.address.is_loopback


def is_loopback(host: str) -> bool:
    """A host, by name or address, that is this very machine: nothing that goes there crosses a network."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
