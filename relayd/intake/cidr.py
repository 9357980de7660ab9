"""Sets of networks, and IPv4-mapped addresses made plain. Pure; who is let in by what is networks.py's."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Peer = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_MAPPED = IPv6Network("::ffff:0:0/96")


def unmap(peer: Peer) -> Peer:
    """The IPv4 address inside an IPv4-mapped IPv6 address (RFC 4291 2.5.5.2); any other as it is."""
    return (peer.ipv4_mapped or peer) if isinstance(peer, IPv6Address) else peer


def unmap_network(network: Network) -> Network:
    """The same for a network that lies within ::ffff:0:0/96."""
    if isinstance(network, IPv6Network) and network.prefixlen >= 96 and network.subnet_of(_MAPPED):
        return IPv4Network((int(network.network_address) & 0xFFFFFFFF, network.prefixlen - 96))
    return network


class CidrSet:
    """Networks of both families; contains an (unmapped) address or not."""

    __slots__ = ("_v4", "_v6")

    def __init__(self, networks: Iterable[Network]) -> None:
        v4: dict[int, set[int]] = {}
        v6: dict[int, set[int]] = {}
        for network in map(unmap_network, networks):
            sets, bits = (v4, 32) if network.version == 4 else (v6, 128)
            shift = bits - network.prefixlen
            sets.setdefault(shift, set()).add(int(network.network_address) >> shift)
        self._v4 = tuple(v4.items())
        self._v6 = tuple(v6.items())

    def __contains__(self, peer: Peer) -> bool:
        number = int(peer)
        for shift, known in self._v4 if peer.version == 4 else self._v6:  # noqa: SIM110 - each connection comes here
            if number >> shift in known:
                return True
        return False
