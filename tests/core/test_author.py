"""The author's domain, from every way to write a From header."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.core import author
from relayd.core.author import author_domain, author_domains


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (" a@example.com", "example.com"),
        (" <a@EXAMPLE.com>", "example.com"),
        (" Name <a@example.com>", "example.com"),
        (' "Name, Inc. <x@evil.example>" <a@example.com>', "example.com"),
        (' "quoted \\" <x@evil.example>" <a@example.com>', "example.com"),
        (" Name (comment <x@evil.example>) <a@example.com>", "example.com"),
        (" (nested (x@evil.example)) a@example.com", "example.com"),
        (" a(comment)@(another)example.com(last)", "example.com"),
        (" a @ example . com", "example.com"),
        (" Doe, John <a@example.com>", "example.com"),
        (" a@one.example, b@two.example", "one.example"),
        (" A <a@one.example>, B <b@two.example>", "one.example"),
        (" Friends: a@example.com, b@two.example;", "example.com"),
        (" Empty:;, a@example.com", "example.com"),
        (" <@hop.example,@hop2.example:a@example.com>", "example.com"),
        (' "a@b"@example.com', "example.com"),
        (" =?utf-8?q?Caf=C3=A9?= <a@example.com>", "example.com"),
        (" =?utf-8?B?eEBldmlsLmV4YW1wbGU=?= <a@example.com>", "example.com"),
        (" 日本 <a@例え.jp>", "xn--r8jz45g.jp"),
        (" a@bücher.example", "xn--bcher-kva.example"),
        (" a@XN--BCHER-KVA.example", "xn--bcher-kva.example"),
        (" a@example.com.", "example.com"),
        (" a@under_score.example", "under_score.example"),
        ("\r\n\tName\r\n <a@example.com>\r\n", "example.com"),
        (" a@[192.0.2.1]", ""),
        (" MAILER-DAEMON", ""),
        (" undisclosed:;", ""),
        (" <>", ""),
        (" a@", ""),
        ("", ""),
        (" a@-bad-.example", ""),
        (" a@" + "x" * 64 + ".example", ""),
        (" a@" + ".".join(["x" * 60] * 5), ""),
        (" broken <a@example.com", "example.com"),
        (' "unclosed <a@example.com>', ""),
        (" a@example.com>", ""),
    ],
)
def test_domain(value: str, expected: str) -> None:
    assert author_domain(value.encode()) == expected


_parts = st.sampled_from(
    [
        "a",
        "b.c",
        "@",
        "example",
        ".",
        "-",
        "_",
        '"',
        "<",
        ">",
        "(",
        ")",
        ",",
        ":",
        ";",
        " ",
        "\r\n ",
        "\\",
        "[",
        "]",
        "é",
    ]
)


@given(st.lists(_parts, max_size=14).map("".join))
def test_quick_way_answers_as_the_careful_one(text: str) -> None:
    value = text.encode()
    assert author_domains(value) == author._search(value)


@given(st.binary(max_size=100))
def test_any_input_is_taken(value: bytes) -> None:
    assert author_domain(value).isascii()


def test_all_domains_are_told_and_that_there_are_too_many() -> None:
    assert author_domains(b"a@x.example, Group: b@y.example, c@X.example;, d@nowhere..example") == (
        "x.example",
        "y.example",
    )
    many = author_domains(b",".join(b"a@%d.example" % n for n in range(1000)))
    assert (len(many), many[0], many[-1]) == (21, "0.example", "")


def test_hostile_nesting_takes_no_time() -> None:
    for value in (b"(" * 60_000, b"<" * 60_000, b'"' * 60_000, b"a@" * 30_000, b"\\" * 60_001, b":;" * 30_000):
        author_domain(value)
    author_domains(b"a@\xc3\xa9.example," * 4000)
