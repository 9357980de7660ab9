"""Big contents put together without holding up the event loop, and without a second copy of all of it.

`bytes.join` of 50 MiB keeps the interpreter lock for its whole length, in whatever thread it runs, and no other session
is served meanwhile. Here the result is there from the beginning, as memory that nobody has touched yet, and is filled
piece by piece; each piece is let go as soon as it has been copied.
"""

from __future__ import annotations

import asyncio
import os
from io import BytesIO
from typing import TypeVar

APART = 512 * 1024
"""Octets from which it pays: less is copied in well under a millisecond."""
TRIM = 8 * 1024 * 1024
"""Octets from which what the pieces took is given back to the system at once."""
STEP = 256 * 1024
"""Octets copied at once: a fraction of a millisecond, new memory included."""

Piece = TypeVar("Piece", bound=bytes | memoryview)


class Joiner:
    """Joins for one event loop: one big content at a time, so that ten at once cost a turn of the loop no more."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def joined(self, pieces: list[Piece]) -> bytes:
        """All pieces, one behind the other: small ones at once, big ones in steps with room for others in between.

        The list of a big content is empty afterwards.
        """
        first = pieces[0] if len(pieces) == 1 else None
        if type(first) is bytes:
            pieces.clear()
            return first
        size = sum(map(len, pieces))
        if size < APART:
            return b"".join(pieces)
        # In a thread it would be no better: who copies there either keeps the interpreter lock from the loop, or, by
        # the kernel, takes twice as long on a processor that the loop wants.
        async with self._turn:
            whole = _untouched(size)
            pieces.reverse()
            since = 0  # octets copied in this turn of the loop: pieces may be as small as a packet
            while pieces:
                octets = memoryview(pieces.pop())
                for place in range(0, len(octets), STEP):
                    since += whole.write(octets[place : place + STEP])
                    if since >= STEP:
                        since = 0
                        await asyncio.sleep(0)
                del octets
            if size >= TRIM:
                await asyncio.to_thread(trim)
            return whole.getvalue()


def trim() -> None:
    """Give the system back what was freed between things that are still there: in a thread, for some milliseconds.

    The pieces of several big contents lie side by side, as they came. The C library gives back nothing but the end of
    its heap by itself, so each content that was joined would take its memory twice until all others are done with.
    """
    import ctypes  # noqa: PLC0415 - seldom needed

    release = getattr(ctypes.CDLL(None), "malloc_trim", None)  # GNU's alone has it, and needs it
    if release is not None:
        release(0)


def join(pieces: list[Piece]) -> bytes:
    """The same in a thread that has been left already: it does not keep others from running, however big they are.

    The kernel copies without the interpreter lock: through a file in memory, no larger than one step.
    """
    size = sum(map(len, pieces))
    if size < APART:
        return b"".join(pieces)
    whole = _untouched(size)
    try:
        window = os.memfd_create("relayd content", os.MFD_CLOEXEC)
    except OSError:  # no descriptor: others have to wait now and then, but the mail is not lost
        window = -1
    try:
        with whole.getbuffer() as target:
            _fill(target, pieces, window)
    finally:
        if window >= 0:
            os.close(window)
    return whole.getvalue()


def _untouched(size: int) -> BytesIO:
    """So many zeros that take no memory before they are written to, and whose `getvalue` is no copy.

    That both hold is CPython's and Linux's doing; elsewhere it would only be slower.
    """
    return BytesIO(bytes(size))


def _fill(target: memoryview, pieces: list[Piece], window: int) -> None:
    pieces.reverse()
    at = 0
    while pieces:
        at = _copy(memoryview(pieces.pop()), target, at, window)


def _copy(octets: memoryview, target: memoryview, at: int, window: int) -> int:
    """Copy one piece to its place; where the next one goes."""
    for place in range(0, len(octets), STEP):
        step = octets[place : place + STEP]
        into = target[at : at + len(step)]
        if not (window >= 0 and _through_kernel(window, step, into)):
            into[:] = step
        at += len(step)
    return at


def _through_kernel(window: int, step: memoryview, into: memoryview) -> bool:
    """Whether all of it was copied."""
    try:
        return os.pwrite(window, step, 0) == len(step) == os.preadv(window, [into], 0)
    except OSError:  # no memory for the window
        return False
