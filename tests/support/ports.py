"""Ports that nobody uses, and that nobody gets by chance: for what must know its port before it binds, or keep it.

They lie outside of those that the system gives to whoever asks for any (a client, a listener on port 0): those of a
test that runs beside this one would take them sooner or later, in the moments in which nobody holds them.
"""

from __future__ import annotations

import errno
import random
import socket
from contextlib import ExitStack
from pathlib import Path

_GIVEN = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST = 10_000
_TRIES = 200
_CHANCE = random.SystemRandom()
"""Not seeded: processes that test side by side are to choose different ones."""


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
            _bind(one, host)
        return [int(one.getsockname()[1]) for one in sockets]


def _bind(sock: socket.socket, host: str) -> None:
    """Any free one below those that the system gives, if there is room."""
    end = int(_GIVEN.read_text("ascii").split()[0]) if _GIVEN.exists() else 0
    for port in _CHANCE.sample(range(_FIRST, end), _TRIES) if end >= _FIRST + _TRIES else ():
        try:
            sock.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            return
    sock.bind((host, 0))
