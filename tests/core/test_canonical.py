"""Relaxed canonicalisation gives what dkimpy's gives, and the same in pieces."""

from __future__ import annotations

import pytest
from dkim.canonicalization import Relaxed
from hypothesis import given
from hypothesis import strategies as st

from relayd.core.canonical import relaxed_field, relaxed_pieces

_bits = st.sampled_from([b" ", b"\t", b"\r\n", b"\r\n", b"a", b"bc", b".", b"\x00", b"\xe6\x97\xa5", b"\x1b$B"])
bodies = st.lists(_bits, max_size=30).map(b"".join)
values = st.lists(st.sampled_from([b" ", b"\t", b"\r\n ", b"\r\n\t", b"a", b":", b";", b"\xff"]), max_size=20).map(
    b"".join
)


def relaxed_body(body: bytes) -> bytes:
    return b"".join(relaxed_pieces(body))


@given(bodies)
def test_bodies_as_dkimpy_does(body: bytes) -> None:
    if body:
        body += b"\r\n"
    assert relaxed_body(body) == (Relaxed.canonicalize_body(body) if body else b"")


@given(bodies, st.integers(1, 12), st.integers(0, 5))
def test_pieces_make_the_same_whole(body: bytes, piece: int, start: int) -> None:
    assert b"".join(relaxed_pieces(body, start, piece)) == relaxed_body(body[start:])


@given(st.sampled_from([b"From", b"SUBJECT", b"x-a "]), values)
def test_fields_as_dkimpy_does(name: bytes, value: bytes) -> None:
    ((expected_name, expected_value),) = Relaxed.canonicalize_headers([(name, value + b"\r\n")])
    assert relaxed_field(name + b":" + value + b"\r\n") == expected_name + b":" + expected_value


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", b""),
        (b"\r\n", b""),
        (b" \t\r\n\r\n", b""),
        (b" C \r\nD \t E\r\n\r\n\r\n", b" C\r\nD E\r\n"),
        (b"no end", b"no end\r\n"),
        (b"no end \t", b"no end\r\n"),
        (b"a\r\n\r\n\r\nb\r\n", b"a\r\n\r\n\r\nb\r\n"),
        (b"a\r\r\n\r\n", b"a\r\r\n"),
        (b"\n\r\n", b"\n\r\n"),
    ],
)
def test_bodies(body: bytes, expected: bytes) -> None:
    assert relaxed_body(body) == expected


def test_example_of_rfc_6376() -> None:
    """RFC 6376 3.4.5."""
    assert relaxed_field(b"A: X\r\n") == b"a:X\r\n"
    assert relaxed_field(b"B : Y\t\r\n\tZ  \r\n") == b"b:Y Z\r\n"


def test_a_huge_body_is_never_held_twice() -> None:
    body = b"a line of text \r\n" * 200_000
    assert max(map(len, relaxed_pieces(body))) <= 1 << 20
    assert sum(map(len, relaxed_pieces(body))) == 200_000 * 16
