"""The pure half of reception: where content ends, which dots go, what is refused, whatever the packets look like."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relayd.intake.memory import MemoryBudget
from relayd.listener.content import ChunkReader, Content, DotReader, Fault, Rules, hides_end

RULES = Rules(size=100_000, line=998, line_max=2000, normalise=False)


def collector(rules: Rules = RULES, memory: int = 10**6) -> tuple[Content, MemoryBudget]:
    budget = MemoryBudget(memory)
    return Content(rules, budget.reserve, budget.release), budget


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


def read_dots(pieces: list[bytes], content: Content) -> bytes | None:
    """Feed the pieces; returns what lies behind the end, or None when no end came."""
    reader = DotReader(content)
    for place, piece in enumerate(pieces):
        used = reader.feed(piece)
        if used >= 0:
            return piece[used:] + b"".join(pieces[place + 1 :])
    return None


def slow_dots(data: bytes) -> tuple[bytes, bytes] | None:
    """What DATA means, line by line as RFC 5321 4.5.2 words it: content and rest, or None without an end."""
    content, rest = b"", data
    while True:
        line, end, rest = rest.partition(b"\r\n")
        if not end:
            return None
        if line == b".":
            return content, rest
        content += (line[1:] if line.startswith(b".") else line) + end


wire = st.lists(st.sampled_from([b"\r\n", b".", b"\r", b"\n", b"a", b"\0", b"..", b"\r\n.\r\n", b"text"])).map(b"".join)
places = st.lists(st.integers(0, 200), max_size=6)


@given(wire, places)
@example(b".\r\n", [1, 2])
@example(b"..\r\n\r\n.\r\nQUIT\r\n", [1])
@example(b"\r\n.\r.\r\n.\r\n", [3, 4])
def test_the_end_and_the_dots_are_found_as_the_rfc_words_it(data: bytes, places: list[int]) -> None:
    wanted = slow_dots(data)
    # bare newlines are kept apart from this property: NORMALISE is off, so compare on content without a fault
    content, budget = collector()
    rest = read_dots(cut(data, places), content)
    if wanted is None:
        assert rest is None
    else:
        assert rest == wanted[1]
        bare = re.search(rb"\r(?!\n)|(?<!\r)\n", wanted[0]) is not None
        assert content.fault is (Fault.BARE_NEWLINE if bare else None)
        if not bare:
            assert b"".join(content.pieces()) == wanted[0]
            assert budget.used == content.size == len(wanted[0])
    content.drop()
    assert budget.used == 0


@given(wire, places)
def test_normalising_makes_every_line_end_crlf_and_changes_nothing_else(data: bytes, places: list[int]) -> None:
    wanted = slow_dots(data)
    content, _ = collector(Rules(100_000, 998, 2000, normalise=True))
    rest = read_dots(cut(data, places), content)
    if wanted is not None:
        assert rest == wanted[1]
        assert b"".join(content.pieces()) == re.sub(rb"\r\n|\r|\n", b"\r\n", wanted[0])


@given(wire, st.lists(st.integers(0, 20), max_size=6), places)
def test_chunks_are_taken_by_count(data: bytes, sizes: list[int], places: list[int]) -> None:
    content, _ = collector(Rules(100_000, 998, 2000, normalise=True))
    reader = ChunkReader(content)
    for chunk in cut(data, sizes):
        reader.expect(len(chunk))
        used = -1
        parts = cut(chunk + b"QUIT\r\n", places)
        while used < 0:
            part = parts.pop(0)
            used = reader.feed(part)
        assert part[used:] + b"".join(parts) == b"QUIT\r\n"
    reader.finish()
    wanted = re.sub(rb"\r\n|\r|\n", b"\r\n", data)
    if wanted and not wanted.endswith(b"\r\n"):
        wanted += b"\r\n"
    assert b"".join(content.pieces()) == wanted


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=8), places)
def test_lines_are_measured_whatever_the_packets(lengths: list[int], places: list[int]) -> None:
    content, _ = collector(Rules(10**6, 998, 3000, normalise=False))
    data = b"".join(b"x" * length + b"\r\n" for length in lengths)
    assert read_dots(cut(data + b".\r\n", [place * 97 for place in places]), content) == b""
    if max(lengths) > 3000:
        assert content.fault is Fault.LINE
    else:
        assert content.fault is None
        assert content.long_lines == sum(length > 998 for length in lengths)


@pytest.mark.parametrize("size", [99_999, 100_000, 100_001])
def test_the_size_is_kept_to_the_octet(size: int) -> None:
    content, budget = collector()
    data = b"x" * 97 + b"\r\n"
    data = data * (size // 99) + b"y" * (size % 99)
    data = data[:-2] + b"\r\n"
    assert len(data) == size
    assert read_dots([data, b".\r\n"], content) == b""
    assert content.fault is (Fault.SIZE if size > 100_000 else None)
    assert content.received == size
    assert budget.used == (0 if size > 100_000 else size)


def test_out_of_memory_gives_back_what_was_taken() -> None:
    content, budget = collector(memory=5000)
    assert read_dots([b"x\r\n" * 1000, b"x\r\n" * 1000, b".\r\n"], content) == b""
    assert content.fault is Fault.MEMORY
    assert budget.used == 0


def test_single_octets_are_not_kept_as_objects_of_their_own() -> None:
    content, _ = collector()
    reader = DotReader(content)
    for octet in b"abc\r\n" * 1000:
        reader.feed(bytes([octet]))
    assert reader.feed(b".\r\n") == 3
    assert len(content.pieces()) == 1


_SLOW_HIDDEN_END = re.compile(rb"(?:\A|\n)\0++\.\0*\r\n")
_lines = st.lists(
    st.sampled_from([b"\0.\r\n", b"\0\0.\0\r\n", b"\0", b".", b"\r\n", b"x\0.\r\n", b"\0x.\r\n", b".\r\n", b"\0\r\n"]),
    max_size=5,
).map(b"".join)


@given(_lines, st.integers(65_500, 65_560), st.booleans(), _lines)
@example(b"", 65_536, True, b"\0.\r\n")
def test_a_hidden_end_is_found_wherever_it_lies(before: bytes, gap: int, whole: bool, after: bytes) -> None:
    octets = before + b"x" * gap + (b"\r\n" if whole else b"") + after
    assert hides_end(octets) is (_SLOW_HIDDEN_END.search(octets) is not None)
    assert hides_end(before) is (_SLOW_HIDDEN_END.search(before) is not None)
