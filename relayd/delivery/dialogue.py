"""The dialogue with an upstream as it happens, and its transcript: no secret, no content, no control character.

Noting a line keeps a reference and a time; text is made only when somebody asks for the transcript.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable

LIMIT = 32 * 1024
"""Characters of a transcript at most; the middle is left out."""

MASK = "********"
_KEPT_WHOLE = 64 * 1024
_TAIL = 60
_LINE = 512
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")


def printable(octets: bytes) -> str:
    """Octets from a peer as one line of text without control characters."""
    return _CONTROL.sub(" ", octets.decode("utf-8", "replace")).strip()


_Item = tuple[float, str | int, bytes]
"""When; what it is: the code of a reply, ">" (sent), "=" (sent content) or "*" (a note); and its octets."""


class Dialogue:
    """What was said since the last `restart`, bounded: the beginning whole, of the rest the end."""

    __slots__ = ("_clock", "_items", "_left_out", "_octets", "_start", "_tail", "secret")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._items: list[_Item] = []
        self._tail: deque[_Item] = deque(maxlen=_TAIL)
        self._octets = 0
        self._left_out = 0
        self._start = clock()
        self.secret = False
        """While True, what is sent is a login: only its first two words are shown."""

    def restart(self) -> None:
        """Forget what was said and count time from now."""
        self._items = []
        if self._left_out or self._tail:
            self._tail.clear()
        self._octets = self._left_out = 0
        self._start = self._clock()

    def sent(self, octets: bytes) -> None:
        """One or several command lines that we sent."""
        if self.secret:
            words = octets.split()
            octets = b" ".join(words[:2]) + b" " if words and words[0] == b"AUTH" and len(words) > 1 else b""
            octets = octets.rstrip() + (b" " + MASK.encode() if len(words) > 2 or not octets else b"")
        self._keep(">", octets)

    def received(self, code: int, text: bytes) -> None:
        """A reply; the lines of `text` are split by LF."""
        if self.secret and code == 334:
            text = MASK.encode()
        self._keep(code, text)

    def note(self, text: str) -> None:
        """Something that happened besides commands and replies."""
        self._keep("*", text.encode("utf-8", "replace"))

    def content(self, octets: int) -> None:
        """Message content went out."""
        self._keep("=", b"%d" % octets)

    def _keep(self, mark: str | int, octets: bytes) -> None:
        if self._octets < _KEPT_WHOLE:
            self._octets += len(octets) + 32
            self._items.append((self._clock(), mark, octets))
            return
        # an upstream that talks without end costs us no more than this
        if len(self._tail) == _TAIL:
            self._left_out += 1
        self._tail.append((self._clock(), mark, octets[:_LINE]))

    def render(self, secrets: Iterable[str] = ()) -> str:
        """The transcript: one line each, with seconds since the start; at most `LIMIT` characters."""
        lines = [line for item in self._items for line in self._lines(item)]
        tail = [line for item in self._tail for line in self._lines(item)]
        if self._left_out:
            lines.append(f"[… {self._left_out:,} more left out]")
        text = "\n".join(lines + tail)
        for secret in secrets:
            text = text.replace(secret, MASK)
        if len(text) <= LIMIT:
            return text
        half = LIMIT // 2 - 20
        return text[:half].rpartition("\n")[0] + "\n[… left out]\n" + text[-half:].partition("\n")[2]

    def _lines(self, item: _Item) -> list[str]:
        at, mark, octets = item
        since = max(at - self._start, 0.0)
        if mark == "=":
            return [f"{since:8.3f} > [{int(octets):,} octets]"]
        if isinstance(mark, str):
            return [f"{since:8.3f} {mark} {printable(line)}" for line in octets.split(b"\r\n") if line or mark == "*"]
        text = octets.split(b"\n")
        shown = [f"{since:8.3f} < {mark}-{printable(line)}" for line in text[:-1]]
        return [*shown, f"{since:8.3f} < {mark} {printable(text[-1])}".rstrip()]
