"""Senders that an upstream refuses: taken for everybody's trouble first, then each waits alone, for a growing time."""

from __future__ import annotations

from relayd.delivery.senders import LONGEST, MOST, RefusedSenders
from tests.support.dispatching import NOT_YOU


def test_a_refusal_may_be_everybodys_until_mail_of_another_goes_through() -> None:
    senders = RefusedSenders()
    assert senders.refused("bad@x", NOT_YOU, 1000, 0.0) is None
    assert senders.waits("bad@x", 1000) is None
    senders.works("good@x")
    until = senders.refused("bad@x", NOT_YOU, 2000, 0.0)
    assert until is not None
    assert senders.waits("bad@x", 2000) == (NOT_YOU, until)
    assert senders.waits("bad@x", until) is None
    assert senders.waits("good@x", 2000) is None


def test_its_waits_grow_to_an_hour_and_end_when_it_works() -> None:
    senders, now, waits = RefusedSenders(), 1000, []
    senders.refused("bad@x", NOT_YOU, now, 0.0)
    senders.works("good@x")
    for _ in range(14):
        until = senders.refused("bad@x", NOT_YOU, now, 0.0)
        assert until is not None
        assert senders.refused("bad@x", NOT_YOU, now + 1, 0.0) == until
        waits.append(until - now)
        now = until
    assert waits == sorted(waits)
    assert waits[-1] == LONGEST
    senders.works("bad@x")
    assert not len(senders)


def test_a_clock_that_is_put_back_makes_no_sender_wait_longer() -> None:
    senders = RefusedSenders()
    senders.refused("bad@x", NOT_YOU, 10 * LONGEST, 0.0)
    senders.works("good@x")
    senders.refused("bad@x", NOT_YOU, 10 * LONGEST, 0.0)
    assert senders.waits("bad@x", 1000) is None


def test_no_more_than_so_many_are_remembered() -> None:
    senders = RefusedSenders()
    for number in range(MOST + 5):
        senders.refused(f"{number}@x", NOT_YOU, 1000, 0.0)
    assert len(senders) == MOST
