"""The pipeline of one attempt, readable on one page: look at the route again, open, sign, send, settle.

Lanes queue, crews carry, sessions speak SMTP, settle.py decides: here they are put together, for one worker.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from urllib.parse import quote

import structlog

from relayd.core.blocking import Block
from relayd.core.ids import MessageId, format_id
from relayd.core.lifecycle import Outcome, OutcomeKind, Stage
from relayd.core.mail import Message, Recipient
from relayd.core.reply import Reply
from relayd.core.session import ConnectFailedError, Outgoing, Sent, Session
from relayd.core.units import Millis
from relayd.delivery.crew import Carrier, Crew
from relayd.delivery.dkim import SigningPool
from relayd.delivery.lanes import Lane
from relayd.delivery.line import Line, UpstreamPlan, trouble_in
from relayd.delivery.observer import DeliveryObserver
from relayd.delivery.rerouting import Rerouting
from relayd.delivery.routing import RouteTable
from relayd.delivery.settle import Facts, Policy, expire, move, overdue, settle_attempt, suppress
from relayd.delivery.slots import ConnectionSlots
from relayd.intake.memory import MemoryBudget
from relayd.spool.filter import QueueFilter
from relayd.spool.store import Attempt, Delivery, NoSuchMessageError, Settlement, Store, StoreError, Waiting

__all__ = ["Dispatcher", "Plan", "UpstreamPlan"]

_LEAVE = 900.0
"""Seconds for what a removed upstream has in hand."""
WRITE_AGAIN = 0.5
"""Seconds until a settlement that failed is written again; longer each time."""

_INTERNAL = Outcome(
    OutcomeKind.DEFERRED, Stage.LOCAL, Reply(451, "4.3.0", "Internal error; it is logged"), "system-error"
)


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that a configuration says about delivery."""

    upstreams: Mapping[str, UpstreamPlan]
    table: RouteTable
    signing: SigningPool
    policy: Policy
    window: int


def _never(message: Message, address: str) -> Block | None:
    """Nobody is blocked."""
    return None


class Dispatcher:
    """Delivery of one worker. All methods are called on its event loop."""

    def __init__(
        self,
        store: Store,
        memory: MemoryBudget,
        plan: Plan,
        *,
        observer: DeliveryObserver,
        clock: Callable[[], Millis],
        owed: Callable[[], None],
        blocked: Callable[[Message, str], Block | None] = _never,
        run_dir: Path,
        slot: int = 0,
        slots: int = 1,
    ) -> None:
        self._store = store
        self._memory = memory
        self._plan = plan
        self._observer = observer
        self._clock = clock
        self._owed = owed
        self._blocked = blocked
        self._run_dir = run_dir
        self._slot, self._slots = slot, slots
        self._lines: dict[str, Line] = {}
        self._leaving: dict[str, tuple[Line, asyncio.Task[None]]] = {}
        """Upstreams that the configuration has no more, until their hands are empty."""
        self._claimed: set[MessageId] = set()
        self._rerouting = Rerouting(store, self, clock)
        self._unsettled: set[asyncio.Task[None]] = set()
        self._log = structlog.get_logger("relayd.delivery")
        self._random = random.Random()  # noqa: S311 - jitter, not secrecy

    # -- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to deliver what is due; beside that, look for mail in lanes that no upstream has any more."""
        for plan in self._plan.upstreams.values():
            self._add(plan)
        self._rerouting.start()

    async def apply(self, plan: Plan) -> None:
        """Deliver by another configuration from now on; what is in hand is finished first.

        Nothing in here waits or can fail half-way: walking over the queue goes on beside the deliveries.
        """
        self._plan, old = plan, self._plan
        old.signing.close()
        rerouted = plan.table.routes != old.table.routes
        for name in [name for name in self._lines if name not in plan.upstreams]:
            self._leave(name)
        for upstream in plan.upstreams.values():
            line = self._lines.get(upstream.name) or self._back(upstream.name)
            if line is None:
                self._add(upstream)
            else:
                self._change(line, upstream)
                if rerouted:
                    line.lane.clear()
        self._rerouting.begin(everything=rerouted)

    async def stop(self, deadline: float) -> None:
        """Finish what is in hand until `deadline` (loop time), then let go."""
        leaving = list(self._leaving.values())
        for _, task in leaving:
            task.cancel()
        await asyncio.gather(self._rerouting.stop(), *(task for _, task in leaving), return_exceptions=True)
        lines = [*self._lines.values(), *(line for line, _ in leaving)]
        await asyncio.gather(*(line.crew.stop(deadline) for line in lines))
        await asyncio.gather(*(line.lane.stop() for line in lines))
        self._lines.clear()
        self._leaving.clear()
        for task in self._unsettled:
            task.cancel()
        await asyncio.gather(*self._unsettled, return_exceptions=True)
        self._plan.signing.close()

    def _share(self, plan: UpstreamPlan) -> ConnectionSlots:
        return ConnectionSlots(self._run_dir, quote(plan.name, safe="@"), plan.connections, self._slot, self._slots)

    def _add(self, plan: UpstreamPlan) -> None:
        lane = Lane(plan.name, self._store, self._memory, self._clock, window=self._plan.window, ready=self._ready)
        line = self._lines[plan.name] = Line(lane, plan, self._observer, self._random)
        closed = partial(self._observer.connections, plan.name, -1)
        line.crew = Crew(lane, self._share(plan), partial(self._attempt, line), self._clock, closed)
        self._begin(line)

    def _begin(self, line: Line) -> None:
        for message in self._claimed:
            line.lane.claim(message)
        line.lane.start()

    def _change(self, line: Line, plan: UpstreamPlan) -> None:
        """Take over another plan for an upstream."""
        old, line.plan = line.plan, plan
        line.lane.resize(self._plan.window)
        if plan.connections != old.connections:
            line.crew.resize(self._share(plan))
        if plan.identity != old.identity:
            line.crew.renew()
            line.lane.gate.end_pause()
        line.crew.all_ready()

    def try_now(self, lane: str) -> bool:
        """A login that works again elsewhere is tried here at once; False where nothing had paused it."""
        line = self._lines.get(lane)
        if line is None or not line.lane.gate.paused:
            return False
        line.lane.gate.end_pause()
        self.wake(lane, self._clock())
        line.crew.all_ready()
        return True

    def _leave(self, name: str) -> None:
        """The configuration has this upstream no more: it takes no new mail, and goes when its hands are empty."""
        line = self._lines.pop(name)
        task = asyncio.create_task(self._see_off(line), name=f"leave {name}")
        self._leaving[name] = line, task

    async def _see_off(self, line: Line) -> None:
        await line.lane.stop()
        await line.crew.stop(asyncio.get_running_loop().time() + _LEAVE)
        await line.lane.landed()
        if line.lane.gate.paused:
            self._observer.paused(line.plan.name, False)
        del self._leaving[line.plan.name]
        self._rerouting.begin(everything=False)

    def _back(self, name: str) -> Line | None:
        """An upstream that was about to leave is wanted again: it knows what it has in hand, a new one would not."""
        line, task = self._leaving.pop(name, (None, None))
        if line is None or task is None:
            return None
        task.cancel()
        self._lines[name] = line
        self._begin(line)
        line.crew.resume()
        return line

    # -- what others ask ------------------------------------------------------------------------------------------

    def push(self, delivery: Delivery) -> None:
        """Fresh mail, kept on disk: all its recipients are of one lane."""
        line = self._lines.get(delivery.recipients[0].lane)
        if line is not None:
            line.lane.push(delivery)
        else:
            # accepted by a configuration that was replaced while the mail was written
            self._rerouting.begin(everything=False)

    def claim(self, message: MessageId) -> bool:
        """Take a message out of memory so that it can be changed; False while somebody sends or changes it."""
        if message in self._claimed or self.busy(message):
            return False
        self._claimed.add(message)
        for line in self._lines.values():
            line.lane.claim(message)
        return True

    def unclaim(self, message: MessageId) -> None:
        """The change is on disk. Whoever changed it wakes the lanes that it waits in."""
        self._claimed.discard(message)
        for line in self._lines.values():
            line.lane.unclaim(message)

    def busy(self, message: MessageId) -> bool:
        """Is a carrier sending it, or what became of it not written yet?"""
        lines = [*self._lines.values(), *(line for line, _ in self._leaving.values())]
        return any(line.lane.has_in_hand(message) for line in lines)

    def living(self, lane: str) -> bool:
        """Is there an upstream of this name?"""
        return lane in self._lines

    def wake(self, lane: str, when: Millis, message: MessageId | None = None) -> None:
        """Something in the store became due in this lane, maybe of this message."""
        line = self._lines.get(lane)
        if line is not None:
            line.lane.due_at(when, message)
        elif lane:
            self._rerouting.begin(everything=False)

    def wake_all(self) -> None:
        """Anything may have become due anywhere."""
        for line in self._lines.values():
            line.lane.look()

    def in_hand(self) -> int:
        """Deliveries that are being sent now."""
        return sum(line.lane.flying for line in self._lines.values())

    def standing(self) -> dict[str, dict[str, str | int | bool]]:
        """Each upstream's standing, for `relayd status`."""
        return {
            name: {
                "paused": line.lane.gate.paused,
                "reason": line.lane.gate.reason,
                "since": line.lane.gate.since if line.lane.gate.paused else 0,
                "next_probe": line.lane.gate.paused_until,
                "in_memory": len(line.lane),
                "sending": line.lane.flying,
                "connections": line.crew.size,
            }
            for name, line in self._lines.items()
        }

    def choose(self, message: Message, recipient: Recipient) -> str:
        """The lane that the routes say; "" for none."""
        return self._plan.table.upstream_for(message, recipient) or ""

    def _ready(self, lane: Lane) -> None:
        line = self._lines.get(lane.name)
        if line is not None:
            line.crew.ready()

    # -- one attempt ----------------------------------------------------------------------------------------------

    async def _attempt(self, line: Line, carrier: Carrier, delivery: Delivery) -> None:
        """Carry one delivery: the crew's `Attempt`."""
        started = self._clock()
        try:
            delivery = await self._rerouted(line, delivery, started)
            if not delivery.recipients:
                return
            if overdue(delivery, self._plan.policy, started):
                self._expire(line, delivery, started)
                return
            delivery = await self._unblocked(line, delivery, started)
            if delivery.recipients and not (line.senders and self._put_off(line, delivery, started)):
                await self._carry(line, carrier, delivery, started)
        except Exception:  # noqa: BLE001 - one message must not stop a lane, whatever it does to our code
            self._log.exception("attempt failed", id=format_id(delivery.message.id), upstream=line.plan.name)
            carrier.broken = True
            outcomes = (_INTERNAL,) * len(delivery.recipients)
            sent = Sent(outcomes, Stage.LOCAL, str(_INTERNAL.reply), None, dsn=False)
            self._settle(line, delivery, delivery.recipients, sent, started=started, session=None, last=True)

    async def _rerouted(self, line: Line, delivery: Delivery, now: Millis) -> Delivery:
        """The recipients that the routes, looked at again, still send through this lane; others move on."""
        message, lane = delivery.message, line.lane
        chosen = [self.choose(message, waiting.recipient) for waiting in delivery.recipients]
        if all(name == lane.name for name in chosen):
            return delivery
        # as they stand now: while this waited in memory, the walk after a reload may have moved them already
        found = await self._store.select(QueueFilter(ids=frozenset({message.id}), upstream=lane.name), 1)
        standing = {waiting.n: waiting for here in found for waiting in here.recipients}
        stay: list[Waiting] = []
        moving: list[tuple[Waiting, str]] = []
        for name, waiting in zip(chosen, delivery.recipients, strict=True):
            if name == lane.name:
                stay.append(waiting)
            elif waiting.n in standing:
                moving.append((standing[waiting.n], name))
        if moving:
            self._write(line, move(message, moving, now), last=not stay)
        elif not stay:
            line.end(message.id)
        if not stay:
            lane.gate.abandoned()
        return replace(delivery, recipients=tuple(stay))

    def _put_off(self, line: Line, delivery: Delivery, now: Millis) -> bool:
        """The upstream refuses this sender alone, and its next try is not yet: nothing is attempted."""
        found = line.senders.waits(delivery.message.envelope.sender, now)
        if found is None:
            return False
        outcome, until = found
        attempt = Attempt(now, 0, line.plan.name, "", None, outcome.stage, str(outcome.reply), None, ())
        outcomes = (outcome,) * len(delivery.recipients)
        facts = Facts(delivery.message, delivery.recipients, outcomes, attempt, line.plan.on_uncertain, False, until)
        settlement = settle_attempt(facts, self._plan.policy, now, self._random.random())
        self._write(line, replace(settlement, attempt=None), last=True)
        line.lane.gate.abandoned()
        return True

    def _expire(self, line: Line, delivery: Delivery, now: Millis) -> None:
        changes = tuple(expire(delivery.message, w, self._plan.policy, now) for w in delivery.recipients)
        self._write(line, Settlement(delivery.message.id, changes), last=True)
        line.lane.gate.abandoned()

    async def _unblocked(self, line: Line, delivery: Delivery, now: Millis) -> Delivery:
        """The recipients that may be mailed; the others are suppressed. Asked again before every attempt."""
        message, blocked, policy = delivery.message, self._blocked, self._plan.policy
        if message.origin.inbound:
            return delivery
        stopped = [
            suppress(message, waiting, block, policy, now)
            for waiting in delivery.recipients
            if (block := blocked(message, waiting.recipient.address)) is not None
        ]
        if not stopped:
            return delivery
        gone = {change.after.n for change in stopped}
        stay = tuple(waiting for waiting in delivery.recipients if waiting.n not in gone)
        written = self._write(line, Settlement(message.id, tuple(stopped)), last=not stay)
        if stay:
            await asyncio.wait([written])
        else:
            line.lane.gate.abandoned()
        return replace(delivery, recipients=stay)

    async def _carry(self, line: Line, carrier: Carrier, delivery: Delivery, started: Millis) -> None:
        """Send to all recipients, as many in one transaction as the upstream takes."""
        message, rest = delivery.message, delivery.recipients
        verp = line.plan.return_path if message.envelope.sender else None
        step = line.plan.recipients if verp is None else 1
        signed: bytes | None = None
        reused = carrier.session is not None
        while rest:
            if carrier.session is None or not carrier.session.usable:
                if not await self._open(line, carrier, delivery, rest, started):
                    return
                reused = False
            session = carrier.session
            assert session is not None  # noqa: S101 - _open said so
            if signed is None:
                content = delivery.content
                if content is None:
                    content = await self._store.content(message.id)
                outward, domain = line.plan.outward, message.from_domain
                if outward is not None:
                    content, domain = outward.content(message, content)
                signed = await self._plan.signing.signed(content, domain) if line.plan.sign else content
            part = rest[:step]
            recipients = tuple([waiting.recipient for waiting in part])
            envelope = message.envelope
            if line.plan.outward is not None:
                envelope = replace(envelope, sender=line.plan.outward.sender(message))
            if verp is not None:
                envelope = replace(envelope, sender=verp(message.id, part[0].n, started))
            sent = await session.send(Outgoing(format_id(message.id), envelope, recipients, signed))
            if sent.dsn and envelope.sender != message.envelope.sender:
                # the upstream's report of success goes to another address: the sender's is still ours to make
                sent = replace(sent, dsn=False)
            if reused and not session.usable and sent.stage is Stage.MAIL and _nothing_tried(sent):
                # the upstream had given up an idle connection: that is no attempt, a fresh one gets the mail
                reused = False
                continue
            reused = True
            rest = rest[step:]
            trouble = trouble_in(sent)
            written = self._settle(line, delivery, part, sent, started=started, session=session, last=not rest)
            if rest:
                await asyncio.wait([written])
            if rest and trouble is not None:
                more = replace(sent, outcomes=(trouble,) * len(rest))
                self._settle(line, delivery, rest, more, started=started, session=session, last=True)
                return

    async def _open(
        self, line: Line, carrier: Carrier, delivery: Delivery, rest: tuple[Waiting, ...], started: Millis
    ) -> bool:
        """Put a fresh session in the carrier's hand; False when the upstream is in trouble, and that is settled."""
        if carrier.session is not None:
            await carrier.session.close()
            carrier.session = None
            self._observer.connections(line.plan.name, -1)
        try:
            carrier.session = await line.plan.connector.open()
        except ConnectFailedError as failure:
            self._observer.connect_failed(line.plan.name, failure.outcome.cls)
            outcomes = (failure.outcome,) * len(rest)
            sent = Sent(outcomes, failure.outcome.stage, str(failure.outcome.reply), failure.transcript, dsn=False)
            self._settle(
                line, delivery, rest, sent, started=started, session=None, last=True, endpoint=failure.endpoint
            )
            return False
        self._observer.connections(line.plan.name, 1)
        return True

    # -- settling -------------------------------------------------------------------------------------------------

    def _settle(
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
        now = self._clock()
        resume = line.judge(sent, delivery.message.envelope.sender, now)
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
        return self._write(line, settle_attempt(facts, self._plan.policy, now, self._random.random()), last=last)

    def _write(self, line: Line, settlement: Settlement, *, last: bool) -> asyncio.Future[None]:
        written = self._store.settle(settlement)
        written.add_done_callback(partial(self._written, line, settlement, last))
        return written

    def _written(self, line: Line, settlement: Settlement, last: bool, written: asyncio.Future[None]) -> None:
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
        # what was delivered but is not written must not be taken for undelivered: nothing more goes out here
        # until it is
        line.cannot_write(settlement.message)
        if last:
            line.end(settlement.message)
        self._log.error("cannot write what became of a message", upstream=line.plan.name, error=str(error))
        task = asyncio.create_task(self._write_again(line, settlement), name=f"settle {format_id(settlement.message)}")
        self._unsettled.add(task)
        task.add_done_callback(self._unsettled.discard)

    async def _write_again(self, line: Line, settlement: Settlement) -> None:
        wait = WRITE_AGAIN
        while True:
            await asyncio.sleep(wait)
            wait = min(wait * 2, 15.0)
            try:
                await self._store.settle(settlement)
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
                    self.wake(change.after.lane, change.after.due, settlement.message)
            if change.after.notice is not None:
                self._owed()


def _nothing_tried(sent: Sent) -> bool:
    return all(outcome.kind in (OutcomeKind.DEFERRED, OutcomeKind.TROUBLE) for outcome in sent.outcomes)
