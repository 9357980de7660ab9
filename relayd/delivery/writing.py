"""Writes what attempts meant: one transaction for each settlement, written again and again where the disk refuses.

What an outcome means is settle.py's and core/lifecycle.py's; here it gets on disk, and lanes hear what came due.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

import structlog

from relayd.core.ids import MessageId, format_id
from relayd.core.lifecycle import Outcome, OutcomeKind
from relayd.core.mail import Message
from relayd.core.session import Sent, Session, all_delivered
from relayd.core.throttle import ThrottleAction, ThrottleRule, ruled
from relayd.core.units import Millis
from relayd.delivery.line import MOST_PUT_OFF, Line, Ruling
from relayd.delivery.observer import DeliveryObserver
from relayd.delivery.settle import Facts, Policy, hold_back, move, settle_attempt
from relayd.delivery.storm import StormGuard, Verdict, about_recipient, key_of, refusal
from relayd.delivery.suspense import Suspense
from relayd.spool.store import (
    Attempt,
    Delivery,
    NoSuchMessageError,
    Settlement,
    Store,
    StoreError,
    UnwritableError,
    Waiting,
)

WRITE_AGAIN = 0.5
"""Seconds until a settlement that failed is written again; longer each time."""


class Choose(Protocol):
    """The dispatcher's choice of lanes."""

    def __call__(self, message: Message, waiting: Waiting, *, keep: bool = False) -> str:
        """The lane that a recipient belongs in now, the one that it is in as long as that may be with `keep`."""


def stay(message: Message, waiting: Waiting, *, keep: bool = False) -> str:
    """Everything belongs where it is."""
    return waiting.lane


Wake = Callable[[str, Millis, MessageId | None], None]
"""Tells a lane that something in the store became due, maybe of this message."""


def by_rules(rules: Sequence[ThrottleRule], part: Sequence[Waiting], sent: Sent) -> tuple[Sent, Ruling | None]:
    """What rules make of a transaction; None where none fits, as a rule."""
    if all_delivered(sent.outcomes):
        return sent, None
    outcomes, pause, slow, elsewhere, fitting = [], 0, 0, set(), False
    for waiting, found in zip(part, sent.outcomes, strict=True):
        outcome, rule = ruled(rules, found)
        outcomes.append(outcome)
        if rule is None:
            continue
        fitting = True
        match rule.action:
            case ThrottleAction.PAUSE:
                pause = max(pause, rule.duration)
            case ThrottleAction.SLOW:
                slow = max(slow, rule.duration)
            case ThrottleAction.NEXT:
                elsewhere.add(waiting.n)
    if not fitting:
        return sent, None
    return replace(sent, outcomes=tuple(outcomes)), Ruling(pause, slow, frozenset(elsewhere))


class Writer:
    """Settlements of one worker, on its event loop."""

    def __init__(
        self,
        store: Store,
        policy: Policy,
        *,
        observer: DeliveryObserver,
        clock: Callable[[], Millis],
        owed: Callable[[], None],
        wake: Wake,
        rng: random.Random,
    ) -> None:
        self._store = store
        self.policy = policy
        """What the configuration says about failures now."""
        self._observer = observer
        self._clock = clock
        self._owed = owed
        self._wake = wake
        self._random = rng
        self.choose: Choose = stay
        """Where mail goes that its upstream's trouble keeps back; the dispatcher puts its own here."""
        self.other: Callable[[Message, Waiting], str | None] = lambda message, waiting: None
        """Another lane for a recipient, for rules that say so."""
        self._unsettled: set[asyncio.Task[None]] = set()
        self.suspense = Suspense(clock)
        self._log = structlog.get_logger("relayd.delivery")

    async def stop(self) -> None:
        """Give up what could not be written so far: it stands on disk as it was before the attempt."""
        self.suspense.stop()
        for task in self._unsettled:
            task.cancel()
        await asyncio.gather(*self._unsettled, return_exceptions=True)

    def settle(
        self,
        line: Line,
        delivery: Delivery,
        part: tuple[Waiting, ...],
        sent: Sent,
        *,
        started: Millis,
        session: Session | None,
        last: bool,
        endpoint: str = "",
    ) -> asyncio.Future[None]:
        """Decide what the attempt meant, tell the gate, and write it all in one transaction."""
        now, ruling = self._clock(), None
        if line.plan.rules:
            sent, ruling = by_rules(line.plan.rules, part, sent)
        resume = line.judge(sent, delivery.message.envelope.sender, now, started, ruling)
        if resume > now and len(line.put_off) < MOST_PUT_OFF:
            line.put_off.add(delivery.message.id)
        if resume > now and self.choose(delivery.message, part[0]) != line.lane.name:
            # another upstream carries it meanwhile: it is due at once, and moves (moving.py)
            resume = now
        attempt = Attempt(
            at=started,
            took=now - started,
            upstream=line.plan.name,
            endpoint=session.endpoint if session is not None else endpoint,
            tls=session.tls if session is not None else None,
            stage=sent.stage,
            reply=sent.reply,
            transcript=sent.transcript,
            recipients=tuple([waiting.n for waiting in part]),
        )
        self._observer.attempt(line.plan.name, (now - started) / 1000)
        facts = Facts(delivery.message, part, sent.outcomes, attempt, line.plan.on_uncertain, sent.dsn, resume)
        if ruling is not None and ruling.elsewhere:
            return self._elsewhere(line, facts, ruling.elsewhere, now, last=last)
        if line.guard is not None and line.guard.concerns(sent.outcomes):
            return self._guarded(line, line.guard, facts, now, last=last)
        return self.write(line, settle_attempt(facts, self.policy, now, self._random.random()), last=last)

    def _elsewhere(
        self, line: Line, facts: Facts, ns: frozenset[int], now: Millis, *, last: bool
    ) -> asyncio.Future[None]:
        """Settle what was found here; where a rule says so, recipients go by another upstream from now on."""
        settlement = settle_attempt(facts, self.policy, now, self._random.random())
        moving = [
            (change.after, lane)
            for change in settlement.changes
            if change.after.n in ns and change.after.due is not None
            if (lane := self.other(facts.message, change.after)) is not None
        ]
        written = self.write(line, settlement, last=last and not moving)
        if not moving:
            return written
        return self.write(line, move(facts.message, moving, now, "a rule about the reply"), last=last)

    def _guarded(self, line: Line, guard: StormGuard, facts: Facts, now: Millis, *, last: bool) -> asyncio.Future[None]:
        """Settle what is sure at once; refusals wait until it is sure that they are no storm."""
        message, lane = facts.message, line.lane.name
        proven = any(outcome.kind is OutcomeKind.DELIVERED for outcome in facts.outcomes)
        if proven and guard.delivered():
            self.suspense.look()
        sure: list[tuple[Waiting, Outcome]] = []
        suspects: list[tuple[Waiting, Outcome, str]] = []
        for waiting, outcome in zip(facts.recipients, facts.outcomes, strict=True):
            key, personal = "", about_recipient(outcome)
            if refusal(outcome) and not (proven and personal) and not self.suspense.full:
                key = key_of(outcome, (waiting.recipient.address, message.envelope.sender))
            if not key or line.standings.pardoned(lane, key):
                sure.append((waiting, outcome))
                continue
            suspects.append((waiting, outcome, key))
            verdict = guard.refused(key, waiting.recipient.address, now, personal=personal)
            if verdict is Verdict.STORM and not line.stormed():
                line.standings.storm(lane, str(outcome.reply), key, guard.count(key))
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if sure:
            some = replace(facts, recipients=tuple(w for w, _ in sure), outcomes=tuple(o for _, o in sure))
            settlement = settle_attempt(some, self.policy, now, self._random.random())
            written = self.write(line, settlement, last=last and not suspects)
        else:
            written.set_result(None)
        for place, (waiting, outcome, key) in enumerate(suspects):
            one = replace(facts, recipients=(waiting,), outcomes=(outcome,))
            line.park(message.id)
            recorded = bool(sure) or place > 0
            self.suspense.hold(line, key, partial(self._settle_suspect, line, one, recorded))
        if suspects and last:
            line.end(message.id)
        if line.stormed():
            self.suspense.look()
        return written

    def _settle_suspect(self, line: Line, facts: Facts, recorded: bool, storm: bool) -> None:
        """A refusal is decided. In a storm it is the upstream's trouble, and counts for nothing."""
        now = self._clock()
        if storm:
            outcomes = tuple(replace(outcome, kind=OutcomeKind.TROUBLE) for outcome in facts.outcomes)
            facts = replace(facts, outcomes=outcomes, resume=now)
        settlement = settle_attempt(facts, self.policy, now, self._random.random())
        written = self.write(line, replace(settlement, attempt=None) if recorded else settlement, last=False)
        written.add_done_callback(lambda _: line.unpark(facts.message.id))

    def write(self, line: Line, settlement: Settlement, *, last: bool) -> asyncio.Future[None]:
        """Write a settlement; with `last` the message is let go of once all of it is on disk."""
        written = self._store.settle(settlement)
        line.lane.writes(settlement.message)
        written.add_done_callback(partial(self._written, line, settlement, last))
        return written

    def _written(self, line: Line, settlement: Settlement, last: bool, written: asyncio.Future[None]) -> None:
        line.lane.written(settlement.message)
        if written.cancelled():
            return
        error = written.exception()
        if error is None:
            self._after(line, settlement, last)
            return
        if self._is_gone(error, settlement.message):
            if last:
                line.end(settlement.message)
            return
        if isinstance(error, UnwritableError):
            self._set_aside(line, settlement, last, error)
            return
        # what was delivered but is not written must not be taken for undelivered: nothing more goes out here
        # until it is
        line.cannot_write(settlement.message)
        if last:
            line.end(settlement.message)
        self._log.error("cannot write what became of a message", upstream=line.plan.name, error=str(error))
        task = asyncio.create_task(self._write_again(line, settlement), name=f"settle {format_id(settlement.message)}")
        self._unsettled.add(task)
        task.add_done_callback(self._unsettled.discard)

    def _set_aside(self, line: Line, settlement: Settlement, last: bool, error: UnwritableError) -> None:
        """What became of this one message can never be written: it is held for an operator, and the lane goes on."""
        message = settlement.message
        self._log.error(
            "message set aside: what became of it cannot be written",
            id=format_id(message),
            upstream=line.plan.name,
            error=str(error),
            events=[f"{change.event.kind} {change.event.recipient}" for change in settlement.changes],
        )
        line.park(message)
        if last:
            line.end(message)
        written = self._store.settle(hold_back(settlement, self._clock()))

        def done(written: asyncio.Future[None]) -> None:
            if not written.cancelled() and (again := written.exception()) is not None:
                # out of the window for as long as this process lives: it must not be sent a second time
                line.lane.banish(message)
                self._log.error("message cannot even be held", id=format_id(message), error=str(again))
            line.unpark(message)

        written.add_done_callback(done)

    async def _write_again(self, line: Line, settlement: Settlement) -> None:
        wait = WRITE_AGAIN
        while True:
            await asyncio.sleep(wait)
            wait = min(wait * 2, 15.0)
            try:
                await self._store.settle(settlement)
            except UnwritableError as error:
                self._set_aside(line, settlement, False, error)
                break
            except StoreError as error:
                if self._is_gone(error, settlement.message):
                    break
                self._log.error("still cannot write what became of a message", error=str(error))
            else:
                break
        line.written_at_last(settlement.message)
        self._after(line, settlement, last=False)
        line.crew.all_ready()

    def _is_gone(self, error: BaseException, message: MessageId) -> bool:
        """Its segment was damaged and set aside: there is nothing left that could be written to."""
        if not isinstance(error, NoSuchMessageError):
            return False
        self._log.error("what became of a message has no place any more", id=format_id(message), error=str(error))
        return True

    def _after(self, line: Line, settlement: Settlement, last: bool) -> None:
        """The settlement is on disk: make room in the window, and remember what is due and owed."""
        if last:
            line.end(settlement.message)
        for change in settlement.changes:
            if change.after.due is not None:
                if change.after.lane == line.lane.name:
                    line.lane.due_at(change.after.due)
                else:
                    self._wake(change.after.lane, change.after.due, settlement.message)
            if change.after.notice is not None:
                self._owed()
