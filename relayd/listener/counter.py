"""The caps on open connections, shared by all listeners of one worker: in total and per client address.

Counting only; what a client over the cap is told is connection.py's.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

IPAddress = IPv4Address | IPv6Address


class ConnectionCounter:
    """Used on one event loop only. The caps may be changed at any time; who is in stays in."""

    __slots__ = ("_per_ip", "connections", "connections_per_ip", "open")

    def __init__(self, connections: int, connections_per_ip: int) -> None:
        self.connections = connections
        """This worker's share of `limits.connections`."""
        self.connections_per_ip = connections_per_ip
        self.open = 0
        self._per_ip: dict[IPAddress, int] = {}

    def enter(self) -> bool:
        """Count a connection; False (and not counted) when the cap is reached."""
        if self.open >= self.connections:
            return False
        self.open += 1
        return True

    def leave(self) -> None:
        """A counted connection is gone."""
        self.open -= 1

    def hold(self, address: IPAddress) -> bool:
        """Count a connection of that client; False (and not counted) when its cap is reached."""
        count = self._per_ip.get(address, 0)
        if count >= self.connections_per_ip:
            return False
        self._per_ip[address] = count + 1
        return True

    def release(self, address: IPAddress) -> None:
        """A connection that was held for that client is gone."""
        count = self._per_ip[address] - 1
        if count:
            self._per_ip[address] = count
        else:
            del self._per_ip[address]
