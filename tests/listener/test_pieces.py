"""Octets arrive as the network cuts them: however that is, and whoever obeys them, replies and mails are the same."""

from __future__ import annotations

import asyncio
import gc
import math
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from relayd.config.models import Listener
from relayd.core.counter import ConnectionCounter
from relayd.core.reply import Reply
from relayd.listener.connection import TURN, Connection
from relayd.listener.ends import Goodbye, Refused
from relayd.listener.observer import ListenerRefusal
from relayd.listener.server import ListenerServer
from tests.listener.conftest import Seen, limits, until
from tests.support.fake_door import FakeDoor

TURNS: list[bytes] = [
    b"EHLO app\r\n",
    b"HELO app\r\n",
    b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\nDATA\r\n",
    b"MAIL FROM:<a@example.com> SIZE=5\r\nRCPT TO:<refused@example.com>\r\nRCPT TO:<b@example.com>\r\nDATA\r\n",
    b"RCPT TO:<c@example.com>\r\nDATA\r\n",
    b"one\r\n.\r\n",
    b"..two\r\n.\r\nMAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\nNOOP\r\n",
    b"bare\nline\r\n.\r\nNOOP\r\n",
    b"\0.\r\n.\r\nRSET\r\n",
    b"x" * 300 + b"\r\n.\r\nMAIL FROM:<big@example.com>\r\n",
    b".\r\n",
    b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\nBDAT 5\r\nhello" + b"BDAT 4 LAST\r\nyou\nNOOP\r\n",
    b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\nBDAT 3\r\na\r\n",
    b"BDAT 0 LAST\r\nMAIL FROM:<a@example.com>\r\n",
    b"BDAT 6\r\nNOOP\r\nRSET\r\n",
    b"BDAT 300\r\n" + b"y" * 300 + b"NOOP\r\n",
    b"BDAT x\r\n",
    b"DATA now\r\n",
    b"NOOP\r\nRSET\r\nVRFY x\r\nHELP\r\n",
    b"NOOP\n" + b"A" * 13_000 + b"\r\nNOOP " + b"x" * 600 + b"\r\n",
    b"\r\n\x1b[2J\r\n\xff\r\nWHAT\r\nEXPN x\r\n",
    b"MAIL FROM:<421@example.com>\r\nNOOP\r\n",
    b"MAIL FROM:<fault@example.com>\r\nNOOP\r\n",
    b"XCLIENT ADDR=192.0.2.1\r\n",
    b"AUTH PLAIN AGEAYg==\r\n",
    b"AUTH LOGIN\r\n",
    b"YQ==\r\nYg==\r\n",
    b"*\r\n",
    b"GET / HTTP/1.1\r\nNOOP\r\n",
    b"\x16\x03\x01\n",
    b"QUIT\r\nNOOP\r\n",
]
"""What a client may send without waiting, as far as it keeps to RFC 2920: the last command of each ends a turn."""


class Wire(asyncio.Transport):
    """A transport that keeps what is written; `deaf` pauses the writer at once, as a client does that reads slowly."""

    def __init__(self, *, deaf: bool) -> None:
        super().__init__({"peername": ("127.0.0.1", 4711)})
        self.connection: Any = None
        self.written = b""
        self.closed = False
        self._deaf = deaf

    def write(self, data: Any) -> None:
        self.written += data
        if self._deaf:
            self.connection.pause_writing()
            asyncio.get_running_loop().call_soon(self.connection.resume_writing)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().call_soon(self.connection.connection_lost, None)

    abort = close

    def can_write_eof(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        return

    def resume_reading(self) -> None:
        return


def fallible_door() -> FakeDoor:
    def on_mail(envelope: Any, size: int) -> Reply | None:
        if envelope.sender.startswith("fault"):
            raise RuntimeError("a fault of ours")
        return Reply(421, "4.7.0", "Enough") if envelope.sender.startswith("421") else None

    return FakeDoor(
        logins={"a": "b"},
        on_mail=on_mail,
        on_rcpt=lambda recipient, count: Reply(550, "5.1.1", "No") if "refused" in recipient.address else None,
    )


@asynccontextmanager
async def connected(*, deaf: bool = False) -> AsyncIterator[tuple[Connection, Wire, FakeDoor, Seen]]:
    """A greeted session without a socket."""
    door, seen = fallible_door(), Seen()
    listener = Listener(name="test", bind=["127.0.0.1:0"], tls="none", access="network-or-auth")
    server = ListenerServer(
        listener,
        limits(message_size=250, errors=6, commands=40),
        door,
        tls_context=None,
        observer=seen,
        hostname="relay.example.com",
        counter=ConnectionCounter(10, 10),
    )
    connection, wire = server.protocol(), Wire(deaf=deaf)
    wire.connection = connection
    connection.connection_made(wire)
    await settled(lambda: idle(connection))
    yield connection, wire, door, seen
    if not connection.lost:
        wire.close()
    await settled(lambda: not server.connections and not server._tasks)
    assert door.memory.used == 0
    assert server.counter.open == 0
    wire.connection = None


def idle(connection: Connection) -> bool:
    """It waits for the client, or has ended."""
    return connection.lost or connection._parked is not None or connection._waiter is not None


async def settled(condition: Callable[[], object]) -> None:
    """Wait as `until` does, without a clock: there is nothing here that takes time, and thousands of waits."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0)
    await until(condition)  # a thread is at work


async def play(turns: list[bytes], cut: Callable[[bytes], list[bytes]], *, deaf: bool = False) -> tuple[Any, ...]:
    """What a client gets, and what becomes of its mails, when its turns arrive in these pieces."""
    with capture_logs():
        async with connected(deaf=deaf) as (connection, wire, door, seen):
            for turn in turns:
                for piece in cut(turn):
                    if not wire.closed:
                        connection.data_received(piece)
                    await settled(lambda: idle(connection) or connection._writable is not None)
                await settled(lambda: idle(connection))
    return wire.written, wire.closed, door.submissions, door.attempts, seen.refusals


def by_line(turn: bytes) -> list[bytes]:
    return turn.splitlines(keepends=True)


async def test_replies_and_mails_do_not_depend_on_how_octets_arrive() -> None:
    examples: list[tuple[list[bytes], list[int]]] = []

    @settings(max_examples=50, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.sampled_from(TURNS), max_size=14), st.lists(st.integers(1, 60), min_size=1))
    def collect(turns: list[bytes], sizes: list[int]) -> None:
        examples.append(([b"EHLO app\r\n", *turns], sizes))

    collect()
    for turns, sizes in examples:

        def at_random(turn: bytes, sizes: list[int] = sizes) -> list[bytes]:
            pieces, place, n = [], 0, 0
            while place < len(turn):
                size = sizes[n % len(sizes)]
                pieces.append(turn[place : place + size])
                place, n = place + size, n + 1
            return pieces

        wanted = await play(turns, by_line)
        assert await play(turns, lambda turn: [turn]) == wanted, turns
        assert await play(turns, at_random) == wanted, (turns, sizes)
        assert await play(turns, by_line, deaf=True) == wanted, turns


@pytest.mark.parametrize("ahead", [b"", b"NOOP\r\n" * 3])
async def test_who_reads_late_has_one_idle_time_for_that_and_the_next_line(ahead: bytes) -> None:
    async with connected() as (connection, wire, _, seen):
        loop = asyncio.get_running_loop()
        connection.pause_writing()
        connection.data_received(b"EHLO app\r\n")
        await settled(lambda: connection._writable is not None)
        deadline = connection._deadline
        assert deadline < math.inf
        connection._input = ahead  # what came meanwhile is obeyed once there is room for answers
        await until(lambda: loop.time() > deadline - connection.server.limits.idle + 0.01)
        connection.resume_writing()
        await settled(lambda: idle(connection))
        assert (connection._deadline == deadline) == (not ahead)
        assert wire.written.count(b"250 2.0.0 OK") == ahead.count(b"NOOP")
        connection._deadline = 0.0
        connection._tick()
        await settled(lambda: wire.closed)
        assert b"\r\n421 4." in wire.written
        assert seen.refusals == [ListenerRefusal.IDLE]


async def test_an_answer_that_comes_before_its_challenge_was_read_is_taken() -> None:
    turns = [b"EHLO app\r\n", b"AUTH LOGIN\r\n", b"YQ==\r\nYg==\r\n"]
    assert await play(turns, by_line, deaf=True) == await play(turns, by_line)


async def test_every_turn_octet_by_octet() -> None:
    for turn in TURNS:
        turns = [b"EHLO app\r\n", b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\n", turn]
        octets = await play(turns, lambda turn: [bytes([octet]) for octet in turn[:700]] + [turn[700:]])
        assert octets == await play(turns, by_line), turn


async def test_a_command_is_answered_where_it_arrives() -> None:
    async with connected() as (connection, wire, _, _):
        wire.written = b""
        connection.data_received(b"EHLO app\r\n")
        connection.data_received(b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\nDA")
        connection.data_received(b"TA\r\n")
        assert [line[:3] for line in wire.written.splitlines() if line[3:4] == b" "] == [b"250"] * 3 + [b"354"]


async def test_who_pipelines_much_at_once_is_obeyed_in_turns() -> None:
    async with connected() as (connection, wire, _, _):
        connection.server.limits = limits(commands=10**6)
        wire.written = b""
        connection.data_received(b"NOOP\r\n" * 3 * TURN)
        assert wire.written.count(b"\r\n") <= TURN
        await until(lambda: wire.written.count(b"\r\n") == 3 * TURN)


async def test_an_ended_connection_is_freed_without_a_collection() -> None:
    gc.collect()
    gc.disable()
    try:
        async with connected() as (connection, wire, _, _):
            connection.data_received(b"QUIT\r\n")
        gone = weakref.ref(connection)
        del connection, wire
        assert gone() is None
    finally:
        gc.enable()


lines = st.binary(max_size=20) | st.text("NOPmail :<>@.\t\x00\x7fé\u2028", max_size=20).map(str.encode)


@settings(max_examples=300, database=None, deadline=None)
@given(lines, st.sampled_from([b"\r\n", b"\n", b"\r\r\n"]), st.sampled_from([0, 480, 520]))
def test_the_usual_line_is_read_as_any_other(text: bytes, end: bytes, padding: int) -> None:
    def outcome(read: Callable[[bytes], str]) -> object:
        try:
            return read(line)
        except (Refused, Goodbye) as refused:
            return type(refused), refused.reply

    line = text.replace(b"\n", b"") + b"x" * padding + end
    connection = object.__new__(Connection)
    connection._input, connection._position, connection.peer_proxies = b"", 0, False
    connection.client = type("Client", (), {"listener": Listener(name="x", bind=["127.0.0.1:0"], tls="none")})()
    assert outcome(connection._command) == outcome(connection._odd_command)


@pytest.mark.parametrize("octets", [b"NOOP\r\nNO", b""], ids=repr)
async def test_a_client_that_ends_while_the_task_waits(octets: bytes) -> None:
    async with connected() as (connection, wire, _, _):
        wire.written = b""
        connection.data_received(octets)
        connection.eof_received()
        await until(lambda: connection.lost)
        assert wire.written == (b"250 2.0.0 OK\r\n" if octets else b"")
