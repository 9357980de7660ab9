"""What is left out for mail that simply goes through: the long way round would find the same."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import example, given
from hypothesis import strategies as st

from relayd.config.models import Match, Route
from relayd.core.classes import ReplyClass
from relayd.core.lifecycle import Outcome, OutcomeKind, Stage
from relayd.core.mail import Envelope, Recipient
from relayd.core.reply import Reply, parse_reply
from relayd.core.session import Sent, all_delivered
from relayd.delivery.line import _THROUGH, trouble_in
from relayd.delivery.pace import too_fast
from relayd.delivery.routing import RouteTable
from relayd.delivery.storm import StormGuard, StormRule
from tests.support.mail import make_message

OUTCOMES = st.builds(
    Outcome,
    st.sampled_from(OutcomeKind),
    st.sampled_from(Stage),
    st.builds(Reply, st.sampled_from([250, 421, 450, 451, 452, 550]), st.just(""), st.just("words")),
    st.sampled_from([ReplyClass.RATE_LIMITED.value, ReplyClass.UNKNOWN.value, "delivered"]),
)
DELIVERED = Outcome(OutcomeKind.DELIVERED, Stage.DOT, Reply(250, "2.0.0", "Ok"), "delivered")


@given(st.lists(st.one_of(OUTCOMES, st.just(DELIVERED)), max_size=4), st.booleans())
def test_outcomes_that_are_all_delivered_need_no_other_question(outcomes: list[Outcome], suspicious: bool) -> None:
    guard = StormGuard(StormRule(20, 60_000))
    if suspicious:
        guard.refused("550 no such user", "a@example.com", 0, personal=True)
    assert guard.concerns(outcomes) == (suspicious or any(o.kind is OutcomeKind.REJECTED for o in outcomes))
    assert all_delivered(outcomes) == all(outcome.kind is OutcomeKind.DELIVERED for outcome in outcomes)
    if all_delivered(outcomes):
        assert trouble_in(Sent(tuple(outcomes), Stage.DOT, "", None, dsn=False)) is None
        assert not too_fast(outcomes)
        assert sum(outcome.kind in _THROUGH for outcome in outcomes) == len(outcomes)


NAMES = st.sampled_from(["one", "two", "three"])
UPSTREAMS = st.one_of(
    NAMES,
    st.lists(NAMES, min_size=1, max_size=3, unique=True),
    st.dictionaries(NAMES, st.integers(1, 9), min_size=1, max_size=2),
)
MATCHES = st.sampled_from([None, None, Match(recipient_domain="x.org"), Match(sender="nobody@*")])


@given(
    st.lists(st.tuples(MATCHES, UPSTREAMS), max_size=3),
    st.dictionaries(NAMES, NAMES, max_size=2),
    NAMES,
    st.booleans(),
)
def test_one_upstream_for_everything_is_what_the_rules_say(
    rules: Sequence[tuple[Match | None, str | list[str] | dict[str, int]]],
    overflows: dict[str, str],
    current: str,
    keep: bool,
) -> None:
    routes = [Route(match=match, upstream=upstream) for match, upstream in rules]
    table, long_way = RouteTable(routes, overflows), RouteTable(routes, overflows)
    long_way._only = None
    message, recipient = make_message(1, envelope=Envelope("a@shop.example.com")), Recipient("r@x.org")
    asked = (message, recipient, current)
    assert table.upstream_for(*asked, keep=keep) == long_way.upstream_for(*asked, keep=keep)


@given(
    st.integers(200, 599),
    st.sampled_from(["", "2.0.0 ", "5.1.1", "5.1.1  ", "4.2.1 4.2.1 ", "9.9.9 "]),
    st.text(max_size=60),
)
@example(250, "2.0.0 ", "Ok: queued as 4F1xyz")
@example(250, "", "")
def test_a_reply_of_one_clean_line_is_read_as_any_other(code: int, enhanced: str, text: str) -> None:
    line = (enhanced + text).replace("\n", " ")
    alone, general = parse_reply(code, line), parse_reply(code, line + "\n")  # a second line: nothing is left out
    assert (general.code, general.enhanced, general.text) == (code, alone.enhanced, alone.text + "\n")
