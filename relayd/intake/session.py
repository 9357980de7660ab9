"""Facts about one client session, as the listener finds them and admission judges them."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from relayd.config.models import Credential, Listener


@dataclass(slots=True)
class ClientSession:
    """One client's session: owned and updated by the listener, read by intake. Never shared between connections."""

    listener: Listener
    peer: IPv4Address | IPv6Address
    """The client; behind PROXY or XCLIENT the one they name. IPv4-mapped IPv6 addresses are unmapped."""
    port: int
    loopback: bool
    """The TCP connection itself stays on this machine."""
    helo: str = ""
    esmtp: bool = False
    tls: str | None = None
    credential: Credential | None = None
    network: str | None = None
    """Name of the network that lets the client in (its CIDR where the listener names none); None: not in any."""
    proxy: bool = False
    """The peer may still name the client that it speaks for: refused as itself at MAIL, not at once."""
    mails: int = 0
    """Mails accepted in this session."""
