"""Ports that nobody uses at this moment: for what must know its port before it binds, or keep it over restarts."""

from __future__ import annotations

import socket
from contextlib import ExitStack


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """One port of 127.0.0.1."""
    return free_ports(1, kind)[0]


def free_ports(count: int, kind: socket.SocketKind = socket.SOCK_STREAM, host: str = "127.0.0.1") -> list[int]:
    """Several, all different. `host` "::": on IPv4 and IPv6."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket(family, kind)) for _ in range(count)]
        for one in sockets:
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            one.bind((host, 0))
        return [int(one.getsockname()[1]) for one in sockets]
