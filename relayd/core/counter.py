"""The caps on open connections, shared by all listeners of one worker: in total and per client address.

At the cap, the stranger that has been there for longest makes room: who only opens connections, and however many, keeps
nobody out. Counting only; what a client over the cap is told is connection.py's.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Protocol

IPAddress = IPv4Address | IPv6Address

WAY_OUT = 4
"""One in so many connections may be on its way out, beyond the cap."""


class Guest(Protocol):
    """A connection, as far as it is counted."""

    def give_way(self) -> bool:
        """Leave at once; False while intake is at work for it."""


class ConnectionCounter:
    """Used on one event loop only. The caps may be changed at any time; who is in stays in."""

    __slots__ = ("_leaving", "_per_ip", "_strangers", "connections", "connections_per_ip", "open")

    def __init__(self, connections: int, connections_per_ip: int) -> None:
        self.connections = connections
        """This worker's share of `limits.connections`."""
        self.connections_per_ip = connections_per_ip
        self.open = 0
        self._per_ip: dict[IPAddress, int] = {}
        self._strangers: dict[Guest, None] = {}
        self._leaving: set[Guest] = set()

    def enter(self, guest: Guest) -> bool:
        """Count a connection, a stranger's so far; False (and not counted) at the cap, where nobody gives way."""
        if self.open - len(self._leaving) >= self.connections and not self._make_room():
            return False
        self.open += 1
        self._strangers[guest] = None
        return True

    def _make_room(self) -> bool:
        if len(self._leaving) * WAY_OUT >= self.connections:
            return False
        for guest in self._strangers:
            if guest.give_way():
                del self._strangers[guest]
                self._leaving.add(guest)
                return True
        return False

    def known(self, guest: Guest) -> None:
        """It has logged in, or comes from a network that may send: it gives way to nobody."""
        self._strangers.pop(guest, None)

    def stranger(self, guest: Guest) -> None:
        """Nothing is known of it (any more), or it has just brought a mail: its time begins anew."""
        self._strangers.pop(guest, None)
        self._strangers[guest] = None

    def leave(self, guest: Guest) -> None:
        """A counted connection is gone."""
        self.open -= 1
        self._strangers.pop(guest, None)
        self._leaving.discard(guest)

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
