"""Which of several upstreams: by order, by weight, passing over what cannot be used."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from relayd.config.models import Route
from relayd.core.mail import Envelope, Recipient
from relayd.delivery.failover import Option, Unavailable, Why, choose, weighted
from relayd.delivery.routing import RouteTable
from tests.support.mail import make_message

PAUSED = Unavailable(Why.PAUSED, "no connection")
EXHAUSTED = Unavailable(Why.EXHAUSTED, "10000/day")
SUSPENDED = Unavailable(Why.SUSPENDED, "by hand")


def by(**standing: Unavailable) -> object:
    return standing.get


def pick(current: str = "", *options: Option, **standing: Unavailable) -> str | None:
    return choose(options or [Option("a"), Option("b"), Option("c")], current, standing.get)


def test_the_first_that_can_be_used_carries_new_mail() -> None:
    assert pick() == "a"
    assert pick(a=PAUSED) == "b"
    assert pick(a=SUSPENDED, b=PAUSED) == "c"


def test_mail_stays_where_it_is_while_that_can_be_used() -> None:
    assert pick("b") == "b"
    assert pick("b", b=PAUSED) == "a"
    assert pick("gone") == "a"


def test_where_none_can_be_used_mail_waits_where_it_is_likeliest_to_go_on() -> None:
    assert pick(a=SUSPENDED, b=PAUSED, c=PAUSED) == "b"
    assert pick("c", a=SUSPENDED, b=PAUSED, c=PAUSED) == "c"
    assert pick("a", a=SUSPENDED, b=SUSPENDED, c=EXHAUSTED) == "c"
    assert pick("b", a=SUSPENDED, b=SUSPENDED, c=SUSPENDED) == "b"


def test_an_overflow_stands_in_only_for_a_day_that_is_used_up() -> None:
    options = (Option("a"), Option("over", "a"))
    assert pick("", *options) == "a"
    assert pick("", *options, a=PAUSED) == "a"
    assert pick("a", *options, a=EXHAUSTED) == "over"
    assert pick("over", *options) == "a"


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 100), min_size=1), st.integers(0, 2**63 - 1))
def test_an_order_by_weight_holds_each_name_once_and_leaves_the_others_in_place(
    weights: dict[str, int], message: int
) -> None:
    order = weighted(message, weights)
    assert sorted(order) == sorted(weights)
    rest = {name: weight for name, weight in weights.items() if name != order[0]}
    assert weighted(message, rest) == order[1:]


def test_weights_hold_within_statistics() -> None:
    counts = Counter(weighted(number << 12, {"a": 80, "b": 20})[0] for number in range(20_000))
    assert abs(counts["a"] / 20_000 - 0.8) < 0.015


def test_a_message_keeps_its_upstream_whoever_asks() -> None:
    tables = [RouteTable([Route(upstream={"a": 50, "b": 50})]) for _ in range(2)]
    for number in range(200):
        message = make_message(number << 22, envelope=Envelope("s@example.com"))
        lanes = {table.upstream_for(message, Recipient(f"r{n}@example.org")) for table in tables for n in range(3)}
        assert len(lanes) == 1


def test_what_may_have_arrived_stays_with_its_upstream() -> None:
    table = RouteTable([Route(upstream=["a", "b"])])
    table.standing = {"a": PAUSED}.get
    message = make_message(1, envelope=Envelope("s@example.com"))
    assert table.upstream_for(message, Recipient("r@example.org"), "a") == "b"
    assert table.upstream_for(message, Recipient("r@example.org"), "a", keep=True) == "a"
    assert table.upstream_for(message, Recipient("r@example.org"), "gone", keep=True) == "b"
