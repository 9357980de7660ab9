"""Blocks as CSV: what `relayd block export` writes, and what suppression lists of providers look like.

Which blocks come of it is for block.py and the store to say.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from relayd.cli.out import iso
from relayd.core.blocking import MANUAL, Block, read_scope, read_target
from relayd.core.classes import CLASSES
from relayd.core.ids import MessageId, format_id, parse_id
from relayd.core.units import Millis
from relayd.spool.blocklist import NewBlock

COLUMNS = (
    "address", "scope", "class", "reason", "by", "since", "until", "message", "stopped", "last_stopped",
    "ended", "ended_by",
)  # fmt: skip
LONGEST = 300
"""Characters of a reason."""

_NAMES = {
    "address": ("address", "email", "emailaddress", "email_address", "e_mail", "mail", "recipient", "to",
                "recipient_email", "bounce_email", "subscriber", "メールアドレス", "宛先"),
    "class": ("class", "type", "bounce_type", "category", "event", "suppression_type"),
    "reason": ("reason", "description", "message_text", "error", "details", "diagnostic", "bounce_reason",
               "smtp_response", "response", "note", "理由"),
    "since": ("since", "created", "created_at", "createdat", "date", "timestamp", "time", "lastupdatetime",
              "last_update_time", "blocked_at", "updated_at", "登録日時"),
    "until": ("until", "expires", "expires_at"),
    "by": ("by", "origin", "source"),
    "scope": ("scope",),
    "message": ("message",),
    "ended": ("ended",),
}  # fmt: skip
_WORDS = (
    (re.compile(r"complain|spam.?report|abuse|fbl|苦情|迷惑"), "complaint"),
    (re.compile(r"full|quota"), "mailbox-full"),
    (re.compile(r"hard|bounce|invalid|unknown|not.?exist|no.?such|存在しない|エラー"), "user-unknown"),
)
"""What providers say, and the class that it means."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """What holds where a row does not say."""

    scope: str
    reason: str
    by: str
    since: Millis
    until: Millis | None


def write(blocks: Iterable[Block]) -> Iterator[str]:
    """Lines of CSV (RFC 4180), the header row first."""
    yield _line(COLUMNS)
    for block in blocks:
        cause = "" if block.message is None else format_id(block.message)
        times = [iso(block.since), iso(block.until), cause, str(block.stopped), iso(block.last_stopped)]
        ending = [iso(block.ended), block.ended_by]
        yield _line([block.target, block.scope, block.cls, block.reason, block.by, *times, *ending])


def _line(values: Sequence[str | None]) -> str:
    out = io.StringIO()
    csv.writer(out).writerow([_tame(value or "") for value in values])
    return out.getvalue()


def _tame(value: str) -> str:
    """Spreadsheets run what begins like a formula: the other side's words must not."""
    return f"'{value}" if value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def read(octets: bytes, defaults: Defaults) -> tuple[list[NewBlock], list[str]]:
    """The blocks of a CSV file, and what is wrong with rows that make none. Rows of lifted blocks are passed over."""
    text = _text(octets)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=False)
    columns: Mapping[str, int] | None = None
    found: list[NewBlock] = []
    faults: list[str] = []
    try:
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue
            if columns is None:
                columns = _header(row)
                if columns is not None:
                    continue
                columns = _bare(row)
            try:
                block = _block(_cells(row, columns), defaults)
            except ValueError as error:
                faults.append(f"line {rows.line_num}: {error}")
                continue
            if block is not None:
                found.append(block)
    except csv.Error as error:
        faults.append(f"line {rows.line_num}: {error}")
    return found, faults


def _text(octets: bytes) -> str:
    """UTF-8 with or without its mark, UTF-16 with one, or what Japanese spreadsheets write."""
    if octets[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return octets.decode("utf-16", "replace")
    try:
        return octets.decode("utf-8-sig")
    except UnicodeDecodeError:
        return octets.decode("cp932", "replace")


def _delimiter(text: str) -> str:
    first = text.lstrip().partition("\n")[0]
    return max(",;\t", key=first.count)


def _header(row: Sequence[str]) -> dict[str, int] | None:
    """Which column is where; None where the row is no header."""
    if any("@" in cell for cell in row):
        return None
    names = [re.sub(r"[\s_-]+", "_", cell.strip().lower()) for cell in row]
    columns = {}
    for column, known in _NAMES.items():
        place = next((names.index(name) for name in known if name in names), None)
        if place is not None:
            columns[column] = place
    return columns if "address" in columns else None


def _bare(row: Sequence[str]) -> dict[str, int]:
    return {"address": next((place for place, cell in enumerate(row) if "@" in cell), 0)}


def _cells(row: Sequence[str], columns: Mapping[str, int]) -> dict[str, str]:
    cells = {name: row[place].strip() for name, place in columns.items() if place < len(row)}
    return {name: cell[1:] if cell[:2] in ("'=", "'+", "'-", "'@") else cell for name, cell in cells.items()}


def _block(cells: Mapping[str, str], defaults: Defaults) -> NewBlock | None:
    if cells.get("ended"):
        return None
    until = _moment(cells["until"]) if cells.get("until") else defaults.until
    if until is not None and until <= defaults.since:
        return None
    return NewBlock(
        read_target(cells.get("address", "")),
        read_scope(cells["scope"]) if cells.get("scope") else defaults.scope,
        _class(cells),
        (" ".join(cells.get("reason", "").split()) or defaults.reason)[:LONGEST],
        cells.get("by") or defaults.by,
        min(_moment(cells["since"]), defaults.since) if cells.get("since") else defaults.since,
        until,
        _message(cells.get("message", "")),
    )


def _class(cells: Mapping[str, str]) -> str:
    said = cells.get("class", "").lower()
    if said in CLASSES or said == MANUAL:
        return said
    words = f"{said} {cells.get('reason', '').lower()}"
    return next((cls for pattern, cls in _WORDS if pattern.search(words)), MANUAL)


def _message(text: str) -> MessageId | None:
    try:
        return parse_id(text)
    except ValueError:
        return None  # another program's word


def _moment(text: str) -> Millis:
    """RFC 3339, the like without a time zone (UTC), or seconds since the epoch. Raises ValueError."""
    if re.fullmatch(r"[0-9]{9,11}(\.[0-9]+)?", text):
        return round(float(text) * 1000)
    if re.fullmatch(r"[0-9]{12,14}", text):
        return int(text)
    try:
        moment = datetime.fromisoformat(text.replace("/", "-").removesuffix(" UTC"))
    except ValueError:
        raise ValueError(f"{text!r} is not a time: write 2026-11-22T01:02:03Z") from None
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
