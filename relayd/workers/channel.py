"""The line between supervisor and worker: a pair of sockets that carries small JSON objects and file descriptors.

What is said over it is supervisor.py's and worker.py's business.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

import orjson

MESSAGE_LIMIT = 64 * 1024
"""Octets of one message."""
FDS_LIMIT = 250
"""Descriptors of one message (the kernel's SCM_MAX_FD is 253): the sockets of a worker, and its configuration."""

Receive = Callable[[dict[str, Any], list[int]], None]


class Channel:
    """One end. Messages keep their borders and order (SOCK_SEQPACKET)."""

    def __init__(self, sock: socket.socket, receive: Receive, closed: Callable[[], None]) -> None:
        """`receive` is called with each message and the descriptors that came with it, which it owns then.

        `closed` is called once, when the other end is gone.
        """
        self._socket = sock
        self._receive = receive
        self._closed = closed
        sock.setblocking(False)

    def open(self) -> None:
        """Begin to receive, on the running loop."""
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._readable)

    def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> bool:
        """Send, at once or not at all: False when the other end is gone, or has not read for long."""
        try:
            data = orjson.dumps(message, default=str)
            if len(data) > MESSAGE_LIMIT:
                return False
            if fds:
                socket.send_fds(self._socket, [data], list(fds))
            else:
                self._socket.send(data)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Stop receiving and close this end."""
        if self._socket.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()

    def _readable(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._socket, MESSAGE_LIMIT, FDS_LIMIT, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if not data:
            self.close()
            self._closed()
            return
        self._receive(orjson.loads(data), fds)


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends: ours, and the one for the worker."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def write_memory(data: bytes) -> int:
    """A descriptor from which another process reads octets: memory only, for configurations hold secrets."""
    fd = os.memfd_create("relayd-config")
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(data)
    return fd


def read_memory(fd: int) -> bytes:
    """What `write_memory` wrote; closes the descriptor."""
    with os.fdopen(fd, "rb") as file:
        file.seek(0)
        return file.read()
