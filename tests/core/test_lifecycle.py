"""The lifecycle table, row by row."""

from __future__ import annotations

import pytest

from relayd.core.event import EventKind
from relayd.core.feedback import FeedbackKind
from relayd.core.lifecycle import (
    ATTEMPTABLE,
    FINAL,
    Act,
    Learned,
    OnUncertain,
    OutcomeKind,
    State,
    Step,
    act,
    learn,
    step,
)

Q, D, U, H = State.QUEUED, State.DEFERRED, State.UNCERTAIN, State.HELD
RETRY, HOLD = OnUncertain.RETRY, OnUncertain.HOLD

ROWS = [
    (Q, OutcomeKind.DELIVERED, RETRY, Step(State.DELIVERED, EventKind.DELIVERED, counts=True, retry=False)),
    (D, OutcomeKind.DELIVERED, RETRY, Step(State.DELIVERED, EventKind.DELIVERED, counts=True, retry=False)),
    (U, OutcomeKind.DELIVERED, RETRY, Step(State.DELIVERED, EventKind.DELIVERED, counts=True, retry=False)),
    (Q, OutcomeKind.REJECTED, RETRY, Step(State.BOUNCED, EventKind.BOUNCED, counts=True, retry=False)),
    (D, OutcomeKind.REJECTED, RETRY, Step(State.BOUNCED, EventKind.BOUNCED, counts=True, retry=False)),
    (U, OutcomeKind.REJECTED, RETRY, Step(State.BOUNCED, EventKind.BOUNCED, counts=True, retry=False)),
    (Q, OutcomeKind.DEFERRED, RETRY, Step(D, EventKind.DEFERRED, counts=True, retry=True)),
    (D, OutcomeKind.DEFERRED, RETRY, Step(D, EventKind.DEFERRED, counts=True, retry=True)),
    (U, OutcomeKind.DEFERRED, RETRY, Step(U, EventKind.UNCERTAIN, counts=True, retry=True)),
    (Q, OutcomeKind.UNCERTAIN, RETRY, Step(U, EventKind.UNCERTAIN, counts=True, retry=True)),
    (D, OutcomeKind.UNCERTAIN, RETRY, Step(U, EventKind.UNCERTAIN, counts=True, retry=True)),
    (Q, OutcomeKind.UNCERTAIN, HOLD, Step(U, EventKind.UNCERTAIN, counts=True, retry=False)),
    (U, OutcomeKind.UNCERTAIN, HOLD, Step(U, EventKind.UNCERTAIN, counts=True, retry=False)),
    (Q, OutcomeKind.TROUBLE, RETRY, Step(Q, EventKind.DEFERRED, counts=False, retry=True)),
    (D, OutcomeKind.TROUBLE, RETRY, Step(D, EventKind.DEFERRED, counts=False, retry=True)),
    (U, OutcomeKind.TROUBLE, HOLD, Step(U, EventKind.DEFERRED, counts=False, retry=True)),
]


@pytest.mark.parametrize(("state", "outcome", "policy", "expected"), ROWS)
def test_an_attempt_steps_as_the_table_says(
    state: State, outcome: OutcomeKind, policy: OnUncertain, expected: Step
) -> None:
    assert step(state, outcome, policy) == expected


@pytest.mark.parametrize("state", [*sorted(FINAL), H])
@pytest.mark.parametrize("outcome", list(OutcomeKind))
def test_final_and_held_recipients_are_never_attempted(state: State, outcome: OutcomeKind) -> None:
    with pytest.raises(ValueError, match="not attempted"):
        step(state, outcome)


def test_only_rejection_bounces_and_only_delivery_delivers() -> None:
    for state in ATTEMPTABLE:
        for outcome in OutcomeKind:
            for policy in OnUncertain:
                nxt = step(state, outcome, policy)
                assert (nxt.state is State.BOUNCED) == (outcome is OutcomeKind.REJECTED)
                assert (nxt.state is State.DELIVERED) == (outcome is OutcomeKind.DELIVERED)
                assert nxt.retry != nxt.state.final or (policy is HOLD and outcome is OutcomeKind.UNCERTAIN)


ACTS = [
    (Q, Act.HOLD, False, False, (H, EventKind.HELD, False)),
    (U, Act.HOLD, True, True, (H, EventKind.HELD, False)),
    (H, Act.HOLD, False, False, None),
    (H, Act.RELEASE, False, False, (Q, EventKind.RELEASED, True)),
    (H, Act.RELEASE, False, True, (D, EventKind.RELEASED, True)),
    (U, Act.RELEASE, True, True, (U, EventKind.RELEASED, True)),
    (U, Act.RELEASE, False, True, None),
    (Q, Act.RELEASE, False, False, None),
    (D, Act.RETRY, False, True, (D, EventKind.RETRIED, True)),
    (H, Act.RETRY, False, True, None),
    (H, Act.FAIL, False, True, (State.BOUNCED, EventKind.BOUNCED, False)),
    (D, Act.FAIL, False, True, (State.BOUNCED, EventKind.BOUNCED, False)),
    (H, Act.DELETE, False, False, (State.DELETED, EventKind.DELETED, False)),
    (Q, Act.DELETE, False, False, (State.DELETED, EventKind.DELETED, False)),
    (D, Act.EXPIRE, False, True, (State.EXPIRED, EventKind.EXPIRED, False)),
    (U, Act.EXPIRE, True, True, (State.EXPIRED, EventKind.EXPIRED, False)),
]


@pytest.mark.parametrize(("state", "deed", "parked", "attempted", "expected"), ACTS)
def test_an_act_steps_as_the_table_says(
    state: State,
    deed: Act,
    parked: bool,
    attempted: bool,
    expected: tuple[State, EventKind, bool] | None,
) -> None:
    nxt = act(state, deed, parked=parked, attempted=attempted)
    assert (nxt and (nxt.state, nxt.event, nxt.retry)) == expected
    assert nxt is None or not nxt.counts


@pytest.mark.parametrize("state", sorted(FINAL))
@pytest.mark.parametrize("deed", list(Act))
def test_the_first_final_state_stands(state: State, deed: Act) -> None:
    assert act(state, deed, parked=False, attempted=True) is None


DELIVERED, BOUNCED = State.DELIVERED, State.BOUNCED
BOUNCE, REPORT = FeedbackKind.BOUNCE, FeedbackKind.DELIVERY_REPORT
FACTS = [
    # accepted by the upstream is not delivered
    (DELIVERED, BOUNCE, "failed", True, Learned(BOUNCED, EventKind.BOUNCED)),
    (DELIVERED, BOUNCE, "failed", False, Learned(BOUNCED, EventKind.BOUNCED)),
    (DELIVERED, BOUNCE, "", True, Learned(BOUNCED, EventKind.BOUNCED)),
    (DELIVERED, BOUNCE, "", False, Learned(DELIVERED, EventKind.POSTPONED)),
    (DELIVERED, BOUNCE, "delayed", False, Learned(DELIVERED, EventKind.POSTPONED)),
    (DELIVERED, BOUNCE, "delayed", True, Learned(DELIVERED, EventKind.POSTPONED)),
    (DELIVERED, BOUNCE, "relayed", False, Learned(DELIVERED, EventKind.CONFIRMED)),
    # what was in doubt is known now
    (U, BOUNCE, "failed", False, Learned(BOUNCED, EventKind.BOUNCED)),
    (U, BOUNCE, "delayed", False, Learned(U, EventKind.POSTPONED)),
    (U, REPORT, "delivered", False, Learned(DELIVERED, EventKind.DELIVERED)),
    (U, REPORT, "", False, Learned(DELIVERED, EventKind.DELIVERED)),
    (U, FeedbackKind.AUTO_REPLY, "", False, Learned(U, EventKind.REPLIED)),
    # a copy that we know nothing of
    (Q, BOUNCE, "failed", True, Learned(BOUNCED, EventKind.BOUNCED)),
    (D, BOUNCE, "failed", True, Learned(BOUNCED, EventKind.BOUNCED)),
    (H, BOUNCE, "failed", True, Learned(BOUNCED, EventKind.BOUNCED)),
    (Q, BOUNCE, "failed", False, Learned(Q, EventKind.POSTPONED)),
    (D, BOUNCE, "failed", False, Learned(D, EventKind.POSTPONED)),
    (H, BOUNCE, "failed", False, Learned(H, EventKind.POSTPONED)),
    (D, REPORT, "delivered", False, Learned(D, EventKind.CONFIRMED)),
    # ended already
    (BOUNCED, BOUNCE, "failed", True, Learned(BOUNCED, EventKind.NOTED)),
    (State.EXPIRED, BOUNCE, "failed", True, Learned(State.EXPIRED, EventKind.NOTED)),
    (State.SUPPRESSED, BOUNCE, "", True, Learned(State.SUPPRESSED, EventKind.NOTED)),
    (State.DELETED, BOUNCE, "failed", False, Learned(State.DELETED, EventKind.NOTED)),
    (BOUNCED, BOUNCE, "delayed", False, Learned(BOUNCED, EventKind.POSTPONED)),
    (BOUNCED, REPORT, "expanded", False, Learned(BOUNCED, EventKind.CONFIRMED)),
    # what changes no state anywhere
    (DELIVERED, FeedbackKind.COMPLAINT, "", False, Learned(DELIVERED, EventKind.COMPLAINED)),
    (DELIVERED, FeedbackKind.COMPLAINT, "failed", True, Learned(DELIVERED, EventKind.COMPLAINED)),
    (BOUNCED, FeedbackKind.COMPLAINT, "", False, Learned(BOUNCED, EventKind.COMPLAINED)),
    (DELIVERED, FeedbackKind.AUTO_REPLY, "", False, Learned(DELIVERED, EventKind.REPLIED)),
    (DELIVERED, REPORT, "delivered", False, Learned(DELIVERED, EventKind.CONFIRMED)),
    (DELIVERED, REPORT, "relayed", False, Learned(DELIVERED, EventKind.CONFIRMED)),
    (DELIVERED, REPORT, "expanded", False, Learned(DELIVERED, EventKind.CONFIRMED)),
    (DELIVERED, REPORT, "", False, Learned(DELIVERED, EventKind.CONFIRMED)),
]


@pytest.mark.parametrize(("state", "kind", "action", "hard", "expected"), FACTS)
def test_a_later_fact_steps_as_the_table_says(
    state: State, kind: FeedbackKind, action: str, hard: bool, expected: Learned
) -> None:
    assert learn(state, kind, action, hard=hard) == expected


@pytest.mark.parametrize("state", State)
def test_a_fact_makes_nothing_wait_again_and_leaves_ended_recipients_alone(state: State) -> None:
    for kind in FeedbackKind:
        for action in ("", "failed", "delayed", "delivered", "relayed", "expanded"):
            for hard in (True, False):
                after = learn(state, kind, action, hard=hard).state
                assert after is state or after in (BOUNCED, DELIVERED)
                assert after is state or state not in FINAL or (state, after) == (DELIVERED, BOUNCED)
