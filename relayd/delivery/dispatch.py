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

import structlog

from relayd.core.blocking import Block
from relayd.core.ids import MessageId, format_id
from relayd.core.lifecycle import OnUncertain, Outcome, OutcomeKind, Stage
from relayd.core.mail import Message, Recipient
from relayd.core.reply import Reply
from relayd.core.session import ConnectFailedError, Connector, Outgoing, Sent, Session
from relayd.core.units import Millis
from relayd.delivery.crew import Carrier, Crew
from relayd.delivery.dkim import SigningPool
from relayd.delivery.lanes import Lane
from relayd.delivery.observer import DeliveryObserver
from relayd.delivery.routing import RouteTable
from relayd.delivery.settle import Facts, Policy, expire, move, overdue, settle_attempt, suppress
from relayd.delivery.slots import ConnectionSlots
from relayd.intake.memory import MemoryBudget
from relayd.spool.store import Attempt, Delivery, Settlement, Store, StoreError, Waiting

_INTERNAL = Outcome(
    OutcomeKind.DEFERRED, Stage.LOCAL, Reply(451, "4.3.0", "Internal error; it is logged"), "system-error"
)


@dataclass(frozen=True, slots=True)
class UpstreamPlan:
    """What the dispatcher needs to know of one upstream."""

    name: str
    connector: Connector
    connections: int
    recipients: int
    """Most recipients in one transaction."""
    on_uncertain: OnUncertain
    identity: object
    """Compares unequal when sessions opened under another plan must not be used any more."""
    return_path: Callable[[MessageId, int, Millis], str] | None = None
    """Makes the envelope sender of one recipient, for bounces to name it; None: the message's own sender goes out."""
    sign: bool = True


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that a configuration says about delivery."""

    upstreams: Mapping[str, UpstreamPlan]
    table: RouteTable
    signing: SigningPool
    policy: Policy
    window: int


@dataclass(slots=True)
class _Line:
    """One upstream at work."""

    lane: Lane
    crew: Crew
    plan: UpstreamPlan


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
        self._lines: dict[str, _Line] = {}
        self._unsettled: set[asyncio.Task[None]] = set()
        self._log = structlog.get_logger("relayd.delivery")
        self._random = random.Random()  # noqa: S311 - jitter, not secrecy

    # -- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Look at the routes of everything that waits, and begin to deliver."""
        await self._store.relane(self._choose, ())
        for plan in self._plan.upstreams.values():
            self._add(plan)

    async def apply(self, plan: Plan) -> None:
        """Deliver by another configuration from now on; what is in hand is finished by the old one."""
        self._plan, old = plan, self._plan
        old.signing.close()
        deadline = asyncio.get_running_loop().time() + 1.0
        gone = [name for name in self._lines if name not in plan.upstreams]
        resized = [
            name
            for name, line in self._lines.items()
            if name not in gone and line.plan.connections != plan.upstreams[name].connections
        ]
        await asyncio.gather(*(self._retire(name, deadline) for name in gone + resized))
        flying: set[int] = set()
        for name, line in self._lines.items():
            new = plan.upstreams[name]
            if new.identity != line.plan.identity:
                line.crew.renew()
            line.plan = new
            line.lane.window = plan.window
            line.lane.clear()
            flying |= line.lane.in_hand
        await self._store.relane(self._choose, flying)
        for upstream in plan.upstreams.values():
            if upstream.name not in self._lines:
                self._add(upstream)
            self._lines[upstream.name].lane.due_at(self._clock())

    async def stop(self, deadline: float) -> None:
        """Finish what is in hand until `deadline` (loop time), then let go."""
        await asyncio.gather(*(self._retire(name, deadline) for name in list(self._lines)))
        for task in self._unsettled:
            task.cancel()
        await asyncio.gather(*self._unsettled, return_exceptions=True)
        self._plan.signing.close()

    def _add(self, plan: UpstreamPlan) -> None:
        lane = Lane(plan.name, self._store, self._memory, self._clock, window=self._plan.window, ready=self._ready)
        share = ConnectionSlots(self._run_dir, plan.name, plan.connections, self._slot, self._slots)
        closed = partial(self._observer.connections, plan.name, -1)
        crew = Crew(lane, share, self._attempt, self._clock, closed)
        self._lines[plan.name] = _Line(lane, crew, plan)
        lane.start()

    async def _retire(self, name: str, deadline: float) -> None:
        line = self._lines[name]
        await line.crew.stop(deadline)
        await line.lane.stop()
        del self._lines[name]

    # -- what others ask ------------------------------------------------------------------------------------------

    def push(self, delivery: Delivery) -> None:
        """Fresh mail, kept on disk: all its recipients are of one lane."""
        line = self._lines.get(delivery.recipients[0].lane)
        if line is not None:
            line.lane.push(delivery)

    def claim(self, message: MessageId) -> bool:
        """Take a message out of memory so that it can be changed; False while it is being sent."""
        claimed: list[Lane] = []
        for line in self._lines.values():
            if not line.lane.claim(message):
                for lane in claimed:
                    lane.unclaim(message)
                return False
            claimed.append(line.lane)
        return True

    def unclaim(self, message: MessageId) -> None:
        """The change is on disk."""
        for line in self._lines.values():
            line.lane.unclaim(message)

    def wake(self, lane: str, when: Millis) -> None:
        """Something in the store became due in this lane."""
        line = self._lines.get(lane)
        if line is not None:
            line.lane.due_at(when)

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

    def _choose(self, message: Message, recipient: Recipient) -> str:
        return self._plan.table.upstream_for(message, recipient) or ""

    def _ready(self, lane: Lane) -> None:
        line = self._lines.get(lane.name)
        if line is not None:
            line.crew.ready()

    # -- one attempt ----------------------------------------------------------------------------------------------

    async def _attempt(self, lane: Lane, carrier: Carrier, delivery: Delivery) -> None:
        """Carry one delivery: the crew's `Attempt`."""
        started = self._clock()
        line = self._lines[lane.name]
        try:
            delivery = await self._rerouted(lane, delivery, started)
            if not delivery.recipients:
                return
            if overdue(delivery, self._plan.policy, started):
                self._expire(line, delivery, started)
                return
            delivery = await self._unblocked(line, delivery, started)
            if delivery.recipients:
                await self._carry(line, carrier, delivery, started)
        except Exception:  # noqa: BLE001 - one message must not stop a lane, whatever it does to our code
            self._log.exception("attempt failed", id=format_id(delivery.message.id), upstream=lane.name)
            carrier.broken = True
            outcomes = (_INTERNAL,) * len(delivery.recipients)
            sent = Sent(outcomes, Stage.LOCAL, str(_INTERNAL.reply), None, dsn=False)
            self._settle(line, delivery, delivery.recipients, sent, started=started, session=None, last=True)

    async def _rerouted(self, lane: Lane, delivery: Delivery, now: Millis) -> Delivery:
        """The recipients that the routes, looked at again, still send through this lane; others move on."""
        message = delivery.message
        moving: dict[str, list[Waiting]] = {}
        for waiting in delivery.recipients:
            chosen = self._choose(message, waiting.recipient)
            if chosen != lane.name:
                moving.setdefault(chosen, []).append(waiting)
        if not moving:
            return delivery
        for name, recipients in moving.items():
            await self._store.settle(move(message, recipients, name, now))
            self.wake(name, now)
        moved = {waiting.n for recipients in moving.values() for waiting in recipients}
        stay = tuple(waiting for waiting in delivery.recipients if waiting.n not in moved)
        if not stay:
            lane.done(message.id)
            lane.gate.abandoned()
        return replace(delivery, recipients=stay)

    def _expire(self, line: _Line, delivery: Delivery, now: Millis) -> None:
        changes = tuple(expire(delivery.message, w, self._plan.policy, now) for w in delivery.recipients)
        self._write(line, Settlement(delivery.message.id, changes), last=True)
        line.lane.gate.abandoned()

    async def _unblocked(self, line: _Line, delivery: Delivery, now: Millis) -> Delivery:
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

    async def _carry(self, line: _Line, carrier: Carrier, delivery: Delivery, started: Millis) -> None:
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
                sign = line.plan.sign
                signed = await self._plan.signing.signed(content, message.from_domain) if sign else content
            part = rest[:step]
            recipients = tuple([waiting.recipient for waiting in part])
            envelope = message.envelope
            if verp is not None:
                envelope = replace(envelope, sender=verp(message.id, part[0].n, started))
            sent = await session.send(Outgoing(format_id(message.id), envelope, recipients, signed))
            if verp is not None and sent.dsn:
                # the upstream's report of success goes to our address: the sender's is still ours to make
                sent = replace(sent, dsn=False)
            if reused and not session.usable and sent.stage is Stage.MAIL and _nothing_tried(sent):
                # the upstream had given up an idle connection: that is no attempt, a fresh one gets the mail
                reused = False
                continue
            reused = True
            rest = rest[step:]
            trouble = sent.outcomes[0].kind is OutcomeKind.TROUBLE
            written = self._settle(line, delivery, part, sent, started=started, session=session, last=not rest)
            if rest:
                await asyncio.wait([written])
            if rest and trouble:
                more = replace(sent, outcomes=(sent.outcomes[0],) * len(rest))
                self._settle(line, delivery, rest, more, started=started, session=session, last=True)
                return

    async def _open(
        self, line: _Line, carrier: Carrier, delivery: Delivery, rest: tuple[Waiting, ...], started: Millis
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
        line: _Line,
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
        resume = self._judge(line, sent, now)
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

    def _judge(self, line: _Line, sent: Sent, now: Millis) -> Millis:
        """Open or close the upstream's gate; when to try again what its trouble kept back."""
        gate = line.lane.gate
        first = sent.outcomes[0]
        if first.kind is OutcomeKind.TROUBLE:
            began = not gate.paused
            resume = gate.trouble(now, str(first.reply), self._random.random())
            if began:
                self._observer.paused(line.plan.name, True)
            self._log.warning(
                "upstream in trouble",
                upstream=line.plan.name,
                stage=first.stage.value,
                reply=str(first.reply),
                next_try_seconds=round((resume - now) / 1000, 1),
            )
            line.crew.ready()
            return resume
        if gate.paused:
            if first.stage is Stage.LOCAL:
                gate.abandoned()
            elif gate.success():
                self._observer.paused(line.plan.name, False)
                self._log.info("upstream works again", upstream=line.plan.name)
                line.crew.all_ready()
        return now

    def _write(self, line: _Line, settlement: Settlement, *, last: bool) -> asyncio.Future[None]:
        written = self._store.settle(settlement)
        written.add_done_callback(partial(self._written, line, settlement, last))
        return written

    def _written(self, line: _Line, settlement: Settlement, last: bool, written: asyncio.Future[None]) -> None:
        if written.cancelled():
            return
        if (error := written.exception()) is not None:
            # what was delivered but is not written must not be taken for undelivered: nothing more goes out here
            # until it is
            line.lane.blocked += 1
            self._log.error("cannot write what became of a message", upstream=line.plan.name, error=str(error))
            task = asyncio.create_task(
                self._write_again(line, settlement, last), name=f"settle {format_id(settlement.message)}"
            )
            self._unsettled.add(task)
            task.add_done_callback(self._unsettled.discard)
            return
        self._after(line, settlement, last)

    async def _write_again(self, line: _Line, settlement: Settlement, last: bool) -> None:
        wait = 0.5
        while True:
            await asyncio.sleep(wait)
            wait = min(wait * 2, 15.0)
            try:
                await self._store.settle(settlement)
            except StoreError as error:
                self._log.error("still cannot write what became of a message", error=str(error))
            else:
                break
        line.lane.blocked -= 1
        self._after(line, settlement, last)
        line.crew.all_ready()

    def _after(self, line: _Line, settlement: Settlement, last: bool) -> None:
        """The settlement is on disk: make room in the window, and remember what is due and owed."""
        if last:
            line.lane.done(settlement.message)
        for change in settlement.changes:
            if change.after.due is not None:
                line.lane.due_at(change.after.due)
            if change.after.notice is not None:
                self._owed()


def _nothing_tried(sent: Sent) -> bool:
    return all(outcome.kind in (OutcomeKind.DEFERRED, OutcomeKind.TROUBLE) for outcome in sent.outcomes)
