"""The mail log: one JSON line per event, written after the commit that made it true.

It never holds up or breaks delivery: what cannot be written is counted and dropped. What programs must not miss
stands in the spool; this is for people, grep and log shippers.
"""

from __future__ import annotations

import asyncio
import os
import re
import select
import socket
import stat
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import structlog

from relayd.core.event import Event
from relayd.core.ids import format_id
from relayd.core.units import Millis

BACKLOG = 4 * 1024**2
"""Octets that wait for a slow reader of a pipe; lines beyond are dropped and counted."""
LONGEST = 1000
"""Characters of one value: with it a line fits what a pipe takes at once."""

_PIPE = select.PIPE_BUF
_RETRY = 0.2
_DEL = 0x7F  # as a number: asked for b"\x7f", Python takes that for a number first, and fails at it
# DEL, C1 controls, line separators and bidirectional overrides as UTF-8: JSON allows them, terminals obey them
_UNSAFE = re.compile(rb"\x7f|\xc2[\x80-\x9f]|\xe2\x80[\xa8-\xae]|\xe2\x81[\xa6-\xa9]")


class MailLog:
    """A reader of the store's events. `events` is what it subscribes; `reopen` follows log rotation."""

    def __init__(self, path: Path | None, *, dropped: Callable[[int], None] | None = None) -> None:
        """`path`: the file to append to, None for standard output. `dropped` is told how many lines were lost.

        Raises OSError when the file cannot be opened: at the start that is a fault worth stopping for.
        """
        self._path = path
        self._dropped = dropped or (lambda lines: None)
        self._fd = -1
        self._socket: socket.socket | None = None
        self._pipe = False
        self._rest = bytearray()
        self._torn = False
        self._retry: asyncio.TimerHandle | None = None
        self._second: int = -1
        self._second_text = ""
        self._complained = False
        self._log = structlog.get_logger("relayd.maillog")
        self._open()

    def events(self, events: Sequence[Event]) -> None:
        """Write the events of one commit: one write for all of them."""
        try:
            lines = [self._line(event) for event in events]
        except Exception:  # noqa: BLE001 - whatever an event holds, the mail log must not break the commit's other readers
            lines = []
            self._log.exception("maillog_unwritable_event")
            self._dropped(len(events))
        if lines:
            self._write(lines)

    def reopen(self, path: Path | None) -> None:
        """Begin a new file where `path` says: after rotation, or when the configuration changed.

        Where that fails the old file stays in use and the log says so.
        """
        old = (self._path, self._fd, self._socket, self._pipe)
        self._path = path
        try:
            self._open()
        except OSError as error:
            self._path, self._fd, self._socket, self._pipe = old
            self._log.error("maillog_not_reopened", path=str(path), reason=error.strerror)
            return
        self._discard()
        self._torn, self._complained = False, False
        self._release(old[1], old[2])

    def close(self) -> None:
        """Write what is left, as far as nobody has to wait for it."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self._flush()
        self._discard()
        self._release(self._fd, self._socket)
        self._fd, self._socket = -1, None

    # -- what is written

    def _line(self, event: Event) -> bytes:
        line: dict[str, Any] = {
            "time": self._time(event.at),
            "event": str(event.kind),
            "id": format_id(event.message),
            "n": event.n,
            "recipient": event.recipient,
            "sender": event.sender,
            **event.detail,
        }
        try:
            raw = orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
        except orjson.JSONEncodeError:
            raw = b""
        if not raw or len(raw) > _PIPE:
            # lone surrogates, numbers past 64 bits, a reply of a thousand words: rare enough to go the long way
            raw = orjson.dumps({key: _plain(value) for key, value in line.items()}, option=orjson.OPT_APPEND_NEWLINE)
        return _UNSAFE.sub(_escape, raw) if not raw.isascii() or _DEL in raw else raw

    def _time(self, at: Millis) -> str:
        second, millis = divmod(at, 1000)
        if second != self._second:
            # events of one commit share their second: format it once
            self._second, self._second_text = second, datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        return f"{self._second_text}.{millis:03d}Z"

    # -- how it is written

    def _open(self) -> None:
        if self._path is not None:
            # RFC 5321 addresses are personal data: for the daemon's user and group only
            fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        else:
            fd = os.dup(sys.__stdout__.fileno() if sys.__stdout__ is not None else 1)
        mode = os.fstat(fd).st_mode
        self._fd = fd
        self._socket = socket.socket(fileno=os.dup(fd)) if stat.S_ISSOCK(mode) else None
        self._pipe = stat.S_ISFIFO(mode)

    @staticmethod
    def _release(fd: int, sock: socket.socket | None) -> None:
        if sock is not None:
            sock.close()
        if fd >= 0:
            os.close(fd)

    def _write(self, lines: list[bytes]) -> None:
        if self._fd < 0:
            self._dropped(len(lines))
            return
        if len(self._rest) > BACKLOG:
            self._dropped(len(lines))
            self._flush()
            return
        self._rest += b"".join(lines)
        self._flush()

    def _flush(self) -> None:
        """Write what waits, as far as it goes without blocking; try again a little later for the rest."""
        while self._rest:
            try:
                done = self._put(self._rest)
            except BlockingIOError:
                done = 0
            except OSError as error:
                self._lose(error)
                return
            del self._rest[:done]
            if not done:
                break
        else:
            self._complained = False
            return
        if self._retry is None:
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                return
            self._retry = loop.call_later(_RETRY, self._again)

    def _again(self) -> None:
        self._retry = None
        self._flush()

    def _put(self, data: bytearray) -> int:
        if self._socket is not None:  # journald's end of a service's standard output
            return self._socket.send(data, socket.MSG_DONTWAIT)
        if self._pipe:
            # a pipe that polls as writable takes PIPE_BUF octets without blocking (pipe(7)): whole lines, up to that
            poll = select.poll()
            poll.register(self._fd, select.POLLOUT)
            if not poll.poll(0):
                return 0
            cut = data.rfind(b"\n", 0, _PIPE) + 1 or _PIPE
            return os.write(self._fd, data[:cut])
        if self._torn:
            # the last write stopped inside a line: end that line, so that this one stays readable
            data = bytearray(b"\n") + data
        done = os.write(self._fd, data)
        torn, self._torn = self._torn, done < len(data) and data[done - 1 : done] != b"\n"
        return max(done - 1, 0) if torn else done

    def _discard(self) -> int:
        lines = self._rest.count(b"\n")
        self._rest.clear()
        if lines:
            self._dropped(lines)
        return lines

    def _lose(self, error: OSError) -> None:
        lines = self._discard()
        if not self._complained:
            self._complained = True
            self._log.error("maillog_not_written", path=str(self._path or "stdout"), reason=error.strerror, lines=lines)


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value[:LONGEST].encode("utf-8", "backslashreplace").decode()
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _escape(match: re.Match[bytes]) -> bytes:
    return b"\\u%04x" % ord(match[0].decode())
