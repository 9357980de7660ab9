"""The life of one recipient: its states, and the table of what attempts, acts and later facts mean for each.

Here is decided what becomes of a recipient, and nowhere else; callers report facts (an Outcome) and write
down what the table says. docs/architecture.md shows the same table.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from relayd.core.event import EventKind
from relayd.core.feedback import FeedbackKind
from relayd.core.quick import quick
from relayd.core.reply import Reply


class State(StrEnum):
    """Where a recipient stands. The last five are final."""

    QUEUED = "queued"
    """Waits for its first attempt."""
    DEFERRED = "deferred"
    """Waits for another attempt."""
    UNCERTAIN = "uncertain"
    """The message was sent whole but no reply came: it may have been delivered (RFC 1047)."""
    HELD = "held"
    """Waits for an operator."""
    DELIVERED = "delivered"
    BOUNCED = "bounced"
    EXPIRED = "expired"
    SUPPRESSED = "suppressed"
    DELETED = "deleted"

    @property
    def final(self) -> bool:
        """Nothing more will be attempted."""
        return self in FINAL


FINAL = frozenset({State.DELIVERED, State.BOUNCED, State.EXPIRED, State.SUPPRESSED, State.DELETED})
WAITING = frozenset(State) - FINAL


class OutcomeKind(StrEnum):
    """What one attempt meant for one recipient."""

    DELIVERED = "delivered"
    """The upstream took it: 2yz after the final dot."""
    REJECTED = "rejected"
    """5yz about this recipient or this message."""
    DEFERRED = "deferred"
    """4yz, a dropped connection or a time-out before the final dot: counts as an attempt."""
    UNCERTAIN = "uncertain"
    """Silence or a drop after the final dot."""
    TROUBLE = "trouble"
    """The upstream's own trouble (AUTH, TLS, connect, quota, sender refused): counts no attempt, blames nobody."""


class Stage(StrEnum):
    """Where in the dialogue with the upstream something happened."""

    CONNECT = "connect"
    TLS = "tls"
    EHLO = "ehlo"
    AUTH = "auth"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    DOT = "dot"
    LOCAL = "local"
    """Decided here before anything was sent: size, 8BITMIME, SMTPUTF8, expiry, an operator."""


@quick
@dataclass(frozen=True, slots=True)
class Outcome:
    """The fact that delivery reports about one recipient of one attempt."""

    kind: OutcomeKind
    stage: Stage
    reply: Reply
    """The upstream's, or one that we word for a failure without a reply (with X.4.x or X.7.x codes)."""
    cls: str = "unknown"
    """Class of core/classify.py, for metrics and people."""
    retry_after: int = 0
    """Milliseconds that a rule asks to wait, where the schedule would try sooner."""


@dataclass(frozen=True, slots=True)
class Step:
    """What the table says: the next state, the event to write, whether the attempt counts, whether to try again."""

    state: State
    event: EventKind
    counts: bool
    retry: bool


class OnUncertain(StrEnum):
    """The upstream's policy for post-dot silence."""

    RETRY = "retry"
    HOLD = "hold"


_DELIVERED = Step(State.DELIVERED, EventKind.DELIVERED, counts=True, retry=False)
_BOUNCED = Step(State.BOUNCED, EventKind.BOUNCED, counts=True, retry=False)
_DEFERRED = Step(State.DEFERRED, EventKind.DEFERRED, counts=True, retry=True)
_UNCERTAIN_RETRY = Step(State.UNCERTAIN, EventKind.UNCERTAIN, counts=True, retry=True)
_UNCERTAIN_HOLD = Step(State.UNCERTAIN, EventKind.UNCERTAIN, counts=True, retry=False)

ATTEMPTABLE = frozenset({State.QUEUED, State.DEFERRED, State.UNCERTAIN})
"""States from which an attempt can be made; a held recipient is released first."""


SUPPRESS = Step(State.SUPPRESSED, EventKind.SUPPRESSED, counts=False, retry=False)
"""What becomes of an attempt at an address that is blocked."""


def step(state: State, outcome: OutcomeKind, on_uncertain: OnUncertain = OnUncertain.RETRY) -> Step:
    """The lifecycle table: recipient state × outcome → step. Raises ValueError for a state that has no attempts."""
    if state not in ATTEMPTABLE:
        raise ValueError(f"a recipient that is {state} is not attempted")
    match outcome:
        case OutcomeKind.DELIVERED:
            return _DELIVERED
        case OutcomeKind.REJECTED:
            return _BOUNCED
        case OutcomeKind.DEFERRED:
            # what may already have arrived stays marked so: a later success is then a known duplicate
            return _UNCERTAIN_RETRY if state is State.UNCERTAIN else _DEFERRED
        case OutcomeKind.UNCERTAIN:
            return _UNCERTAIN_HOLD if on_uncertain is OnUncertain.HOLD else _UNCERTAIN_RETRY
        case OutcomeKind.TROUBLE:
            # the state stays what it was: the mail has not been tried in any sense that concerns the recipient
            return Step(state, EventKind.DEFERRED, counts=False, retry=True)


class Act(StrEnum):
    """What an operator, or the end of the lifetime, does to a waiting recipient."""

    HOLD = "hold"
    RELEASE = "release"
    RETRY = "retry"
    FAIL = "fail"
    DELETE = "delete"
    EXPIRE = "expire"


_ENDS = {
    Act.FAIL: Step(State.BOUNCED, EventKind.BOUNCED, counts=False, retry=False),
    Act.DELETE: Step(State.DELETED, EventKind.DELETED, counts=False, retry=False),
    Act.EXPIRE: Step(State.EXPIRED, EventKind.EXPIRED, counts=False, retry=False),
}


def act(state: State, deed: Act, *, parked: bool, attempted: bool) -> Step | None:
    """The other half of the table: waiting state × act → step; None where the act changes nothing.

    `parked`: uncertain and waiting for a decision (on_uncertain: hold). `attempted`: some attempt was counted.
    `Step.retry` means: due at once.
    """
    if state in FINAL:
        return None
    if deed in _ENDS:
        return _ENDS[deed]
    held = state is State.HELD
    if deed is Act.RELEASE:
        back = (State.DEFERRED if attempted else State.QUEUED) if held else state
        return Step(back, EventKind.RELEASED, counts=False, retry=True) if held or parked else None
    if held:
        return None
    if deed is Act.HOLD:
        return Step(State.HELD, EventKind.HELD, counts=False, retry=False)
    return Step(state, EventKind.RETRIED, counts=False, retry=True)


@dataclass(frozen=True, slots=True)
class Learned:
    """What the table says about a fact that came back: the state from now on, and the event to write."""

    state: State
    event: EventKind


_ENDED = FINAL - {State.DELIVERED}
_SUCCESS = frozenset({"delivered", "relayed", "expanded"})


def learn(state: State, kind: FeedbackKind, action: str, *, hard: bool) -> Learned:
    """The third part of the table: state × what came back after the mail had left us → state and event.

    A report with an action (RFC 3464 2.3.3, "" for none) is judged by it, one without by `hard`. The one way out of a
    final state is here: accepted by the upstream is not delivered.
    """
    if kind is FeedbackKind.COMPLAINT:
        return Learned(state, EventKind.COMPLAINED)
    if kind is FeedbackKind.AUTO_REPLY:
        return Learned(state, EventKind.REPLIED)
    if action in _SUCCESS or (not action and kind is FeedbackKind.DELIVERY_REPORT):
        if state is State.UNCERTAIN:
            # what was in doubt is known now, and is not sent again
            return Learned(State.DELIVERED, EventKind.DELIVERED)
        return Learned(state, EventKind.CONFIRMED)
    return _learn_failure(state, failed=action == "failed" or (not action and hard), hard=hard)


def _learn_failure(state: State, *, failed: bool, hard: bool) -> Learned:
    if not failed:
        return Learned(state, EventKind.POSTPONED)
    if state in _ENDED:
        return Learned(state, EventKind.NOTED)
    if hard or state in (State.DELIVERED, State.UNCERTAIN):
        return Learned(State.BOUNCED, EventKind.BOUNCED)
    # a copy of the mail that we know nothing of has failed for a passing reason: ours goes on
    return Learned(state, EventKind.POSTPONED)
