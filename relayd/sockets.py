"""Listening sockets: bound and listening before anything else starts, handed from the supervisor to its workers.

Who accepts on them is the business of the listeners and of the web server.
"""

from __future__ import annotations

import errno
import socket
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Protocol

from relayd.core.bind import Bind

BACKLOG = 4096
"""Connections that wait to be accepted (the kernel caps it at net.core.somaxconn): those of a worker that restarts."""


WEB = {"web": "bind", "web.public": "public", "web.public_tls": "public_tls"}
"""What the web server's sockets are for, with the key in the section `web`."""


class WantedListener(Protocol):
    """A listener, as far as sockets go."""

    @property
    def name(self) -> str: ...

    @property
    def bind(self) -> Sequence[str]: ...


class WantedWeb(Protocol):
    """The web server, as far as sockets go."""

    @property
    def bind(self) -> Sequence[str]: ...

    @property
    def public(self) -> Sequence[str]: ...

    @property
    def public_tls(self) -> Sequence[str]: ...


class Wanted(Protocol):
    """Who listens where: a whole configuration, or what the supervisor has of it."""

    @property
    def listeners(self) -> Sequence[WantedListener]: ...

    @property
    def web(self) -> WantedWeb: ...


class BindError(Exception):
    """A socket could not be bound; the text names who wanted it, the address, and what to do."""


@dataclass(frozen=True, slots=True)
class Sockets:
    """One process's listening sockets: those of each listener by its name, and those of the web server by use."""

    smtp: Mapping[str, list[socket.socket]]
    web: Mapping[str, list[socket.socket]]
    """By the keys of WEB; a use without sockets is left out."""

    def __iter__(self) -> Iterator[socket.socket]:
        for sockets in (*self.smtp.values(), *self.web.values()):
            yield from sockets

    def close(self) -> None:
        """Close all of them, in this process."""
        for sock in self:
            sock.close()

    def export(self) -> tuple[dict[str, Any], list[int]]:
        """A plan that JSON can carry, and the file descriptors in its order."""
        plan = {
            kind: {name: len(sockets) for name, sockets in group.items()}
            for kind, group in (("smtp", self.smtp), ("web", self.web))
        }
        return plan, [sock.fileno() for sock in self]

    @classmethod
    def adopt(cls, plan: Mapping[str, Any], fds: Iterable[int]) -> Sockets:
        """The sockets of `export`, from descriptors that belong to this process now."""
        left = iter(fds)
        smtp, web = (
            {name: [socket.socket(fileno=next(left)) for _ in range(count)] for name, count in plan[kind].items()}
            for kind in ("smtp", "web")
        )
        return cls(smtp, web)

    def keep(self, new: Sockets) -> Sockets:
        """`new`, with our own object wherever both hold the same address; the duplicates are closed."""
        ours = {(sock.family, sock.getsockname()): sock for sock in self}

        def ours_or(sock: socket.socket) -> socket.socket:
            kept = ours.get((sock.family, sock.getsockname()))
            if kept is None:
                return sock
            sock.close()
            return kept

        smtp, web = (
            {name: [ours_or(s) for s in sockets] for name, sockets in group.items()} for group in (new.smtp, new.web)
        )
        return Sockets(smtp, web)

    def named(self, prefix: str) -> dict[str, socket.socket]:
        """All of them by a name each, for whoever keeps them while we restart: no colon, as systemd wants it."""
        names: dict[str, socket.socket] = {}
        for sock in self:
            name = f"{prefix}-{address_of(sock).replace(':', '-')}"
            names[name] = sock
        return names

    def addresses(self) -> dict[str, list[str]]:
        """Where each listener, and the web server's "web", "web.public", … really listen; closed ones are left out."""
        groups = {**self.smtp, **self.web}
        return {name: [address_of(s) for s in sockets if s.fileno() >= 0] for name, sockets in groups.items()}


def address_of(sock: socket.socket) -> str:
    """host:port of a socket, IPv6 in brackets."""
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if sock.family == socket.AF_INET6 else f"{host}:{port}"


def bind(config: Wanted, *, reuse_port: bool = False, like: Sockets | None = None) -> Sockets:
    """Bind and listen on every address of the configuration. Raises BindError, with nothing left open.

    With `reuse_port` several processes may hold the same address (SO_REUSEPORT); port 0 then means the port that
    the same place of `like` was given.
    """
    return rebind(config, None, reuse_port=reuse_port, like=like)


def rebind(config: Wanted, old: Sockets | None, *, reuse_port: bool = False, like: Sockets | None = None) -> Sockets:
    """The sockets of a changed configuration: those of `old` where the address stays, new ones elsewhere.

    The sockets of `old` that are not in the result are still open: their owner closes them when the change holds.
    Raises BindError, with `old` as it was.
    """
    left = [] if old is None else list(old)
    opened: list[socket.socket] = []

    def group(
        owner: str, wishes: Sequence[str], olds: Sequence[socket.socket], likes: Sequence[socket.socket]
    ) -> list[socket.socket]:
        sockets = []
        for place, wish in enumerate(wishes):
            bind = Bind(wish)
            kept = _kept(bind, olds[place : place + 1] if not bind.port else left, left)
            if kept is None:
                port = bind.port or (likes[place].getsockname()[1] if place < len(likes) else 0)
                kept = _listen(owner, bind, port, reuse_port=reuse_port, probe=reuse_port and like is None)
                opened.append(kept)
            else:
                left.remove(kept)
            sockets.append(kept)
        return sockets

    before, model = old or Sockets({}, {}), like or Sockets({}, {})
    try:
        smtp = {
            x.name: group(f"listener {x.name}", x.bind, before.smtp.get(x.name, []), model.smtp.get(x.name, []))
            for x in config.listeners
        }
        web = {
            name: group(name, wishes, before.web.get(name, []), model.web.get(name, []))
            for name, key in WEB.items()
            if (wishes := getattr(config.web, key))
        }
    except BaseException:
        for sock in opened:
            sock.close()
        raise
    return Sockets(smtp, web)


def shares(inherited: Sequence[socket.socket], processes: int) -> list[Sockets]:
    """What each process may take of sockets from an earlier run: of each address one. What is left over is closed."""
    found: list[list[socket.socket]] = [[] for _ in range(processes)]
    taken: Counter[tuple[int, Any]] = Counter()
    for sock in inherited:
        place = sock.family, sock.getsockname()
        if taken[place] < processes:
            if processes > 1:
                # One process alone, or a socket unit, made it for itself. It must not be replaced: the service manager
                # holds it, too, so that the address would stay taken.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            found[taken[place]].append(sock)
            taken[place] += 1
        else:
            sock.close()
    return [Sockets({}, {"inherited": each}) for each in found]


def _kept(wish: Bind, candidates: Iterable[socket.socket], left: Sequence[socket.socket]) -> socket.socket | None:
    """The socket at hand that listens there already; port 0 is content with whatever port it was given before."""
    for sock in candidates:
        host, port = sock.getsockname()[:2]
        if sock in left and ip_address(host) == ip_address(wish.host) and wish.port in {0, port}:
            return sock
    return None


def _listen(owner: str, wish: Bind, port: int, *, reuse_port: bool, probe: bool) -> socket.socket:
    host = wish.host
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        if probe and port:
            # SO_REUSEPORT would let us join a stranger's port (another relayd of this user) without a word:
            # a bind without it tells whether the port is free
            _open(family, host, port, reuse_port=False).close()
        sock = _open(family, host, port, reuse_port=reuse_port)
    except OSError as error:
        raise BindError(f"{owner}: cannot listen on {wish}: {_reason(error, port)}") from None
    return sock


def _open(family: socket.AddressFamily, host: str, port: int, *, reuse_port: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            # so that [::]:587 and 0.0.0.0:587 can stand side by side
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _reason(error: OSError, port: int) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"another program listens there (`ss -ltnp sport = {port}` shows which)"
        case errno.EACCES | errno.EPERM:
            return (
                f"ports below 1024 take a privilege: run under systemd with AmbientCapabilities=CAP_NET_BIND_SERVICE, "
                f"or use a port like {port + 2000}"
            )
        case errno.EADDRNOTAVAIL:
            return "no interface of this machine has that address"
        case errno.EAFNOSUPPORT:
            return "this machine has no IPv6: leave that address out"
        case _:
            return (error.strerror or "the system refused").lower()
