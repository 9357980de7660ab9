"""Content as DATA wants it: a dot more before each line that begins with one (RFC 5321 4.5.2), whole or in pieces.

Takes CRLF line ends for granted, as relayd keeps mail; the final dot is protocol.py's.
"""

from __future__ import annotations

CHUNK = 65536
"""Content goes out in pieces of this size, so that a big message neither blocks the loop nor fills our memory twice."""


def stuffed(octets: bytes) -> bytes:
    """The whole content."""
    if b"\n." in octets:
        octets = octets.replace(b"\n.", b"\n..")
    return b"." + octets if octets.startswith(b".") else octets


def piece(octets: bytes, view: memoryview, start: int) -> bytes | memoryview:
    """One chunk; a dot at its very start counts when the chunk before ended a line. `view` is that of `octets`."""
    end = start + CHUNK
    extra = octets[start : start + 1] == b"." and (start == 0 or octets[start - 1] == 0x0A)
    if not extra and octets.find(b"\n.", start, end) < 0:
        return view[start:end]
    return (b"." if extra else b"") + octets[start:end].replace(b"\n.", b"\n..")
