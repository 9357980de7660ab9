"""The retry schedule: what is read is what is waited, and the lifetime is the end of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.core.retry import Schedule, next_due, parse_schedule
from relayd.core.units import format_duration

M, H = 60.0, 3600.0
_ITEM = st.tuples(st.integers(1, 10**8).map(lambda ms: ms / 1000), st.integers(1, 5))


def test_the_default_schedule_means_what_it_says() -> None:
    schedule = parse_schedule("1m, 5m*2, 15m, 1h*3, 4h*")
    assert schedule.waits == (M, 5 * M, 5 * M, 15 * M, H, H, H, 4 * H)
    assert [schedule.wait(n) for n in (1, 2, 3, 4, 7, 8, 9, 1000)] == [M, 5 * M, 5 * M, 15 * M, H, 4 * H, 4 * H, 4 * H]
    assert str(schedule) == "1m, 5m*2, 15m, 1h*3, 4h*"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is not a duration"),
        ("1m,", "is not a duration"),
        ("1m, x", "is not a duration"),
        ("0s", "longer than zero"),
        ("4h*, 1m", "repeats for ever"),
        ("1m*0", "how often after the"),
        ("1m*x", "how often after the"),
        ("1m*²", "how often after the"),
        ("1m*1001", "how often after the"),
        ("1m*" + "9" * 5000, "how often after the"),
        ("1m*1000, 1m*1000", "more than 1000 waits"),
        ("1m * 2 * 3", "how often after the"),
    ],
)
def test_a_faulty_schedule_is_refused_with_the_reason(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_schedule(text)


@given(st.lists(_ITEM, min_size=1, max_size=8), st.booleans())
def test_a_schedule_survives_writing_and_reading(items: list[tuple[float, int]], endless: bool) -> None:
    texts = [format_duration(wait) + (f"*{times}" if times > 1 else "") for wait, times in items]
    last = format_duration(items[-1][0]) + "*"
    schedule = parse_schedule(",".join([*texts, last] if endless else texts))
    expected = [wait for wait, times in items for _ in range(times)] + ([items[-1][0]] if endless else [])
    assert schedule.waits == pytest.approx(expected)
    assert parse_schedule(str(schedule)) == schedule


@given(
    waits=st.lists(st.integers(1, 10**6), min_size=1, max_size=6),
    attempts=st.integers(1, 20),
    now=st.integers(0, 10**13),
    left=st.integers(-1000, 10**10),
    jitter=st.floats(0, 1),
)
def test_the_next_attempt_lies_between_now_and_the_end_of_the_lifetime(
    waits: list[int], attempts: int, now: int, left: int, jitter: float
) -> None:
    schedule = Schedule(tuple(map(float, waits)), "")
    due = next_due(schedule, attempts, now, now + left, jitter)
    if left <= 0:
        assert due is None
        return
    wait = schedule.wait(attempts) * 1000
    assert due is not None
    assert now < due <= now + left
    assert due == now + left or now + wait <= due <= now + wait * 1.1 + 1
