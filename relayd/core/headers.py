"""Header surgery on octets (RFC 5322 2.2): find fields, read the few facts relayd needs, splice headers in and out.

Never re-serialises: what is not cut out stays as it came. Takes any input whatever, and raises nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache

from relayd.core.author import author_domains
from relayd.core.mail import Origin
from relayd.core.quick import quick
from relayd.core.units import Millis
from relayd.core.words import decode

SUBJECT_LIMIT = 200
"""Characters."""
VALUE_LIMIT = 500
"""Characters of a campaign, a label or a Message-ID that are kept."""
FOLD_AT = 78
"""Columns (RFC 5322 2.1.1)."""

MAX_FROMS = 20
"""From fields that are read; RFC 5322 3.6 allows one."""

SHORT = 16 * 1024
"""Octets of a header that are read within 30 ms whatever is in them: the worst is a From of nothing but addresses."""
_QUICK_LIMIT = 65536
"""Octets of a header that the quick way takes; longer ones are walked without a second copy."""
_BLANKS = frozenset(b" \t")
_BLANK_OCTETS = frozenset((b" ", b"\t"))
_FIELD_START = re.compile(rb"\r\n([!-9;-~]+):")
_IRREGULAR = re.compile(rb"\r(?!\n(?:[ \t]|[!-9;-~]++:))")
_NAME_OCTETS = bytes(octet for octet in range(33, 127) if octet != 58)
_MSG_ID = re.compile(rb"<[!-;=?-~]+>")
_NOT_HOST = re.compile(r"[^A-Za-z0-9._:\[\]-]")
_NOT_ADDRESS = re.compile(r"[\x00-\x20\x7f-\xa0<>\u2028\u2029\ud800-\udfff]")
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_HOST_LIMIT = 255


@quick
@dataclass(frozen=True, slots=True)
class HeaderBlock:
    """Where the fields of a message are, in octets from its start."""

    fields: list[tuple[bytes, int, int]]
    """(name in lower case, start, end): the end is behind the field's last CRLF."""
    end: int
    """Behind the last line of the header."""
    body: int
    """Behind the empty line; equal to `end` where there is none."""


@quick
@dataclass(frozen=True, slots=True)
class HeaderFacts:
    """What relayd wants to know of a header."""

    from_domain: str = ""
    """Domain of the first From mailbox: A-labels, lower case; "" when there is none."""
    message_id: str = ""
    subject: str = ""
    campaign: str | None = None
    received_count: int = 0
    has_date: bool = False
    has_message_id: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    """Lower-case header name → value of its first field, for the names asked for."""
    co_authors: tuple[str, ...] = ()
    """Domains of all further From mailboxes, and of further From fields ("" for such a field without any)."""
    plain: bool = field(default=False, compare=False)
    """An ordinary header, without the campaign's field and those of `labels`: where no others are cut out, what is put
    in front of the message is all that `assembly` would do."""


def is_short(content: bytes) -> bool:
    """The header ends early, or all is short: it may be read at once, on an event loop. Others belong in a thread."""
    return len(content) <= SHORT or content.find(b"\r\n\r\n", 0, SHORT) >= 0


def scan(content: bytes) -> HeaderBlock:
    """Find all header fields.

    Only CRLF ends a line. The header ends with the first empty line, or before the first line that can be no part
    of a header (so do Postfix and most readers); mbox's "From " lines inside it are passed over.
    """
    lowered = _quick(content)
    if lowered is None:
        return _walk(content)
    fields = []
    name, start = b"", 0
    for match in _FIELD_START.finditer(lowered):
        place = match.start()
        if name:
            fields.append((name, start, place))
        name, start = match[1], place
    end = len(lowered) - 2
    fields.append((name, start, end))
    return HeaderBlock(fields, end, end + 2)


def _quick(content: bytes) -> bytes | None:
    """CRLF and the header in lower case, when it is an ordinary one, to be searched at the speed of C; else None.

    A field at offset n of the content then starts with CRLF at offset n of the result, which itself ends with CRLF.
    """
    end = content.find(b"\r\n\r\n", 0, _QUICK_LIMIT)
    if end <= 0 or content[0] in _BLANKS:
        return None
    header = b"\r\n" + content[: end + 2]
    if _IRREGULAR.search(header, 0, end + 2):
        return None
    return header.lower()


def _walk(content: bytes) -> HeaderBlock:
    """`scan`, line by line, for any input."""
    fields: list[tuple[bytes, int, int]] = []
    size = len(content)
    position = start = 0
    name = b""
    body = None
    while position < size:
        line_end = content.find(b"\r\n", position)
        after = size if line_end < 0 else line_end + 2
        if line_end == position:
            body = after
            break
        if content[position] not in _BLANKS:
            found = _field_name(content, position, after)
            if not found and not content.startswith((b"From ", b">From "), position):
                break
            if name:
                fields.append((name, start, position))
            name, start = found, position
        elif position == 0:  # continues nothing: all of it is body
            break
        position = after
    if name:
        fields.append((name, start, position))
    return HeaderBlock(fields, position, position if body is None else body)


def _field_name(content: bytes, start: int, end: int) -> bytes:
    """The lower-case name of the field in the line, b"" where the line is no field."""
    colon = content.find(b":", start, end)
    # white space before the colon is obsolete, but a field all the same (RFC 5322 4.5)
    name = content[start:colon].rstrip(b" \t") if colon > start else b""
    return b"" if name.translate(None, _NAME_OCTETS) else name.lower()


def facts(content: bytes, campaign_header: str = "", labels: Collection[str] = ()) -> HeaderFacts:
    """Read a message's header: `labels` are the names whose values routes match on."""
    lowered = _quick(content)
    if lowered is None or lowered.count(b"\r\nfrom:") > 1:
        return _facts(content, _walk(content), campaign_header, labels)

    def value(name: bytes) -> bytes | None:
        start = lowered.find(b"\r\n%b:" % name)
        if start < 0:
            return None
        end = start = start + len(name) + 1
        while True:
            end = lowered.find(b"\r\n", end + 2)
            if lowered[end + 2 : end + 3] not in _BLANK_OCTETS:
                return content[start:end]

    return _read(value, lowered.count(b"\r\nreceived:"), campaign_header, labels, ordinary=True)


def _facts(content: bytes, block: HeaderBlock, campaign_header: str, labels: Collection[str]) -> HeaderFacts:
    """`facts` of a header that was walked."""
    first: dict[bytes, tuple[int, int]] = {}
    for name, start, end in block.fields:
        if name not in first:
            first[name] = (start, end)

    def value(name: bytes) -> bytes | None:
        place = first.get(name)
        return None if place is None else content[place[0] : place[1]].partition(b":")[2]

    received_count = sum(name == b"received" for name, _, _ in block.fields)
    found = _read(value, received_count, campaign_header, labels)
    froms = [content[start:end].partition(b":")[2] for name, start, end in block.fields if name == b"from"]
    if len(froms) < 2:
        return found
    others = dict.fromkeys(domain for each in froms[1 : MAX_FROMS + 1] for domain in author_domains(each) or ("",))
    if len(froms) > MAX_FROMS:
        others[""] = None
    return replace(found, co_authors=found.co_authors + tuple(others))


def _read(
    value: Callable[[bytes], bytes | None],
    received_count: int,
    campaign_header: str,
    labels: Collection[str],
    *,
    ordinary: bool = False,
) -> HeaderFacts:
    author, subject, message_id = value(b"from"), value(b"subject"), value(b"message-id")
    authors = () if author is None else author_domains(author)
    campaign = value(campaign_header.lower().encode()) if campaign_header else None
    found = {}
    for label in labels:
        octets = value(label.lower().encode())
        if octets is not None:
            found[label.lower()] = decode(octets, VALUE_LIMIT)
    return HeaderFacts(
        authors[0] if authors else "",
        "" if message_id is None else _message_id(message_id),
        "" if subject is None else decode(subject, SUBJECT_LIMIT),
        None if campaign is None else decode(campaign, VALUE_LIMIT) or None,
        received_count,
        value(b"date") is not None,
        message_id is not None,
        found,
        authors[1:],
        ordinary and campaign is None and not found,
    )


def _message_id(value: bytes) -> str:
    match = _MSG_ID.search(value, 0, 4096)
    return match[0][:VALUE_LIMIT].decode("ascii") if match else decode(value, VALUE_LIMIT)


def assembly(content: bytes, *, prepend: bytes = b"", drop: Collection[str] = ()) -> list[bytes | memoryview]:
    """The message with whole fields put in front and all fields named in `drop` cut out; every other octet as it was.

    In pieces: the body of a big message is not copied here. A message without any header gets the empty line that keeps
    its first line from being read as one.
    """
    names = {name.lower().encode() for name in drop}
    lowered = _quick(content)
    if lowered is not None and not any(b"\r\n%b:" % name in lowered for name in names):
        return [prepend, content]
    block = scan(content)
    pieces: list[bytes | memoryview] = [prepend]
    position = 0
    for name, start, end in block.fields:
        if name in names:
            pieces.append(content[position:start])
            position = end
    if prepend and block.body == block.end < len(content) and all(name in names for name, _, _ in block.fields):
        pieces += [content[position : block.end], b"\r\n"]
        position = block.end
    pieces.append(memoryview(content)[position:])
    return pieces


def received(origin: Origin, *, hostname: str, id_text: str, at: Millis, recipient: str | None = None) -> bytes:
    """Our trace field (RFC 5321 4.4), folded. `recipient` only where there is one alone: others stay blind."""
    begun, line, by = _trace_of(
        (origin.helo[:_HOST_LIMIT], origin.peer[:_HOST_LIMIT], hostname, origin.listener, origin.protocol, origin.tls)
    )
    parts = [f"{by} id {id_text if id_text.isalnum() else _NOT_HOST.sub('?', id_text)}"]
    if recipient and not _NOT_ADDRESS.search(recipient) and (recipient.isascii() or origin.protocol.startswith("UTF8")):
        parts.append(f"for <{recipient}>")
    parts[-1] += ";"
    parts.append(format_date(at))
    return f"{begun}{_fold(line, parts)}\r\n".encode()


@lru_cache(maxsize=256)
def _trace_of(given: tuple[str | None, ...]) -> tuple[str, str, str]:
    """What stays the same in the trace fields of a client: whole lines, the line that goes on, and the protocol."""
    host, peer, hostname, listener, protocol, tls = (_NOT_HOST.sub("?", word or "") for word in given)
    host, peer = host or "unknown", peer or "unknown"
    by = f"with {protocol} ({tls})" if tls else f"with {protocol}"
    whom = f"from {host} ([IPv6:{peer}])" if ":" in peer else f"from {host} ([{peer}])"
    lines, line_end, last = _fold("Received:", (whom, f"by {hostname} (relayd {listener})")).rpartition("\r\n")
    return lines + line_end, last, by


def _fold(line: str, parts: Iterable[str]) -> str:
    """The parts behind what the line has already, a new line wherever the next would pass FOLD_AT columns."""
    folded = ""
    for part in parts:
        if len(line) + 1 + len(part) <= FOLD_AT:
            line = f"{line} {part}"
        else:
            folded += f"{line}\r\n"
            line = f"\t{part}"
    return folded + line


def format_date(at: Millis) -> str:
    """A moment as RFC 5322 3.3 writes it, in UTC."""
    return _format_second(at // 1000)


@lru_cache(maxsize=4)
def _format_second(second: int) -> str:
    # hundreds of mails share theirs
    moment = datetime.fromtimestamp(second, UTC)
    return (
        f"{_DAYS[moment.weekday()]}, {moment.day} {_MONTHS[moment.month - 1]} {moment.year}"
        f" {moment.hour:02}:{moment.minute:02}:{moment.second:02} +0000"
    )


def date_header(at: Millis) -> bytes:
    """A Date field, for messages that came without."""
    return f"Date: {format_date(at)}\r\n".encode()


def message_id_header(id_text: str, hostname: str) -> bytes:
    """A Message-ID field, for messages that came without."""
    return f"Message-ID: <{_NOT_HOST.sub('?', id_text)}@{_NOT_HOST.sub('?', hostname)}>\r\n".encode()
