"""Big contents put together without holding up the event loop.

`bytes.join` of 50 MiB keeps the interpreter lock for its whole length, in whatever thread it runs, and no other session
is served meanwhile. The kernel copies without the lock: the pieces are written to a file in memory and read back.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

APART = 512 * 1024
"""Octets from which it pays: less is copied in well under a millisecond."""
_VECTOR = 1024
"""Pieces of one call (IOV_MAX of Linux)."""

Piece = bytes | memoryview


class Joiner:
    """Joins for one event loop: one big content at a time, for many threads at it take the processor from the loop."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def joined(self, pieces: Sequence[Piece]) -> bytes:
        """All pieces, one behind the other: small ones at once, big ones in a thread."""
        if sum(map(len, pieces)) < APART:
            return pieces[0] if len(pieces) == 1 and type(pieces[0]) is bytes else b"".join(pieces)
        async with self._turn:
            return await asyncio.to_thread(join, pieces)


def join(pieces: Sequence[Piece]) -> bytes:
    """The same in a thread that has been left already: it does not keep others from running, however big they are."""
    size = sum(map(len, pieces))
    if size < APART:
        return b"".join(pieces)
    try:
        whole = _through_kernel(pieces, size)
    except OSError:  # no descriptor or no memory for a second copy: slower for others, but the mail is not lost
        return b"".join(pieces)
    # one read returns 2 GiB at most
    return whole if len(whole) == size else b"".join(pieces)


def _through_kernel(pieces: Sequence[Piece], size: int) -> bytes:
    fd = os.memfd_create("relayd content", os.MFD_CLOEXEC)
    try:
        for place in range(0, len(pieces), _VECTOR):
            os.writev(fd, pieces[place : place + _VECTOR])
        return os.pread(fd, size, 0) if os.lseek(fd, 0, os.SEEK_CUR) == size else b""
    finally:
        os.close(fd)
