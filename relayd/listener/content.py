"""The octets of one message as they arrive: where they end, dots removed, newlines and lengths checked.

No I/O: connections feed it what they read and ask what became of it. Every check is made piece by piece, so that a
message of 50 MiB never holds the event loop for long.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from relayd.core.quick import quick

END = b"\r\n.\r\n"
"""What ends DATA (RFC 5321 4.1.1.4), and nothing else does: LF.LF and its kin are how mail is smuggled
(CVE-2023-51764, -51765, -51766)."""

_HIDDEN_END = re.compile(rb"\0++\.\0*\r\n")
_LINE_OF_IT = re.compile(b"\n" + _HIDDEN_END.pattern)

# As numbers: asked whether it has an octet as bytes, Python takes that for a number first, and fails at it.
_NUL, _LF, _CR = 0, 0x0A, 0x0D
_SMALL = 4096
_BLOCK = 65536


class Fault(Enum):
    """Why a message cannot be taken. The first one found stays."""

    SIZE = auto()
    MEMORY = auto()
    BARE_NEWLINE = auto()
    LINE = auto()


@quick
@dataclass(frozen=True, slots=True)
class Rules:
    """What content must keep to."""

    size: int
    """Octets at most."""
    line: int
    """Octets of a line, CRLF not counted, above which it counts as long."""
    line_max: int
    """Octets of the longest line that is taken."""
    normalise: bool
    """Make bare CR and LF to CRLF rather than refuse them."""


class Content:
    """Collects one message. After a fault it only counts: what was kept is dropped and its memory given back.

    NUL and other control characters are taken as they come: RFC 5322 has them as obsolete syntax, real mail has
    them, and a relay changes no octet without need. The one exception is `hides_end`.
    """

    __slots__ = (
        "_chunks",
        "_pending",
        "_release",
        "_reserve",
        "_rules",
        "_tail",
        "fault",
        "has_nul",
        "long_lines",
        "received",
        "size",
    )

    def __init__(self, rules: Rules, reserve: Callable[[int, int], bool], release: Callable[[int], None]) -> None:
        self._rules = rules
        self._reserve = reserve
        self._release = release
        self._chunks: list[bytes] = []
        self._pending = bytearray()
        self._tail = 0  # octets of the line that is not finished yet
        self.size = 0
        """Octets kept, and reserved in the memory budget."""
        self.received = 0
        """Octets seen, kept or not."""
        self.long_lines = 0
        self.has_nul = False
        self.fault: Fault | None = None

    def add(self, piece: bytes) -> None:
        """Take the next octets. A CRLF must not be split over two pieces."""
        self.received += len(piece)
        if self.fault is None:
            self.fault = self._take(piece)
            if self.fault is not None:
                self.drop()

    def _take(self, piece: bytes) -> Fault | None:
        # What is left beside the pairs tells in a tenth of the time that counting both octets would take: replaced by
        # as many octets, they need not be cut out.
        unpaired = piece.replace(b"\r\n", b"  ")
        if _LF in unpaired or _CR in unpaired:
            if not self._rules.normalise:
                return Fault.BARE_NEWLINE
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")
        if self.size + len(piece) > self._rules.size:
            return Fault.SIZE
        if not self._reserve(len(piece), self.size):
            return Fault.MEMORY
        self.size += len(piece)
        if not self._measure(piece):
            return Fault.LINE
        if _NUL in piece:
            self.has_nul = True
        self._keep(piece)
        return None

    def _keep(self, piece: bytes) -> None:
        # Small pieces are joined as they come: as separate objects, packets of one octet would take forty times
        # the memory that was reserved for them.
        pending = self._pending
        if len(piece) >= _SMALL and not pending:
            self._chunks.append(piece)
            return
        pending += piece
        if len(pending) >= _BLOCK:
            self._chunks.append(bytes(pending))
            pending.clear()

    def _measure(self, piece: bytes) -> bool:
        """Count long lines; False when one is longer than may be.

        Looks at the last line end within a standard line's length only, so short lines cost next to nothing.
        """
        position, tail, end = 0, self._tail, len(piece)
        standard = self._rules.line + 2
        while position < end:
            room = standard - tail
            newline = piece.rfind(b"\n", position, position + room) if room > 0 else -1
            if newline >= 0:
                position, tail = newline + 1, 0
                continue
            if end - position <= room:
                tail += end - position
                break
            newline = piece.find(b"\n", position)
            stop = newline + 1 if newline >= 0 else end
            tail += stop - position
            if tail > self._rules.line_max + 2:
                return False
            if newline < 0:
                break
            self.long_lines += 1
            position, tail = stop, 0
        self._tail = tail
        return True

    def drop(self) -> None:
        """Forget what was kept and give its memory back."""
        self._chunks.clear()
        self._pending.clear()
        self._release(self.size)
        self.size = 0

    @property
    def ends_line(self) -> bool:
        """Whether the last line is finished (true as well for no octets at all)."""
        return self._tail == 0

    def pieces(self) -> list[bytes]:
        """All of it, in order; kept no longer here. Its memory stays reserved: `size` octets."""
        chunks, self._chunks = self._chunks, []
        if self._pending:
            chunks.append(bytes(self._pending))
            self._pending.clear()
        return chunks


def hides_end(octets: bytes) -> bool:
    """A line of NULs and one dot: whoever drops NULs on the way takes it for the end of the message (CVE-2023-51765).

    It must go no further, for no dot can be doubled there: to all others the line means what it says. To be called in a
    thread where they are many.
    """
    if _HIDDEN_END.match(octets):
        return True
    # Some lines after the other: a search through all of 50 MiB would keep the interpreter lock for more than a second.
    start, size = 0, len(octets)
    while start < size:
        end = octets.find(b"\n", start + _BLOCK) + 1 or size
        if _LINE_OF_IT.search(octets, start, end):
            return True
        start = end - 1 if end < size else size
    return False


class DotReader:
    """Cuts the content of DATA out of a stream: finds its end and removes the dot that was put before a dot.

    A dot is removed after CRLF only: no other octets end a line.
    """

    __slots__ = ("_carry", "_content", "_first")

    def __init__(self, content: Content) -> None:
        self._content = content
        # As though the line end of DATA itself came first: a dot may be the very first octet.
        self._carry = b"\r\n"
        self._first = True

    def feed(self, data: bytes) -> int:
        """Take octets. Returns how many of them belong to this message once its end is found, else -1 (all do)."""
        if not data:
            return -1
        carry = self._carry
        block = carry + data if carry else data
        # one look for both: without a line that begins with a dot there is no end either
        dot = block.find(b"\r\n.")
        if dot >= 0:
            end = block.find(END, dot)
            if end >= 0:
                self._emit(block[: end + 2], dotted=end > dot)
                return end + len(END) - len(carry)
        cut = len(block) - _begun(block)
        self._carry = block[cut:]
        if cut:
            self._emit(block[:cut] if self._carry else block, dotted=dot >= 0)
        return -1

    def _emit(self, piece: bytes, *, dotted: bool) -> None:
        if dotted:
            piece = piece.replace(b"\r\n.", b"\r\n")
        if self._first:
            self._first = False
            piece = piece[2:]
        if piece:
            self._content.add(piece)


class ChunkReader:
    """Takes the chunks of BDAT (RFC 3030): octets by count, with no dots to remove."""

    __slots__ = ("_carry", "_content", "_left")

    def __init__(self, content: Content) -> None:
        self._content = content
        self._carry = b""
        self._left = 0

    def expect(self, size: int) -> None:
        """The next chunk has so many octets."""
        self._left = size

    def feed(self, data: bytes) -> int:
        """Take octets. Returns how many of them belong to the chunk once it is whole, else -1 (all do)."""
        left = self._left
        if len(data) >= left:
            self._left = 0
            self._add(data[:left])
            return left
        self._left = left - len(data)
        self._add(data)
        return -1

    def _add(self, piece: bytes) -> None:
        if self._carry:
            piece = self._carry + piece
            self._carry = b""
        if piece.endswith(b"\r"):  # its LF may be in the next piece
            self._carry = b"\r"
            piece = piece[:-1]
        if piece:
            self._content.add(piece)

    def finish(self) -> None:
        """No more chunks come: end the last line, since what is relayed by DATA must end in CRLF."""
        if self._carry:
            self._carry = b""
            self._content.add(b"\r")
        if not self._content.ends_line:
            self._content.add(b"\r\n")


def _begun(block: bytes) -> int:
    """Length of the longest beginning of END that the block ends with."""
    if block[-1:] not in b"\r\n.":
        return 0
    for length in (4, 3, 2, 1):
        if block.endswith(END[:length]):
            return length
    return 0
