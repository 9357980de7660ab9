"""Figures as operators write them come back as they were, and nothing else is taken."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relayd.core.units import (
    Rate,
    format_duration,
    format_size,
    parse_duration,
    parse_rate,
    parse_share,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0s", 0.0),
        ("250ms", 0.25),
        ("30s", 30.0),
        ("5m", 300.0),
        ("5min", 300.0),
        ("1h30m", 5400.0),
        ("1h 30m", 5400.0),
        (" 2 d ", 172800.0),
        ("1.5h", 5400.0),
        ("1w", 604800.0),
    ],
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "5", "m", "5 x", "-5m", "5m,", "5m 3", "1e3s", "٣m", "5M", "9" * 400 + "d", "1..5s", "inf", "nan s", "5m\0"],
)
def test_what_is_no_duration_is_refused_with_a_remedy(text: str) -> None:
    with pytest.raises(ValueError, match=r"write a number and a unit|use ms, s, m, h, d or w"):
        parse_duration(text)


@given(st.integers(0, 10**13))
def test_a_duration_survives_writing_and_reading(milliseconds: int) -> None:
    assert round(parse_duration(format_duration(milliseconds / 1000)) * 1000) == milliseconds


def test_durations_are_written_short() -> None:
    assert [format_duration(s) for s in (0, 0.5, 90, 3600, 5400, 432000)] == [
        "0s",
        "500ms",
        "1m30s",
        "1h",
        "1h30m",
        "5d",
    ]


@pytest.mark.parametrize(
    ("text", "octets"),
    [
        ("998", 998),
        ("998B", 998),
        ("1KB", 1000),
        ("64KiB", 65536),
        ("1.5 MiB", 1572864),
        ("1GB", 10**9),
        ("2TiB", 2**41),
    ],
)
def test_sizes_are_read(text: str, octets: int) -> None:
    assert parse_size(text) == octets


@pytest.mark.parametrize("text", ["", "MiB", "50mb", "-1", "50 M", "0x10", "1e3", "9" * 400, "٣", "1_000"])
def test_what_is_no_size_is_refused_with_a_remedy(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size: write a number and B"):
        parse_size(text)


@given(st.integers(0, 2**50))
def test_a_size_survives_writing_and_reading(octets: int) -> None:
    assert parse_size(format_size(octets)) == octets


@given(st.integers(0, 10**9), st.sampled_from([1.0, 60.0, 3600.0, 86400.0]))
def test_a_rate_survives_writing_and_reading(count: int, seconds: float) -> None:
    assert parse_rate(str(Rate(count, seconds))) == Rate(count, seconds)


@pytest.mark.parametrize(
    "text", ["", "600", "600/", "/min", "600/week", "6.5/s", "-6/s", "²/s", "600/min/h", "9" * 5000 + "/s"]
)
def test_what_is_no_rate_is_refused_with_a_remedy(text: str) -> None:
    with pytest.raises(ValueError, match="is not a rate: write a count"):
        parse_rate(text)


def test_shares_are_read() -> None:
    assert [parse_share(text) for text in ("0%", "5%", " 12.5 % ", "100%")] == [0.0, 0.05, 0.125, 1.0]


@pytest.mark.parametrize("text", ["", "5", "%", "-5%", "101%", "0.05", "٣%"])
def test_what_is_no_share_is_refused_with_a_remedy(text: str) -> None:
    with pytest.raises(ValueError, match="is not a share: write a percentage"):
        parse_share(text)


@given(st.text(alphabet="0123456789.smhdwinKMGTBi%/* ,eE+-_∞²٣\n", max_size=40))
@example("1" * 16 + "s")
def test_no_text_makes_a_parser_fail_in_another_way(text: str) -> None:
    for parse in (parse_duration, parse_size, parse_rate, parse_share):
        try:
            parse(text)
        except ValueError as error:
            assert ": " in str(error)
