"""What lies before the greeting: the PROXY header of a proxy in front of us, and input that comes too early.

A header is taken off the bare socket, to the octet, before there is a transport: the TLS handshake that may follow
belongs to the transport, and uvloop's begin to read before a protocol can stop them.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from contextlib import suppress

from relayd.core.proxy import V2_MAX, NotProxyError, ProxyError, ProxyHeader, parse_proxy

PEEK = 16 + V2_MAX
DISCARD_MAX = 1 << 20


def waiting_octets(fd: int) -> int:
    """Octets that the kernel has received and no one has read."""
    with suppress(OSError):
        return int(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0"))[0])
    return 0


async def read_proxy_header(sock: socket.socket, start_timeout: float, timeout: float) -> ProxyHeader | None:
    """The PROXY header that the peer begins with; what follows it stays unread.

    None when the peer says nothing within `start_timeout` seconds, or something else: it is then an ordinary client,
    which waits for our greeting. Raises ProxyError for a malformed header and for one that is not whole within
    `timeout` seconds, OSError when the connection breaks.
    """
    taken = b""
    loop = asyncio.get_running_loop()
    end = loop.time() + start_timeout
    while True:
        if not await _readable(sock, end - loop.time()):
            if taken:
                raise ProxyError("the header was not finished in time")
            return None
        seen = sock.recv(PEEK, socket.MSG_PEEK)
        if not seen:
            raise ConnectionResetError
        try:
            header = parse_proxy(taken + seen)
        except NotProxyError:
            if taken:
                raise
            return None
        if header is not None:
            sock.recv(header.length - len(taken))
            return header
        if not taken:
            end = loop.time() + timeout
        taken += sock.recv(len(seen))


async def _readable(sock: socket.socket, timeout: float) -> bool:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def tell() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(sock.fileno(), tell)
    try:
        async with asyncio.timeout(max(timeout, 0)):
            await ready
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(sock.fileno())
    return True


def discard(sock: socket.socket) -> int:
    """Throw away what the kernel has received so far; returns how many octets."""
    count = 0
    with suppress(BlockingIOError):
        while count < DISCARD_MAX:
            octets = len(sock.recv(65536))
            if not octets:
                break
            count += octets
    return count
