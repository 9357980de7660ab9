"""What commands print: tables and lines for people, JSON for programs, errors as one clear line.

Everything that a peer may have chosen (addresses, subjects, replies) is cleaned here of what could steer a terminal.
"""

# ruff: noqa: PLC0415 - rich is imported where it is used: `relayd --help` stays quick
from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import typer

from relayd.cli.common import now_ms
from relayd.core.units import Millis

if TYPE_CHECKING:
    from rich.console import Console

# C0, DEL, C1 (one octet escape sequences of some terminals), line separators, marks that turn text around, lone
# surrogates, and the byte order mark
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufff9-\ufffb]")
_LEAST = 8
"""Width that a folding column should have."""
_STATE_STYLE = {
    "delivered": "green",
    "queued": "cyan",
    "deferred": "yellow",
    "uncertain": "magenta",
    "held": "blue",
    "bounced": "red",
    "expired": "red",
    "suppressed": "dim",
    "deleted": "dim",
}


def clean(text: str) -> str:
    r"""One line that is safe on a terminal: control and text-turning characters shown as \x1b or \u202e."""
    return _UNSAFE.sub(lambda found: _escape(found[0], short=True), text)


def clean_lines(text: str) -> str:
    """Like `clean`, but line ends stay line ends and tabs become spaces."""
    return "\n".join(clean(line.expandtabs(8)) for line in text.replace("\r\n", "\n").split("\n"))


def _escape(character: str, *, short: bool) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if short and number < 0x100 else f"\\u{number:04x}"


def to_json(value: Any) -> str:
    """JSON in one line, readable (Japanese stays Japanese) and safe to look at on a terminal."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return _UNSAFE.sub(lambda found: _escape(found[0], short=False), text)


def print_json(value: Any) -> None:
    """One JSON value for programs."""
    typer.echo(to_json(value))


def print_json_list(values: Iterable[Any]) -> None:
    """A JSON array, one element a line, written as it comes so that a long queue needs no memory."""
    first = True
    for value in values:
        typer.echo(("[\n" if first else ",\n") + to_json(value), nl=False)
        first = False
    typer.echo("[]" if first else "\n]")


def moment(at: Millis | None) -> str:
    """A moment for people, in the machine's time zone: 2026-11-22 10:25:33 +09:00."""
    if at is None:
        return ""
    text = datetime.fromtimestamp(at // 1000, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S %z")
    return f"{text[:-2]}:{text[-2:]}"


def iso(at: Millis | None) -> str | None:
    """A moment for programs: RFC 3339 in UTC with milliseconds."""
    if at is None:
        return None
    return datetime.fromtimestamp(at / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def span(milliseconds: Millis) -> str:
    """A length of time for people, at most two units: 850ms, 12s, 3m20s, 4h05m, 2d03h."""
    if milliseconds < 1000:
        return f"{max(milliseconds, 0)}ms"
    seconds = milliseconds // 1000
    for size, unit, below, sub in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if seconds >= size:
            rest = seconds % size // below
            return f"{seconds // size}{unit}{rest:02d}{sub}" if rest else f"{seconds // size}{unit}"
    return f"{seconds}s"


def age(at: Millis | None) -> str:
    """How long ago, or how soon ("in 4m"), for people."""
    if at is None:
        return ""
    ago = now_ms() - at
    return span(ago) if ago >= 0 else f"in {span(-ago)}"


def console() -> Console:
    """Standard output. On a terminal as wide as it is; elsewhere a record is one line, never cut nor wrapped."""
    from rich.console import Console

    piped = not sys.stdout.isatty()
    return Console(
        width=100_000 if piped else None,
        no_color=True if piped else None,
        color_system=None if piped else "auto",
        markup=False,
        emoji=False,
        highlight=False,
        soft_wrap=piped,
    )


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table. Ids and figures stay whole as long as there is room; what may be long folds first."""

    heading: str
    right: bool = False
    """Set to the right, as figures are."""
    long: bool = False
    """Addresses, subjects, reasons."""


def print_table(columns: Sequence[Column], rows: Iterable[Sequence[str]], *, empty: str) -> None:
    """A table; where there are no rows the sentence `empty` instead. Nothing is ever cut: long cells fold."""
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    screen = console()
    cells = [[clean(cell) for cell in row] for row in rows]
    if not cells:
        say(empty)
        return
    widths = [
        max(cell_len(cell) for cell in column) for column in zip([c.heading for c in columns], *cells, strict=True)
    ]
    least = sum(min(_LEAST, width) if column.long else width for column, width in zip(columns, widths, strict=True))
    whole = least + 2 * len(columns) <= screen.width
    table = Table(box=None, show_edge=False, pad_edge=False)
    for column in columns:
        justify: Literal["left", "right"] = "right" if column.right else "left"
        table.add_column(column.heading, justify=justify, overflow="fold", no_wrap=whole and not column.long)
    for row in cells:
        table.add_row(*(Text(cell, style=_STATE_STYLE.get(cell, "")) for cell in row))
    if screen.is_terminal:
        screen.print(table)
    else:
        _print_unpadded(screen, table)


def _print_unpadded(screen: Console, table: Any) -> None:
    """Lines without the spaces that rich fills up with, for files and other programs."""
    with screen.capture() as capture:
        screen.print(table)
    typer.echo("\n".join(line.rstrip() for line in capture.get().splitlines()))


def print_pairs(pairs: Iterable[tuple[str, str]]) -> None:
    """Names and values under each other."""
    known = [(name, value) for name, value in pairs if value]
    width = max((len(name) for name, _ in known), default=0)
    for name, value in known:
        say(f"{name:<{width}}  {value}")


def say(text: str = "", style: str = "") -> None:
    """One line (or several: line ends stay) to standard output."""
    if style:
        from rich.text import Text

        console().print(Text(clean_lines(text), style=style))
    else:
        typer.echo(clean_lines(text))


def content_text(octets: bytes) -> str:
    """A mail as text for a person: UTF-8 where it is that, other octets as escapes."""
    return octets.decode("utf-8", "backslashreplace").rstrip("\r\n")


def write_octets(octets: bytes) -> None:
    """A mail to standard output, byte for byte where that is a file or a program; made safe on a terminal."""
    if sys.stdout.isatty():
        say(content_text(octets))
    else:
        typer.get_binary_stream("stdout").write(octets)


def warn(text: str) -> None:
    """One line to standard error."""
    typer.echo(f"relayd: {clean_lines(text)}", err=True)
