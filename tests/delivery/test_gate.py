"""The gate of an upstream: pauses grow, one message probes, success opens."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relayd.delivery.gate import FIRST_PAUSE, LONGEST_PAUSE, Gate


def test_trouble_closes_the_gate_for_a_growing_time() -> None:
    gate, now, pauses = Gate(), 1_000_000, []
    for _ in range(10):
        until = gate.trouble(now, "451 4.4.1 no answer", 0.0)
        pauses.append(until - now)
        assert not gate.may_take(until - 1)
        assert gate.may_take(until)
        gate.taken()
        now = until
    assert pauses[0] == FIRST_PAUSE
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE


def test_carriers_that_fail_together_are_one_trouble() -> None:
    gate = Gate()
    until = gate.trouble(1000, "down", 0.0)
    assert [gate.trouble(1000 + i, "down", 0.0) for i in range(20)] == [until] * 20
    assert gate.troubles == 1


def test_half_open_lets_one_message_through() -> None:
    gate = Gate()
    until = gate.trouble(0, "down", 0.0)
    assert gate.may_take(until)
    gate.taken()
    assert not gate.may_take(until + 10_000)
    gate.abandoned()
    assert gate.may_take(until)


def test_success_opens_it_and_says_so_once() -> None:
    gate = Gate()
    gate.trouble(0, "down", 0.0)
    assert gate.success()
    assert not gate.success()
    assert gate.may_take(0)
    assert not gate.paused


@given(st.lists(st.tuples(st.sampled_from(["trouble", "success", "abandoned", "take"]), st.integers(0, 400_000))))
def test_whatever_happens_it_never_stays_closed_for_longer_than_the_longest_pause(
    steps: list[tuple[str, int]],
) -> None:
    gate, now = Gate(), 1_000_000
    for what, wait in steps:
        now += wait
        if what == "trouble":
            gate.trouble(now, "down", 1.0)
        elif what == "success":
            gate.success()
        elif what == "abandoned":
            gate.abandoned()
        elif gate.may_take(now):
            gate.taken()
    gate.abandoned()
    assert gate.may_take(now + LONGEST_PAUSE * 5 // 4)


def test_a_clock_that_is_put_back_makes_no_pause_longer() -> None:
    gate = Gate()
    gate.trouble(86_400_000, "down", 0.0)
    assert gate.may_take(1000)
    gate.taken()
    until = gate.trouble(1000, "still down", 1.0)
    assert 1000 < until <= 1000 + LONGEST_PAUSE * 5 // 4


def test_a_pause_can_be_ended_for_a_probe_without_forgetting_the_trouble() -> None:
    gate = Gate()
    gate.trouble(1000, "wrong password", 0.0)
    gate.end_pause()
    assert gate.may_take(1000)
    assert gate.paused
    gate.taken()
    assert not gate.may_take(2000)
