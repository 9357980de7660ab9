"""Message ids keep time and slot, grow strictly, and survive being written and read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.core.ids import EPOCH, MAX_SLOT, IdMint, format_id, parse_id, slot_of, time_of

_ID = st.integers(0, 2**63 - 1)


@given(st.integers(EPOCH + 1, EPOCH + 2**41 - 1), st.integers(0, MAX_SLOT))
def test_an_id_tells_when_and_by_which_slot_it_was_made(now: int, slot: int) -> None:
    made = IdMint(slot).next(now)
    assert (time_of(made), slot_of(made)) == (now, slot)
    assert 0 <= made < 2**63


@given(st.lists(st.integers(-(10**6), 10**6), min_size=2, max_size=60), st.integers(0, MAX_SLOT))
def test_ids_grow_whatever_the_clock_does(steps: list[int], slot: int) -> None:
    mint, base = IdMint(slot), EPOCH + 10**9
    made = [mint.next(base + step) for step in steps]
    assert made == sorted(set(made))
    assert {slot_of(one) for one in made} == {slot}


def test_more_ids_than_a_millisecond_holds_borrow_the_next() -> None:
    mint, now = IdMint(7), EPOCH + 5000
    made = [mint.next(now) for _ in range(10_000)]
    assert made == sorted(set(made))
    assert {slot_of(one) for one in made} == {7}
    assert time_of(made[-1]) - now == 2


@given(_ID.filter(lambda one: one >> 22 < 2**41 - 2), st.integers(0, 2**40))
def test_what_is_on_disk_is_never_minted_again(newest: int, tick: int) -> None:
    mint = IdMint(slot_of(newest))
    mint.after(newest)
    assert mint.next(EPOCH + tick) > newest


@given(_ID)
def test_an_id_survives_writing_and_reading(one: int) -> None:
    text = format_id(one)
    assert len(text) == 13
    assert parse_id(text) == parse_id(f" {text.upper()} ") == one


@given(_ID, _ID)
def test_written_ids_sort_as_the_numbers_do(one: int, other: int) -> None:
    assert (format_id(one) < format_id(other)) == (one < other)


@pytest.mark.parametrize(
    "text", ["", "0", "0" * 14, "i" * 13, "u" * 13, "z" * 13, "8" + "0" * 12, "000000000000\u0660"]
)
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a message id"):
        parse_id(text)
