"""A tolerant reader of MIME structure (RFC 2045, 2046) on octets, with a bound on everything.

It takes any input, in linear time, and raises nothing. It finds parts; what they say is for the others here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from relayd.core.bounce.charsets import text_of, transferred
from relayd.core.words import decode

MAX_CONTENT = 1 << 19
"""Octets of a mail that are looked at: reports are small, and stand before the mail that they return."""
MAX_TEXT = 65536
"""Octets of one part that are read as text."""
MAX_PARTS = 64
MAX_DEPTH = 8
MAX_FIELDS = 300
MAX_HEADER = 65536
"""Octets of one header."""
MAX_VALUE = 4096
"""Characters of one field that are kept."""

_PARAMETER = re.compile(r';\s*([a-z0-9*_-]{1,40})\s*=\s*(?:"([^"]{0,300})"?|([^\s;"]{1,300}))', re.IGNORECASE)
_TYPE = re.compile(r"\s*([a-z0-9.+_-]{1,60})\s*/\s*([a-z0-9.+_-]{1,60})", re.IGNORECASE)
_GUESSED_BOUNDARY = re.compile(
    rb"^--([^\s-][^\n]{2,200}|-{2,}[^\s-][^\n]{2,200})[ \t]*\n(?=[A-Za-z-]{1,60}:)", re.MULTILINE
)
_FIELD = re.compile(r"^([!-9;-~]{1,80})[ \t]*:(.*)", re.MULTILINE)

Fields = list[tuple[str, str]]


@dataclass(slots=True)
class Part:
    """One part of a mail, or the mail itself."""

    octets: bytes = field(repr=False)
    """Of the whole mail, line ends made LF."""
    fields: Fields
    start: int
    """Of the body, in `octets`."""
    end: int
    depth: int
    type: str = "text/plain"
    parameters: dict[str, str] = field(default_factory=dict)
    parts: list[Part] = field(default_factory=list)
    default: bool = False
    """It does not say its type itself."""
    _values: dict[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._values = dict(reversed(self.fields))

    def value(self, name: str) -> str:
        """The first field of that name (lower case), as it came; "" where there is none."""
        return self._values.get(name, "")

    def text_value(self, name: str) -> str:
        """Like `value`, encoded words decoded."""
        value = self.value(name)
        return decode(value.encode("utf-8", "surrogateescape"), 500) if value else ""

    def body(self, limit: int = MAX_TEXT) -> bytes:
        """At most `limit` octets of the body, as they came."""
        return self.octets[self.start : min(self.end, self.start + limit)]

    def text(self, limit: int = MAX_TEXT) -> str:
        """The body as text, line ends LF."""
        encoding = self.value("content-transfer-encoding").strip().lower()[:40]
        octets = transferred(self.body(limit), encoding)
        return text_of(octets, self.parameters.get("charset", "")).replace("\r\n", "\n").replace("\0", "")

    def walk(self) -> Iterator[Part]:
        """This part and all within it, but not within returned mails, in their order."""
        yield self
        for part in self.parts:
            yield from part.walk()


def read(content: bytes) -> Part:
    """The structure of a mail. Mails within it (message/rfc822) are left closed: `opened` reads them."""
    octets = content[:MAX_CONTENT]
    if b"\r" in octets:
        octets = octets.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return _read(octets, 0, len(octets), 0, [MAX_PARTS])


def opened(part: Part) -> Part:
    """The mail that is the body of a message/rfc822 part."""
    encoding = part.value("content-transfer-encoding").strip().lower()[:40]
    if encoding in ("base64", "quoted-printable"):  # not allowed (RFC 2046 5.2.1), and done all the same
        octets = transferred(part.body(MAX_CONTENT), encoding).replace(b"\r\n", b"\n")
        return _read(octets, 0, len(octets), part.depth + 1, [MAX_PARTS])
    start = part.start
    while part.octets.startswith(b"\n", start, part.end):
        start += 1
    return _read(part.octets, start, part.end, part.depth + 1, [MAX_PARTS])


def _read(octets: bytes, start: int, end: int, depth: int, left: list[int]) -> Part:
    fields, body = header(octets, start, end)
    part = Part(octets, fields, body, end, depth)
    value = part.value("content-type")
    found = _TYPE.match(value[:200])
    if found is None:
        part.default = True
    else:
        part.type = f"{found[1]}/{found[2]}".lower()
        part.parameters = {
            name.lower(): quoted or bare for name, quoted, bare in _PARAMETER.findall(value[found.end() :])
        }
    left[0] -= 1
    if part.type.startswith("multipart/") and depth < MAX_DEPTH:
        boundary = part.parameters.get("boundary", "").encode("utf-8", "surrogateescape")
        places = _places(octets, body, end, boundary) if boundary else []
        if not places:
            guess = _GUESSED_BOUNDARY.search(octets, body, min(end, body + MAX_TEXT))
            places = _places(octets, body, end, guess[1].rstrip()) if guess else []
        for number, (_, after) in enumerate(places):
            if left[0] <= 0:
                break
            stop = places[number + 1][0] if number + 1 < len(places) else end
            if after < stop:
                part.parts.append(_read(octets, after, stop, depth + 1, left))
        if not part.parts:
            part.type = "text/plain"
    return part


def _places(octets: bytes, start: int, end: int, boundary: bytes) -> list[tuple[int, int]]:
    """(end of what is before, start of what is behind) for each delimiter line; the last one ends the last part."""
    places: list[tuple[int, int]] = []
    delimiter = b"--" + boundary
    position = start
    for _ in range(MAX_PARTS * 16):  # lines that only begin like a delimiter are counted too
        if len(places) > MAX_PARTS:
            break
        found = octets.find(delimiter, position, end)
        if found < 0:
            break
        line_end = octets.find(b"\n", found, end)
        line_end = end if line_end < 0 else line_end
        position = line_end
        if found > start and octets[found - 1 : found] != b"\n":
            continue
        rest = octets[found + len(delimiter) : line_end].strip()
        if rest not in (b"", b"--"):
            continue
        places.append((max(start, found - 1), min(line_end + 1, end)))
        if rest == b"--":
            places[-1] = (places[-1][0], end)
            break
    return places


def header(octets: bytes, start: int, end: int) -> tuple[Fields, int]:
    """The fields of the header that starts there, and where its body starts."""
    if octets.startswith(b"\n", start, end):
        return [], start + 1
    blank = octets.find(b"\n\n", start, min(end, start + MAX_HEADER))
    stop = blank + 1 if blank >= 0 else min(end, start + MAX_HEADER)
    text = octets[start:stop].decode("utf-8", "surrogateescape")
    if "\n " in text or "\n\t" in text:
        text = text.replace("\n ", " ").replace("\n\t", "\t")
    if not _begins(text):
        return [], start  # no header at all: everything is body
    fields = [(name.lower(), value[:MAX_VALUE].strip()) for name, value in _FIELD.findall(text)[:MAX_FIELDS]]
    return fields, min(end, blank + 2 if blank >= 0 else stop)


def _begins(text: str) -> bool:
    """Whether nothing but what mailboxes put there (blank lines, "From ") stands before the first field."""
    if _FIELD.match(text):
        return True
    for line in text.split("\n"):
        if _FIELD.match(line):
            return True
        if line.strip() and not line.startswith(("From ", ">From ")):
            return False
    return True
