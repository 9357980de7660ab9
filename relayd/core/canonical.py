"""DKIM's relaxed canonicalisation of header fields and bodies, on octets (RFC 6376 3.4.2, 3.4.4).

Expects CRLF line ends only, as relayd keeps mail. What is signed, and with which key, is delivery/dkim.py's.
"""

from __future__ import annotations

from collections.abc import Iterator

PIECE = 1 << 18
"""Octets of a body that are worked on at once: a big one is never held a second time, nor the interpreter for long."""


def _single_spaces(text: bytes) -> bytes:
    """Each run of white space as one space."""
    # A regular expression takes twenty times as long where there is much of it, as in the source of a page, and keeps
    # the interpreter lock for that time. Each round halves the runs.
    if b"\t" in text:
        text = text.replace(b"\t", b" ")
    while b"  " in text:
        text = text.replace(b"  ", b" ")
    return text


def relaxed_field(field: bytes) -> bytes:
    """One whole header field, CRLF included, in relaxed form, CRLF included."""
    name, _, value = field.partition(b":")
    value = value.replace(b"\r\n", b"")
    if b"\t" in value or b"  " in value:
        value = _single_spaces(value)
    return name.rstrip(b" \t").lower() + b":" + value.strip(b" \t") + b"\r\n"


def relaxed_pieces(content: bytes, start: int = 0, piece: int = PIECE) -> Iterator[bytes]:
    """The relaxed form of the body that starts at `start`, in pieces to be hashed one after the other.

    Nothing for an empty body; any other ends with one CRLF.
    """
    blank = 0
    for lines in _whole_lines(content, start, piece):
        text = _single_spaces(lines)
        if b" \r\n" in text:
            text = text.replace(b" \r\n", b"\r\n")
        end = _end_of_text(text)
        if end:
            # empty lines count only once there is text behind them
            yield b"\r\n" * blank + text[:end] if blank else text[:end]
            blank = 0
        blank += (len(text) - end) // 2


def _whole_lines(content: bytes, start: int, piece: int) -> Iterator[bytes]:
    """The content from `start` cut at line ends into pieces of about `piece` octets; a missing last CRLF is added."""
    size = len(content)
    while start < size:
        if size - start <= piece:
            end = size
        else:
            end = content.rfind(b"\r\n", start, start + piece) + 2
            if end < 2:
                end = content.find(b"\r\n", start + piece - 1) + 2
            if end < 2:
                end = size
        lines = content[start:end]
        yield lines if lines.endswith(b"\r\n") else lines + b"\r\n"
        start = end


def _end_of_text(lines: bytes) -> int:
    """Offset behind the CRLF of the last line that is not empty; 0 when all are."""
    end = len(lines.rstrip(b"\r\n"))
    if lines.count(b"\r\n", end) * 2 != len(lines) - end:
        # a stray CR or LF among them is text; relayd keeps none, but the answer shall be right all the same
        end = len(lines)
        while lines.endswith(b"\r\n", 0, end):
            end -= 2
    return min(end + 2, len(lines)) if end else 0
