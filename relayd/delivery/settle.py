"""From what an attempt found to what is written: pure deciders that turn outcomes and acts into settlements.

Policy after a failure is decided here and in core/lifecycle.py only; the dispatcher reports facts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from relayd.core.blocking import Block, suppression
from relayd.core.dsn import Kind, wanted
from relayd.core.event import Event, EventKind
from relayd.core.ids import format_id
from relayd.core.lifecycle import FINAL, SUPPRESS, Act, OnUncertain, Outcome, OutcomeKind, State, act, step
from relayd.core.mail import Message
from relayd.core.quick import quick
from relayd.core.retry import Schedule, next_due
from relayd.core.units import Millis, format_duration
from relayd.spool.store import Attempt, Change, Delivery, Notice, Settlement, Waiting

_TROUBLE = OutcomeKind.TROUBLE
_SECOND = 1000
_LATE = 60_000
"""How late the last attempt may be."""
RELEASED: Millis = 86_400_000
"""What was released after its lifetime is attempted once more, within this time."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What the configuration says about failures."""

    schedule: Schedule
    lifetime: Millis
    delay_notice: Millis
    """0: never."""
    notify: bool
    """Reports go to the envelope sender."""
    held_lifetime: Millis
    """The same as `lifetime`, of what is held."""


@quick
@dataclass(frozen=True, slots=True)
class Facts:
    """One attempt, as the dispatcher saw it."""

    message: Message
    recipients: tuple[Waiting, ...]
    outcomes: tuple[Outcome, ...]
    attempt: Attempt
    on_uncertain: OnUncertain
    dsn: bool
    """The upstream took over reporting success (RFC 3461 5.2.1)."""
    resume: Millis
    """When the upstream is tried again, for outcomes that are its own trouble."""


def settle_attempt(facts: Facts, policy: Policy, now: Millis, jitter: float) -> Settlement:
    """What the lifecycle table makes of an attempt. `jitter` is random, 0 to 1."""
    changes = [
        _change(facts, waiting, outcome, policy, now, jitter=jitter)
        for waiting, outcome in zip(facts.recipients, facts.outcomes, strict=True)
    ]
    return Settlement(facts.message.id, tuple(changes), facts.attempt)


def _change(facts: Facts, waiting: Waiting, outcome: Outcome, policy: Policy, now: Millis, *, jitter: float) -> Change:
    message = facts.message
    nxt = step(waiting.state, outcome.kind, facts.on_uncertain)
    attempts = waiting.attempts + nxt.counts
    due: Millis | None = None
    if nxt.retry:
        expires = message.accepted_at + policy.lifetime
        if outcome.kind is _TROUBLE:
            due = facts.resume
        else:
            due = next_due(policy.schedule, attempts, now, expires, jitter)
            if due is not None and outcome.retry_after:
                due = min(max(due, now + outcome.retry_after), expires)
        if due is None or now >= expires:
            return expire(message, waiting, policy, now, reply=str(outcome.reply), attempts=attempts)
    final = nxt.state in FINAL
    delayed = not final and delay_due(message, waiting, policy, now)
    if final:
        notice = _final_notice(message, waiting, nxt.state, policy, dsn=facts.dsn)
    else:
        notice = _delay_notice(message, waiting, policy) if delayed else None
    detail: dict[str, str | int | float | bool | None] = {
        "upstream": facts.attempt.upstream,
        "stage": str(outcome.stage),
        "reply": str(outcome.reply),
        "class": outcome.cls,
        "attempt": attempts,
        "delay_ms": now - message.accepted_at,
    }
    if facts.attempt.endpoint:
        detail["endpoint"] = facts.attempt.endpoint
    if facts.attempt.tls:
        detail["tls"] = facts.attempt.tls
    if due is not None:
        detail["due"] = due
    if outcome.kind is _TROUBLE:
        detail["upstream_trouble"] = True
    after = Waiting(
        waiting.n,
        waiting.recipient,
        waiting.lane,
        nxt.state,
        attempts,
        due,
        waiting.delayed or delayed,
        notice,
    )
    return Change(after, _event(message, waiting, nxt.event, now, detail))


def _event(
    message: Message,
    waiting: Waiting,
    kind: EventKind,
    now: Millis,
    detail: dict[str, str | int | float | bool | None],
) -> Event:
    return Event(now, message.id, waiting.n, kind, waiting.recipient.address, message.envelope.sender, detail)


_REPORT = {
    State.DELIVERED: (Kind.RELAYED, Notice.SUCCESS),
    State.BOUNCED: (Kind.FAILED, Notice.FAILURE),
    State.EXPIRED: (Kind.FAILED, Notice.FAILURE),
    State.SUPPRESSED: (Kind.FAILED, Notice.FAILURE),
}


def _may_report(message: Message, policy: Policy) -> bool:
    """A null sender never gets a report (RFC 5321 4.5.5), nor does anyone where bounces.notify is none.

    About what came back to us nobody is told anything: bounces of bounces end here.
    """
    return policy.notify and bool(message.envelope.sender) and not message.origin.inbound


def _final_notice(
    message: Message, waiting: Waiting, state: State, policy: Policy, *, dsn: bool = False
) -> Notice | None:
    """The report owed about a final state. With `dsn` the upstream reports success itself."""
    if state not in _REPORT:
        return None
    kind, notice = _REPORT[state]
    if not wanted(waiting.recipient.notify, kind) or not _may_report(message, policy):
        return None
    return None if dsn and state is State.DELIVERED else notice


def _delay_notice(message: Message, waiting: Waiting, policy: Policy) -> Notice | None:
    owed = _may_report(message, policy) and wanted(waiting.recipient.notify, Kind.DELAYED)
    return Notice.DELAY if owed else None


def delay_due(message: Message, waiting: Waiting, policy: Policy, now: Millis) -> bool:
    """Has it waited so long that the sender should hear of it, for the first time?"""
    return bool(policy.delay_notice) and not waiting.delayed and now - message.accepted_at >= policy.delay_notice


def delay(message: Message, waiting: Waiting, policy: Policy, now: Millis) -> Change:
    """The sender is to be told that a recipient's mail still waits (where NOTIFY and bounces.notify allow)."""
    notice = _delay_notice(message, waiting, policy)
    after = replace(waiting, delayed=True, notice=notice)
    detail: dict[str, str | int | float | bool | None] = {
        "delay_ms": now - message.accepted_at,
        "notice": notice is Notice.DELAY,
    }
    return Change(after, _event(message, waiting, EventKind.DELAYED, now, detail))


def overdue(delivery: Delivery, policy: Policy, now: Millis) -> bool:
    """Has the lifetime ended? The attempt that was put off to its very end (core/retry.py) is still made."""
    end = delivery.message.accepted_at + policy.lifetime
    if now < end:
        return False
    last = all(waiting.due == end for waiting in delivery.recipients)
    return now >= end + (_LATE if last else 0)


def expire(
    message: Message, waiting: Waiting, policy: Policy, now: Millis, *, reply: str = "", attempts: int | None = None
) -> Change:
    """The lifetime has ended without delivery."""
    held = waiting.state is State.HELD
    lifetime = policy.held_lifetime if held else policy.lifetime
    reason = f"554 4.4.7 Not delivered within {format_duration(lifetime / _SECOND)}" + ("; it was held" if held else "")
    detail: dict[str, str | int | float | bool | None] = {
        "upstream": waiting.lane,
        "reply": f"{reason}; last reply: {reply}" if reply else reason,
        "class": "expired",
        "attempt": waiting.attempts if attempts is None else attempts,
        "delay_ms": now - message.accepted_at,
    }
    notice = _final_notice(message, waiting, State.EXPIRED, policy)
    after = replace(
        waiting,
        state=State.EXPIRED,
        due=None,
        notice=notice,
        attempts=waiting.attempts if attempts is None else attempts,
    )
    return Change(after, _event(message, waiting, EventKind.EXPIRED, now, detail))


def suppress(message: Message, waiting: Waiting, block: Block, policy: Policy, now: Millis) -> Change:
    """The address is blocked: nothing is sent, and the sender is told."""
    detail: dict[str, str | int | float | bool | None] = {"upstream": waiting.lane, **suppression(block)}
    if block.message is not None:
        detail["cause"] = format_id(block.message)
    notice = _final_notice(message, waiting, SUPPRESS.state, policy)
    after = replace(waiting, state=SUPPRESS.state, due=None, notice=notice)
    return Change(after, _event(message, waiting, SUPPRESS.event, now, detail))


def steer(
    message: Message, recipients: Sequence[Waiting], deed: Act, policy: Policy, now: Millis, *, by: str, reason: str
) -> Settlement:
    """What an operator's act changes in one message; recipients that it does not change are left out."""
    changes = []
    for waiting in recipients:
        parked = waiting.state is State.UNCERTAIN and waiting.due is None
        nxt = act(waiting.state, deed, parked=parked, attempted=waiting.attempts > 0)
        if nxt is None:
            continue
        notice = _final_notice(message, waiting, nxt.state, policy) if nxt.state.final else None
        detail: dict[str, str | int | float | bool | None] = {"by": by, "reason": reason, "upstream": waiting.lane}
        if deed is Act.FAIL:
            detail |= {"reply": f"550 5.0.0 Failed by the operator: {reason or 'no reason given'}", "class": "policy"}
        after = replace(waiting, state=nxt.state, due=now if nxt.retry else None, notice=notice)
        changes.append(Change(after, _event(message, waiting, nxt.event, now, detail)))
    return Settlement(message.id, tuple(changes))


def hold_back(settlement: Settlement, now: Millis) -> Settlement:
    """In place of a settlement that cannot be written: its recipients wait for an operator, who is told what was to be.

    Only the plainest values are written, for something in the settlement could not be.
    """
    changes = []
    for change in settlement.changes:
        event = change.event
        reply = str(event.detail.get("reply", "")).encode("ascii", "replace").decode()[:200]
        reason = f"what became of it could not be written: {event.kind}; {reply or 'no reply'}"
        detail: dict[str, str | int | float | bool | None] = {"by": "relayd", "reason": reason}
        after = replace(change.after, state=State.HELD, due=None, notice=None, attempts=0)
        changes.append(Change(after, replace(event, at=now, kind=EventKind.HELD, detail=detail)))
    return Settlement(settlement.message, tuple(changes))


def move(
    message: Message, moving: Sequence[tuple[Waiting, str]], now: Millis, reason: str = "", by: str = ""
) -> Settlement:
    """These recipients go to other lanes: due there at once, unless held or parked.

    `by` is who did it by hand: such mail stays where it was put, whatever the routes say.
    """
    why: dict[str, str | int | float | bool | None] = {}
    if reason:
        why["reason"] = reason
    if by:
        why["by"] = by
    changes = tuple(
        Change(
            replace(waiting, lane=lane, due=None if waiting.due is None else now, notice=None),
            _event(message, waiting, EventKind.MOVED, now, {"from": waiting.lane, "upstream": lane, **why}),
        )
        for waiting, lane in moving
    )
    return Settlement(message.id, changes)
