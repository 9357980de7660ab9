"""Queue filters: what they match, how they travel, and that the database agrees with them."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.core.lifecycle import WAITING, State
from relayd.spool import schema, search
from relayd.spool.codec import message_row, recipient_row
from relayd.spool.filter import QueueFilter
from tests.support.mail import NOW, make_message, make_waiting

MESSAGE = make_message(sender="News@Shop.example.com")
QUEUED = make_waiting(0, "Someone@example.ORG")


@pytest.mark.parametrize(
    ("conditions", "meant"),
    [
        ({}, True),
        ({"sender": "news@shop.example.com"}, True),
        ({"sender": "news@*"}, True),
        ({"sender": "*@example.com"}, False),
        ({"sender": "<>"}, False),
        ({"sender": ""}, False),
        ({"sender": "new?@*.com"}, True),
        ({"sender": "[n]ews@*"}, False),
        ({"sender_domain": "shop.example.com"}, True),
        ({"sender_domain": "*.EXAMPLE.com"}, True),
        ({"sender_domain": "example.com"}, False),
        ({"recipient": "someone@example.org"}, True),
        ({"recipient": "someone"}, False),
        ({"upstream": "acme"}, True),
        ({"upstream": "Acme"}, False),
        ({"upstream": ""}, False),
        ({"older_than": NOW}, False),
        ({"older_than": NOW + 1}, True),
        ({"newer_than": NOW}, True),
        ({"newer_than": NOW + 1}, False),
        ({"states": frozenset({State.QUEUED, State.HELD})}, True),
        ({"states": frozenset({State.HELD})}, False),
        ({"ids": frozenset({MESSAGE.id})}, True),
        ({"ids": frozenset({5})}, False),
        ({"sender": "news@*", "upstream": "other"}, False),
    ],
)
def test_all_given_conditions_must_hold(conditions: dict[str, object], meant: bool) -> None:
    assert QueueFilter(**conditions).matches(MESSAGE, QUEUED) is meant  # type: ignore[arg-type]


def test_without_states_only_what_is_not_final_is_meant() -> None:
    for state in State:
        waiting = make_waiting(state=state)
        assert QueueFilter().matches(MESSAGE, waiting) is (state in WAITING)
        assert QueueFilter(states=frozenset({state})).matches(MESSAGE, waiting)


texts = st.text(st.sampled_from("aB*?[]@.éß"), max_size=6)
filters = st.builds(
    QueueFilter,
    sender=st.none() | texts,
    sender_domain=st.none() | texts,
    recipient=st.none() | texts,
    upstream=st.none() | st.sampled_from(["", "acme"]),
    older_than=st.none() | st.integers(NOW - 5, NOW + 5),
    newer_than=st.none() | st.integers(NOW - 5, NOW + 5),
    states=st.frozensets(st.sampled_from(State), max_size=3),
    ids=st.frozensets(st.just(MESSAGE.id) | st.integers(0, 2**63 - 1), max_size=3),
)


@given(filters)
def test_filters_travel_as_json(wanted: QueueFilter) -> None:
    assert QueueFilter.from_dict(wanted.to_dict()) == wanted


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"sendr": "x"}, "'sendr' is not a condition: use sender"),
        ({"sender": 5}, "'sender' takes text"),
        ({"older_than": "1h"}, "'older_than' takes a moment"),
        ({"older_than": True}, "'older_than' takes a moment"),
        ({"states": ["flying"]}, "flying"),
        ({"states": "held"}, "'states' takes a list"),
        ({"ids": [5]}, "'ids' takes a list"),
        ({"ids": ["xyz"]}, "not a message id"),
    ],
)
def test_what_is_no_filter_is_refused(values: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        QueueFilter.from_dict(values)


@given(
    wanted=filters,
    sender=texts,
    address=texts,
    state=st.sampled_from([State.QUEUED, State.HELD, State.DELIVERED]),
)
@settings(deadline=None)
def test_the_database_agrees(wanted: QueueFilter, sender: str, address: str, state: State) -> None:
    message = make_message(MESSAGE.id, sender=sender)
    waiting = make_waiting(0, address, state=state)
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        db.executescript(schema.TABLES)
        db.execute(f"INSERT INTO message VALUES ({', '.join('?' * 10)})", message_row(message))
        db.execute(f"INSERT INTO recipient VALUES ({', '.join('?' * 12)})", recipient_row(message.id, waiting, 0))
        found = search.matching(db, wanted, 0, 10)
    assert bool(found) is wanted.matches(message, waiting)


def test_a_pattern_of_many_stars_takes_no_time() -> None:
    assert not QueueFilter(sender="*" * 50 + "x").matches(make_message(sender="a" * 5000), QUEUED)


def test_a_filter_is_a_value() -> None:
    assert len({QueueFilter(sender="a"), QueueFilter(sender="a"), QueueFilter(sender="b")}) == 2


def test_an_upstream_is_meant_with_its_accounts_and_a_lane_alone() -> None:
    message, waiting = make_message(), make_waiting(lane="team/a@example.jp")
    assert QueueFilter(upstream="team").matches(message, waiting)
    assert QueueFilter(upstream="team/a@example.jp").matches(message, waiting)
    assert not QueueFilter(upstream="tea").matches(message, waiting)
    assert not QueueFilter(upstream="team/a").matches(message, waiting)
    assert not QueueFilter(lane="team").matches(message, waiting)
    assert QueueFilter(upstream="").matches(message, make_waiting(lane=""))
