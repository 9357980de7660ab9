"""What lies before the greeting: the PROXY header of a proxy in front of us, and input that comes too early.

Both look at the socket below the transport: a header must be taken off to the octet, since the TLS handshake that may
follow belongs to the transport.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import struct
import termios
from contextlib import suppress

from relayd.core.proxy import V1_MAX, V2_MAX, NotProxyError, ProxyError, ProxyHeader, parse_proxy

PEEK = 16 + V2_MAX + V1_MAX


def waiting_octets(fd: int) -> int:
    """Octets that the kernel has received and no one has read."""
    with suppress(OSError):
        return int(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0"))[0])
    return 0


async def read_proxy_header(fd: int, start_timeout: float, timeout: float) -> ProxyHeader | None:
    """The PROXY header that the peer begins with; what follows it stays unread. The transport must not be reading.

    None when the peer says nothing within `start_timeout` seconds, or something else: it is then an ordinary client,
    which waits for our greeting. Raises ProxyError for a malformed header and for one that is not whole within
    `timeout` seconds, ConnectionError or OSError when the connection breaks.
    """
    # A duplicate, since event loops let no one watch a descriptor that a transport owns.
    with socket.socket(fileno=os.dup(fd)) as sock:
        sock.setblocking(False)
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


def discard(fd: int) -> int:
    """Throw away what the kernel has received so far; returns how many octets. The transport must not be reading."""
    count = 0
    with socket.socket(fileno=os.dup(fd)) as sock, suppress(BlockingIOError):
        sock.setblocking(False)
        while count < 1 << 20:
            octets = len(sock.recv(65536))
            if not octets:
                break
            count += octets
    return count
