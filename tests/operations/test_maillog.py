"""The mail log: one JSON line per event, never in the way of the mail."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.core.event import Event, EventKind
from relayd.core.ids import format_id
from relayd.events import maillog
from relayd.events.maillog import MailLog

MESSAGE = 123456789012345


def event(**changes: Any) -> Event:
    values: dict[str, Any] = {
        "at": 1_763_773_000_007,
        "message": MESSAGE,
        "n": 0,
        "kind": EventKind.DELIVERED,
        "recipient": "you@example.org",
        "sender": "app@example.com",
        "detail": {"upstream": "acme", "reply": "250 2.0.0 ok", "attempt": 1},
    }
    return Event(**(values | changes))


class Lost:
    """How many lines were dropped."""

    def __init__(self) -> None:
        self.lines = 0

    def __call__(self, lines: int) -> None:
        self.lines += lines


def test_an_event_is_one_json_line(tmp_path: Path) -> None:
    log = MailLog(tmp_path / "mail.log")
    log.events([event()])
    log.close()
    assert json.loads((tmp_path / "mail.log").read_text()) == {
        "time": "2025-11-22T00:56:40.007Z",
        "event": "delivered",
        "id": format_id(MESSAGE),
        "n": 0,
        "recipient": "you@example.org",
        "sender": "app@example.com",
        "upstream": "acme",
        "reply": "250 2.0.0 ok",
        "attempt": 1,
    }


def test_the_file_is_not_for_everyone(tmp_path: Path) -> None:
    MailLog(tmp_path / "mail.log").close()
    assert (tmp_path / "mail.log").stat().st_mode & 0o007 == 0


@given(st.text(), st.text(), st.text(max_size=3000))
def test_whatever_a_peer_says_a_line_stays_one_harmless_line(recipient: str, sender: str, reply: str) -> None:
    line = _raw(event(recipient=recipient, sender=sender, detail={"reply": reply}))
    text = line.decode()
    assert text.endswith("\n")
    assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or c in "\u2028\u2029\u202e\u2066" for c in text[:-1])
    assert len(line) <= 4 * 4096
    read = json.loads(text)
    assert read["recipient"] == recipient[:1000] if len(recipient) > 1000 else read["recipient"] == recipient


@given(st.text(st.characters(codec=None, categories=["Cs", "L"]), min_size=1), st.integers())
def test_what_utf8_or_json_cannot_hold_is_written_all_the_same(text: str, number: int) -> None:
    read = json.loads(_raw(event(detail={"reply": text, "number": number})))
    assert int(read["number"]) == number


def _raw(written: Event) -> bytes:
    reader, writer = os.pipe()
    os.close(writer)
    os.close(reader)
    return MailLog(Path(os.devnull))._line(written)


async def test_rotation_begins_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "mail.log"
    log = MailLog(path)
    log.events([event(n=0)])
    path.rename(tmp_path / "mail.log.1")
    log.events([event(n=1)])
    log.reopen(path)
    log.events([event(n=2)])
    log.close()
    assert [json.loads(line)["n"] for line in (tmp_path / "mail.log.1").read_text().splitlines()] == [0, 1]
    assert [json.loads(line)["n"] for line in path.read_text().splitlines()] == [2]


def test_a_place_that_cannot_be_opened_leaves_the_old_file_in_use(tmp_path: Path) -> None:
    log = MailLog(tmp_path / "mail.log")
    log.reopen(tmp_path / "nowhere" / "mail.log")
    log.events([event()])
    log.close()
    assert (tmp_path / "mail.log").read_text()


def test_a_full_disk_loses_lines_and_counts_them() -> None:
    lost = Lost()
    log = MailLog(Path("/dev/full"), dropped=lost)
    log.events([event(), event()])
    log.events([event()])
    log.close()
    assert lost.lines == 3


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    reader, writer = os.pipe()
    _stdout(monkeypatch, writer)
    return reader, writer


def _stdout(monkeypatch: pytest.MonkeyPatch, fd: int) -> None:
    class Stdout:
        def fileno(self) -> int:
            return fd

    monkeypatch.setattr(maillog.sys, "__stdout__", Stdout())


def test_a_closed_pipe_loses_lines_and_counts_them(pipe: tuple[int, int]) -> None:
    lost = Lost()
    log = MailLog(None, dropped=lost)
    os.close(pipe[0])
    log.events([event(), event()])
    log.close()
    os.close(pipe[1])
    assert lost.lines == 2


async def test_a_reader_that_stands_still_holds_up_nothing_and_gets_whole_lines_later(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maillog, "BACKLOG", 200_000)
    lost = Lost()
    log = MailLog(None, dropped=lost)
    for n in range(100):
        log.events([event(n=n * 30 + m) for m in range(30)])
    assert lost.lines > 0, "what is beyond the backlog is dropped"
    os.close(pipe[1])
    read = bytearray()
    os.set_blocking(pipe[0], False)

    async def drain() -> None:
        while True:
            try:
                data = os.read(pipe[0], 65536)
            except BlockingIOError:
                await asyncio.sleep(0.01)
                continue
            if not data:
                return
            read.extend(data)

    async with asyncio.timeout(30):
        reading = asyncio.create_task(drain())
        while log._rest:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        log.close()
        await reading
    os.close(pipe[0])
    lines = read.decode().splitlines()
    assert len(lines) + lost.lines == 3000
    assert [json.loads(line)["n"] for line in lines[:100]] == list(range(100))


async def test_journald_which_is_a_socket_is_never_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    _stdout(monkeypatch, ours.fileno())
    lost = Lost()
    log = MailLog(None, dropped=lost)
    for _ in range(200):
        log.events([event() for _ in range(50)])
    assert ours.getblocking(), "standard output itself is left as it was"
    log.close()
    ours.close()
    theirs.setblocking(True)
    read = b"".join(iter(lambda: theirs.recv(65536), b""))
    theirs.close()
    assert read.count(b"\n") + lost.lines == 10_000
    assert all(json.loads(line) for line in read.split(b"\n")[:100])


def test_a_line_torn_by_a_full_disk_does_not_spoil_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mail.log"
    log = MailLog(path, dropped=lambda lines: None)
    real = os.write
    room = [20]

    def write(fd: int, data: bytes) -> int:
        if room[0] == 0:
            raise OSError(28, "No space left on device")
        done = real(fd, bytes(data)[: room[0]])
        room[0] -= done
        return done

    monkeypatch.setattr(maillog.os, "write", write)
    log.events([event(n=1)])
    room[0] = 10**6
    log.events([event(n=2)])
    log.close()
    torn, whole = path.read_text().splitlines()
    assert len(torn) == 20
    assert json.loads(whole)["n"] == 2
