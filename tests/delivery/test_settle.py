"""What is written after an attempt: states, due times, reports owed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from relayd.core.event import EventKind
from relayd.core.lifecycle import Act, OnUncertain, Outcome, OutcomeKind, Stage, State
from relayd.core.mail import Notify, Recipient
from relayd.core.reply import Reply
from relayd.core.retry import parse_schedule
from relayd.delivery.settle import Facts, Policy, delay, expire, move, settle_attempt, steer
from relayd.spool.store import Attempt, Change, Notice, Waiting
from tests.support.mail import make_message

ACCEPTED = 1_800_000_000_000
HOUR = 3_600_000
POLICY = Policy(
    parse_schedule("1m, 5m*2, 15m, 1h*"),
    lifetime=5 * 24 * HOUR,
    delay_notice=4 * HOUR,
    notify=True,
    held_lifetime=30 * 24 * HOUR,
)
MESSAGE = make_message(accepted_at=ACCEPTED)
TAKEN = Outcome(OutcomeKind.DELIVERED, Stage.DOT, Reply(250, "2.0.0", "ok"), "delivered")
NO_USER = Outcome(OutcomeKind.REJECTED, Stage.RCPT, Reply(550, "5.1.1", "no such user"), "user-unknown")
BUSY = Outcome(OutcomeKind.DEFERRED, Stage.RCPT, Reply(450, "4.2.1", "busy"), "mailbox-full")
SILENT = Outcome(OutcomeKind.UNCERTAIN, Stage.DOT, Reply(451, "4.4.2", "no reply"), "network-error")
LOGIN = Outcome(OutcomeKind.TROUBLE, Stage.AUTH, Reply(535, "5.7.8", "bad login"), "authentication-failed")


def waiting(n: int = 0, **more: object) -> Waiting:
    base = Waiting(n, Recipient(f"r{n}@example.org"), "acme", due=ACCEPTED)
    return replace(base, **more)  # type: ignore[arg-type]


def settle(
    outcome: Outcome,
    recipient: Waiting | None = None,
    *,
    now: int = ACCEPTED + 1000,
    policy: Policy = POLICY,
    on_uncertain: OnUncertain = OnUncertain.RETRY,
    dsn: bool = False,
    resume: int = 0,
) -> Change:
    attempt = Attempt(now, 5, "acme", "smtp.acme.example:587", "TLSv1.3", outcome.stage, "", None, (0,))
    facts = Facts(MESSAGE, (recipient or waiting(),), (outcome,), attempt, on_uncertain, dsn, resume)
    [change] = settle_attempt(facts, policy, now, 0.0).changes
    return change


def test_delivery_is_final_and_owes_nothing() -> None:
    change = settle(TAKEN)
    assert (change.after.state, change.after.due, change.after.notice) == (State.DELIVERED, None, None)
    assert change.event.kind is EventKind.DELIVERED
    assert change.event.detail["reply"] == "250 2.0.0 ok"


def test_a_deferral_is_tried_again_by_the_schedule() -> None:
    waits = []
    recipient = waiting()
    for _ in range(6):
        change = settle(BUSY, recipient)
        recipient = change.after
        assert recipient.due is not None
        waits.append((recipient.due - ACCEPTED - 1000) // 60_000)
    assert waits == [1, 5, 5, 15, 60, 60]
    assert recipient.attempts == 6


def test_the_upstreams_own_trouble_counts_no_attempt_and_waits_for_the_gate() -> None:
    resume = ACCEPTED + 77_000
    change = settle(LOGIN, waiting(attempts=2, state=State.DEFERRED), resume=resume)
    assert (change.after.state, change.after.attempts, change.after.due) == (State.DEFERRED, 2, resume)
    assert change.after.notice is None
    assert change.event.detail["upstream_trouble"] is True


@pytest.mark.parametrize("outcome", [BUSY, LOGIN, SILENT])
def test_the_lifetime_ends_in_every_waiting_state(outcome: Outcome) -> None:
    change = settle(outcome, waiting(attempts=9), now=ACCEPTED + POLICY.lifetime)
    assert change.after.state is State.EXPIRED
    assert change.after.notice is Notice.FAILURE
    assert change.event.kind is EventKind.EXPIRED
    assert str(outcome.reply) in str(change.event.detail["reply"])


def test_the_last_attempt_is_made_at_the_end_of_the_lifetime_rather_than_never() -> None:
    now = ACCEPTED + POLICY.lifetime - 60_000
    assert settle(BUSY, waiting(attempts=9), now=now).after.due == ACCEPTED + POLICY.lifetime


@pytest.mark.parametrize(("policy", "due"), [(OnUncertain.RETRY, ACCEPTED + 61_000), (OnUncertain.HOLD, None)])
def test_silence_after_the_dot_follows_the_upstreams_policy(policy: OnUncertain, due: int | None) -> None:
    change = settle(SILENT, on_uncertain=policy)
    assert (change.after.state, change.after.due) == (State.UNCERTAIN, due)


@pytest.mark.parametrize(
    ("notify", "outcome", "dsn", "owed"),
    [
        (set(), NO_USER, False, Notice.FAILURE),
        ({Notify.NEVER}, NO_USER, False, None),
        ({Notify.SUCCESS}, NO_USER, False, None),
        ({Notify.FAILURE}, NO_USER, False, Notice.FAILURE),
        (set(), TAKEN, False, None),
        ({Notify.SUCCESS}, TAKEN, False, Notice.SUCCESS),
        ({Notify.SUCCESS}, TAKEN, True, None),
        ({Notify.FAILURE}, TAKEN, False, None),
    ],
)
def test_a_report_is_owed_where_notify_asks_for_it(
    notify: set[Notify], outcome: Outcome, dsn: bool, owed: Notice | None
) -> None:
    recipient = waiting(recipient=Recipient("r0@example.org", frozenset(notify)))
    assert settle(outcome, recipient, dsn=dsn).after.notice is owed


def test_nobody_is_told_where_bounces_notify_is_none() -> None:
    assert settle(NO_USER, policy=replace(POLICY, notify=False)).after.notice is None


def test_a_null_sender_never_gets_a_report() -> None:
    null = replace(MESSAGE, envelope=replace(MESSAGE.envelope, sender=""))
    attempt = Attempt(ACCEPTED, 5, "acme", "", None, Stage.RCPT, "", None, (0,))
    facts = Facts(null, (waiting(),), (NO_USER,), attempt, OnUncertain.RETRY, dsn=False, resume=0)
    assert settle_attempt(facts, POLICY, ACCEPTED, 0.0).changes[0].after.notice is None


def test_the_delay_is_told_once() -> None:
    late = ACCEPTED + POLICY.delay_notice
    first = settle(BUSY, now=late).after
    assert (first.delayed, first.notice) == (True, Notice.DELAY)
    told = replace(first, notice=None)
    again = settle(BUSY, told, now=late + HOUR).after
    assert (again.delayed, again.notice) == (True, None)
    assert not settle(BUSY, now=late - 1).after.delayed
    assert not settle(BUSY, now=late, policy=replace(POLICY, delay_notice=0)).after.delayed


def test_the_delay_of_a_paused_upstream_is_told_as_well() -> None:
    change = delay(MESSAGE, waiting(), POLICY, ACCEPTED + 5 * HOUR)
    assert (change.after.notice, change.after.delayed, change.after.due) == (Notice.DELAY, True, ACCEPTED)
    silent = waiting(recipient=Recipient("r0@example.org", frozenset({Notify.NEVER})))
    change = delay(MESSAGE, silent, POLICY, ACCEPTED + 5 * HOUR)
    assert (change.after.notice, change.after.delayed) == (None, True)


def test_expiry_keeps_what_the_upstream_said_last() -> None:
    change = expire(MESSAGE, waiting(attempts=3), POLICY, ACCEPTED + POLICY.lifetime, reply="450 4.2.1 busy")
    assert (change.after.state, change.after.due, change.after.attempts) == (State.EXPIRED, None, 3)
    assert str(change.event.detail["reply"]).endswith("last reply: 450 4.2.1 busy")


def test_operators_acts_change_only_what_they_can() -> None:
    recipients = [waiting(0), waiting(1, state=State.HELD, due=None), waiting(2, state=State.DELIVERED, due=None)]
    held = steer(MESSAGE, recipients, Act.HOLD, POLICY, ACCEPTED, by="me", reason="why")
    assert [(c.after.n, c.after.state, c.after.due) for c in held.changes] == [(0, State.HELD, None)]
    released = steer(MESSAGE, recipients, Act.RELEASE, POLICY, ACCEPTED + 5, by="me", reason="")
    assert [(c.after.n, c.after.state, c.after.due) for c in released.changes] == [(1, State.QUEUED, ACCEPTED + 5)]
    failed = steer(MESSAGE, recipients, Act.FAIL, POLICY, ACCEPTED, by="me", reason="no")
    assert [(c.after.n, c.after.state, c.after.notice) for c in failed.changes] == [
        (0, State.BOUNCED, Notice.FAILURE),
        (1, State.BOUNCED, Notice.FAILURE),
    ]
    deleted = steer(MESSAGE, recipients, Act.DELETE, POLICY, ACCEPTED, by="me", reason="")
    assert all(c.after.notice is None for c in deleted.changes)


def test_moving_makes_it_due_at_the_other_upstream_at_once() -> None:
    [change] = move(MESSAGE, [(waiting(due=ACCEPTED + HOUR), "other")], ACCEPTED + 5).changes
    assert (change.after.lane, change.after.due, change.event.kind) == ("other", ACCEPTED + 5, EventKind.MOVED)
