"""The stream of replies, however it is cut into packets; content with dots doubled, however it is cut into pieces."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from relayd.delivery import dots
from relayd.delivery.dialogue import LIMIT, Dialogue
from relayd.delivery.dots import piece, stuffed
from relayd.delivery.protocol import MAX_LINE, MAX_LINES, RawReply, ReplyProtocol

WORDS = st.binary(max_size=20).map(lambda octets: octets.replace(b"\n", b"").replace(b"\r", b""))
REPLY = st.tuples(st.integers(200, 599).filter(lambda code: code != 421), st.lists(WORDS, min_size=1, max_size=4))


class Wire(asyncio.Transport):
    """A transport that remembers what was written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: object) -> None:
        self.written.append(bytes(data))  # type: ignore[call-overload]

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        self.closed = True

    def get_write_buffer_size(self) -> int:
        return 0


def wire(code: int, lines: list[bytes], end: bytes) -> bytes:
    return b"".join(b"%d-%s%s" % (code, line, end) for line in lines[:-1]) + b"%d %s%s" % (code, lines[-1], end)


async def replies_to(expected: int, packets: list[bytes]) -> tuple[list[RawReply], ReplyProtocol]:
    loop = asyncio.get_running_loop()
    protocol = ReplyProtocol(loop, greeting=False)
    protocol.connection_made(Wire())
    task = asyncio.ensure_future(protocol.exchange(b"X\r\n" * expected, expected, 60.0))
    await asyncio.sleep(0)
    for packet in packets:
        protocol.data_received(packet)
    for _ in range(10):  # turns, not time: all octets are there, and what they end has ended by then
        await asyncio.sleep(0)
    if not task.done():
        protocol.connection_lost(None)
    result = await task
    protocol.connection_lost(None)
    return result, protocol


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges) if a < b]


@settings(deadline=None)
@given(
    st.lists(REPLY, min_size=1, max_size=6),
    st.lists(st.integers(0, 2000), max_size=12),
    st.sampled_from([b"\r\n", b"\n"]),
)
def test_replies_do_not_depend_on_packets(
    replies: list[tuple[int, list[bytes]]], places: list[int], end: bytes
) -> None:
    data = b"".join(wire(code, lines, end) for code, lines in replies)
    got, protocol = asyncio.run(replies_to(len(replies), cut(data, places)))
    assert got == [(code, b"\n".join(lines)) for code, lines in replies]
    assert protocol.stray is None


@settings(deadline=None)
@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=5))
@example(b"250-a\r\n", [])
@example(b"250 a\r\n250 b\r\n250 c\r\n", [])
def test_no_octets_from_a_peer_raise(data: bytes, places: list[int]) -> None:
    got, protocol = asyncio.run(replies_to(2, cut(data, places)))
    assert len(got) <= 2
    assert len(got) == 2 or protocol.fault is not None or protocol.ended


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"hello\r\n", "without a reply code"),
        (b"\r\n", "without a reply code"),
        (b"25\r\n", "without a reply code"),
        (b"2500 x\r\n", "without a reply code"),
        (b"250_x\r\n", "without a reply code"),
        ("２５０ x\r\n".encode(), "without a reply code"),
        (b"+50 x\r\n", "without a reply code"),
        (b"199 x\r\n", "without a reply code"),
        (b"600 x\r\n", "without a reply code"),
        (b"250-x\r\n251 y\r\n", "mixed codes"),
        (b"250 " + b"x" * MAX_LINE + b"\r\n", "too long"),
        (b"250 " + b"x" * MAX_LINE, "without end"),
        (b"250-x\r\n" * (MAX_LINES + 1), "without end"),
        ((b"250-" + b"x" * 8000 + b"\r\n") * 9, "without end"),
    ],
)
async def test_nonsense_ends_the_connection(data: bytes, words: str) -> None:
    got, protocol = await replies_to(1, [data])
    assert got == []
    assert words in str(protocol.fault)
    assert not protocol.clean


async def test_replies_that_drip_in_do_not_put_off_the_end_for_ever() -> None:
    loop = asyncio.get_running_loop()
    protocol = ReplyProtocol(loop, greeting=False)
    protocol.connection_made(Wire())
    task = asyncio.ensure_future(protocol.exchange(b"X\r\n" * 3, 3, timeout=3600, total=0.05))
    await asyncio.sleep(0)
    protocol.data_received(b"250 one\r\n")
    assert await task == [(250, b"one")]
    assert str(protocol.fault) == "no answer in time"
    protocol.connection_lost(None)


async def test_each_reply_of_a_group_has_its_own_time_but_pieces_of_one_have_not() -> None:
    loop = asyncio.get_running_loop()
    protocol = ReplyProtocol(loop, greeting=False)
    protocol.connection_made(Wire())
    waiting = asyncio.ensure_future(protocol.exchange(b"X\r\n" * 4, 4, timeout=3600))
    deadlines = []
    for packet in (b"250", b" one\r", b"\n250 tw", b"o\r\n250 three\r\n2", b"50-fo\r\n"):
        while loop.time() + 3600 <= protocol._deadline:  # noqa: ASYNC110 - until the clock has moved on
            await asyncio.sleep(0.001)
        protocol.data_received(packet)
        deadlines.append(protocol._deadline)
    assert deadlines[0] == deadlines[1] < deadlines[2] < deadlines[3] == deadlines[4]
    protocol.data_received(b"250 ur\r\n")
    assert await waiting == [(250, b"one"), (250, b"two"), (250, b"three"), (250, b"fo\nur")]
    protocol.connection_lost(None)


class Fragile(Wire):
    """As asyncio's TLS transport is in Python 3.11.2: closed twice, it breaks when it is aborted after that."""

    broken = False

    def close(self) -> None:
        self.broken = self.closed
        self.closed = True

    def abort(self) -> None:
        assert not self.broken
        super().abort()


@pytest.mark.parametrize("hung_up", [True, False])
async def test_a_connection_is_closed_once_whoever_ends_it(hung_up: bool) -> None:
    loop = asyncio.get_running_loop()
    protocol, transport = ReplyProtocol(loop, greeting=False), Fragile()
    protocol.connection_made(transport)
    if hung_up:
        protocol.eof_received()
    closing = asyncio.ensure_future(protocol.finish(60.0))
    await asyncio.sleep(0)
    protocol.connection_lost(None)
    await closing
    assert transport.closed
    assert not transport.broken


async def test_421_ends_the_wait_for_more() -> None:
    got, protocol = await replies_to(3, [b"250 a\r\n421 bye\r\n"])
    assert [code for code, _ in got] == [250, 421]
    assert protocol.ended


CONTENT = st.lists(
    st.sampled_from([b".", b"..", b"\r\n", b"x", b"\r\n.\r\n", b"\n", b"\r", b".\r\n"]), max_size=60
).map(b"".join)


@settings(deadline=None)
@given(CONTENT, st.integers(1, 9))
def test_pieces_make_the_same_octets_as_the_whole(content: bytes, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dots, "CHUNK", size)
        view = memoryview(content)
        pieces = [bytes(piece(content, view, start)) for start in range(0, len(content), size)]
    assert b"".join(pieces) == stuffed(content)


@settings(deadline=None)
@given(CONTENT.map(lambda content: content + b"\r\n"))
def test_stuffed_content_ends_only_at_its_end_and_comes_back(content: bytes) -> None:
    """RFC 5321 4.5.2, read the way a server reads it."""
    normal = content.replace(b"\r\n", b"\n").replace(b"\r", b"").replace(b"\n", b"\r\n")
    sent = b"\r\n" + stuffed(normal) + b".\r\n"
    assert sent.find(b"\r\n.\r\n") == len(sent) - 5
    lines = sent[2:-3].split(b"\r\n")
    assert b"\r\n".join(line[1:] if line.startswith(b".") else line for line in lines) == normal


# the transcript


def dialogue() -> Dialogue:
    return Dialogue(iter(float(n) for n in range(10**6)).__next__)


def test_the_transcript_shows_what_was_said_and_when() -> None:
    said = dialogue()
    said.sent(b"MAIL FROM:<a@x>\r\nRCPT TO:<b@y>\r\n")
    said.received(250, b"one\ntwo")
    said.content(4123)
    said.note("silence")
    assert said.render().split("\n") == [
        "   1.000 > MAIL FROM:<a@x>",
        "   1.000 > RCPT TO:<b@y>",
        "   2.000 < 250-one",
        "   2.000 < 250 two",
        "   3.000 > [4,123 octets]",
        "   4.000 * silence",
    ]
    said.restart()
    assert said.render() == ""


def test_logins_are_masked() -> None:
    said = dialogue()
    said.secret = True
    said.sent(b"AUTH PLAIN AGEAYg==\r\n")
    said.sent(b"AUTH LOGIN\r\n")
    said.received(334, b"PDEyMz4=")
    said.sent(b"dXNlcg==\r\n")
    said.received(535, b"no")
    assert [line[9:] for line in said.render().split("\n")] == [
        "> AUTH PLAIN ********",
        "> AUTH LOGIN",
        "< 334 ********",
        "> ********",
        "< 535 no",
    ]


def test_secrets_and_control_characters_are_left_out() -> None:
    said = dialogue()
    said.received(550, b"\x1b[31mhunter2\x00\x9b\r \xff\xe2\x80\xa8bad")
    text = said.render(["hunter2"])
    assert "hunter2" not in text
    assert not any(ord(letter) < 32 or 127 <= ord(letter) < 160 or letter == "\u2028" for letter in text)


def test_a_transcript_is_bounded_and_keeps_both_ends() -> None:
    said = dialogue()
    said.sent(b"first\r\n")
    for _ in range(10_000):
        said.received(250, b"x" * 100)
    said.sent(b"last\r\n")
    text = said.render()
    assert len(text) <= LIMIT
    assert "> first" in text
    assert text.endswith("> last")
    assert "left out" in text
