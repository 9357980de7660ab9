"""Big contents put together without holding up the event loop.

`bytes.join` of 50 MiB keeps the interpreter lock for its whole length, in whatever thread it runs, and no other session
is served meanwhile. The kernel copies without the lock: the pieces are written to a file in memory and read back.
"""

from __future__ import annotations

import asyncio
import os
from typing import NoReturn, TypeVar

APART = 512 * 1024
"""Octets from which it pays: less is copied in well under a millisecond."""
_VECTOR = 1024
"""Pieces of one call (IOV_MAX of Linux)."""

Piece = TypeVar("Piece", bound=bytes | memoryview)


class Joiner:
    """Joins for one event loop: one big content at a time, for many threads at it take the processor from the loop."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def joined(self, pieces: list[Piece]) -> bytes:
        """All pieces, one behind the other: small ones at once, big ones in a thread."""
        if sum(map(len, pieces)) < APART:
            first = pieces[0] if len(pieces) == 1 else None
            return first if type(first) is bytes else b"".join(pieces)
        async with self._turn:
            return await asyncio.to_thread(join, pieces)


def join(pieces: list[Piece]) -> bytes:
    """The same in a thread that has been left already: it does not keep others from running, however big they are.

    The list is emptied as soon as may be, so that no more than two copies are there at any time.
    """
    size = sum(map(len, pieces))
    if size < APART:
        return b"".join(pieces)
    try:
        fd = os.memfd_create("relayd content", os.MFD_CLOEXEC)
    except OSError:  # no descriptor: slower for others, but the mail is not lost
        return b"".join(pieces)
    try:
        return _through_kernel(fd, pieces, size)
    finally:
        os.close(fd)


def _through_kernel(fd: int, pieces: list[Piece], size: int) -> bytes:
    try:
        for place in range(0, len(pieces), _VECTOR):
            os.writev(fd, pieces[place : place + _VECTOR])
        whole = os.lseek(fd, 0, os.SEEK_CUR) == size
    except OSError:  # no memory for a second copy
        whole = False
    if not whole:
        return b"".join(pieces)
    pieces.clear()
    found = os.pread(fd, size, 0)
    while len(found) < size:  # one read returns 2 GiB at most
        found += os.pread(fd, size - len(found), len(found)) or _cut_short()
    return found


def _cut_short() -> NoReturn:
    raise OSError("a file in memory ended early")
