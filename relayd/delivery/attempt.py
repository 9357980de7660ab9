"""The pipeline of one attempt, readable on one page: look at the route again, open, sign, send, settle.

Lanes queue, crews carry, sessions speak SMTP, settle.py decides, writing.py writes: here one delivery goes its way.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import structlog

from relayd.core.blocking import Block
from relayd.core.headers import is_short
from relayd.core.ids import format_id
from relayd.core.lifecycle import Act, Outcome, OutcomeKind, Stage
from relayd.core.mail import Message, upstream_of
from relayd.core.reply import Reply
from relayd.core.session import ConnectFailedError, Outgoing, Sent, Session
from relayd.core.units import Millis
from relayd.delivery.behind import Behind
from relayd.delivery.budget import counted
from relayd.delivery.crew import Carrier
from relayd.delivery.lanes import Lane
from relayd.delivery.line import Line, Plan, trouble_in
from relayd.delivery.observer import DeliveryObserver
from relayd.delivery.rereading import Rereading
from relayd.delivery.settle import RELEASED, Facts, expire, move, overdue, settle_attempt, steer, suppress
from relayd.delivery.writing import Choose, Writer
from relayd.intake.memory import SMALL, MemoryBudget
from relayd.spool.filter import QueueFilter
from relayd.spool.joining import APART
from relayd.spool.store import (
    Attempt,
    Change,
    Delivery,
    NoSuchMessageError,
    Settlement,
    Store,
    StoreError,
    UnreadableError,
    Waiting,
)

_MAIL = Stage.MAIL

_INTERNAL = Outcome(
    OutcomeKind.DEFERRED, Stage.LOCAL, Reply(451, "4.3.0", "Internal error; it is logged"), "system-error"
)


class Attempts:
    """What carriers of one worker do with a delivery. `plan` is the configuration's, now."""

    def __init__(
        self,
        store: Store,
        plan: Plan,
        writer: Writer,
        *,
        choose: Choose,
        observer: DeliveryObserver,
        clock: Callable[[], Millis],
        blocked: Callable[[Message, str], Block | None],
        rng: random.Random,
        memory: MemoryBudget,
    ) -> None:
        self._store = store
        self.plan = plan
        self._writer = writer
        self._choose = choose
        self._observer = observer
        self._clock = clock
        self._blocked = blocked
        self._random = rng
        self._rereading = Rereading(memory)
        self._log = structlog.get_logger("relayd.delivery")

    async def carry(self, line: Line, carrier: Carrier, delivery: Delivery, *, room: bool = False) -> None:
        """Carry one delivery: the crew's `Attempt`. `room`: there is room to read its content from disk."""
        if delivery.content is None and delivery.message.size > SMALL and not room:
            await self._carry_in_turn(line, carrier, delivery)
            return
        started = self._clock()
        try:
            if line.gate.probing and not await line.standings.may_probe(line.lane.name):
                line.lane.put_back(delivery)
                return
            # what is rarely true is asked without waiting, and only where it is a coroutine is made for it
            if not self._belongs(line.lane, delivery):
                delivery = await self._rerouted(line, delivery, started)
                if not delivery.recipients:
                    return
            if overdue(delivery, self.plan.policy, started):
                delivery = await self._without(line, delivery, await self._expired(delivery, started))
            if stopped := self._stopped(delivery, started):
                delivery = await self._without(line, delivery, stopped)
            if delivery.recipients and not (line.senders and self._put_off(line, delivery, started)):
                step = self._step(line, delivery)
                if len(delivery.recipients) <= step and line.lane.budget is None:
                    await self._transact(line, carrier, delivery, step, None, started=started)
                else:
                    await self._in_parts(line, carrier, delivery, step, started)
        except (NoSuchMessageError, UnreadableError) as error:
            self._hold(line, delivery, error)
        except Exception:  # noqa: BLE001 - one message must not stop a lane, whatever it does to our code
            self._log.exception("attempt failed", id=format_id(delivery.message.id), upstream=line.plan.name)
            carrier.broken = True
            outcomes = (_INTERNAL,) * len(delivery.recipients)
            sent = Sent(outcomes, Stage.LOCAL, str(_INTERNAL.reply), None, dsn=False)
            self._writer.settle(line, delivery, delivery.recipients, sent, started=started, session=None, last=True)

    async def _carry_in_turn(self, line: Line, carrier: Carrier, delivery: Delivery) -> None:
        """Carry it once there is room for its content, which is on disk only."""
        octets, upstream, gate = delivery.message.size, upstream_of(line.lane.name), line.gate
        waited = await self._rereading.enter(octets, upstream)
        try:
            if waited and (line.crew.stopping or gate.shut or (gate.paused and not gate.probing)):
                line.lane.put_back(delivery)
                gate.abandoned()
            else:
                await self.carry(line, carrier, delivery, room=True)
        finally:
            self._rereading.leave(octets, upstream)

    async def reroute(self, line: Line, delivery: Delivery) -> bool:
        """Move the recipients that belong in other lanes now; False where all stay, and it is to be put back.

        What stays of a message that moves in part is read from disk again once the move is there: until then the
        other part would be, too.
        """
        if self._belongs(line.lane, delivery):
            return False
        left = await self._rerouted(line, delivery, self._clock(), alone=True)
        return left.recipients != delivery.recipients

    def _belongs(self, lane: Lane, delivery: Delivery) -> bool:
        """The routes, looked at again, still send all recipients through this lane. A probe is to tell about its
        upstream, so it stays.
        """
        message, name, keep = delivery.message, lane.name, lane.gate.probing
        for waiting in delivery.recipients:  # noqa: SIM110 - asked for each mail, nearly always of one recipient
            if self._choose(message, waiting, keep=keep) != name:
                return False
        return True

    async def _rerouted(self, line: Line, delivery: Delivery, now: Millis, *, alone: bool = False) -> Delivery:
        """The recipients that the routes, looked at again, still send through this lane; others move on.

        `alone`: nothing more is done with the message then.
        """
        message, lane = delivery.message, line.lane
        chosen = [self._choose(message, waiting, keep=lane.gate.probing) for waiting in delivery.recipients]
        # as they stand now: while this waited in memory, the walk after a reload may have moved them already
        found = await self._store.select(QueueFilter(ids=frozenset({message.id}), lane=lane.name), 1)
        standing = {waiting.n: waiting for here in found for waiting in here.recipients}
        put_here = await self._store.put_by_hand([message.id]) if standing else frozenset()
        stay: list[Waiting] = []
        moving: list[tuple[Waiting, str]] = []
        for name, waiting in zip(chosen, delivery.recipients, strict=True):
            if name == lane.name or (message.id, waiting.n, lane.name) in put_here:
                stay.append(waiting)
            elif waiting.n in standing:
                moving.append((standing[waiting.n], name))
        if moving:
            gone = self._writer.write(line, move(message, moving, now, self._why(lane.name)), last=alone or not stay)
            if stay and not alone:
                # else what stays might be settled and let go of first, and those that go be read from disk for here
                await asyncio.wait([gone])
        elif not stay or (alone and len(stay) < len(chosen)):
            line.end(message.id)
        if not (stay or alone):
            lane.gate.abandoned()
        return replace(delivery, recipients=tuple(stay))

    def _why(self, lane: str) -> str:
        """Why mail leaves a lane; "" where the routes just say so."""
        found = self.plan.table.standing(lane)
        return "" if found is None else f"{found.why.name.lower()}: {found.reason}"

    def _put_off(self, line: Line, delivery: Delivery, now: Millis) -> bool:
        """The upstream refuses this sender alone, and its next try is not yet: nothing is attempted."""
        found = line.senders.waits(delivery.message.envelope.sender, now)
        if found is None:
            return False
        outcome, until = found
        attempt = Attempt(now, 0, line.plan.name, "", None, outcome.stage, str(outcome.reply), None, ())
        outcomes = (outcome,) * len(delivery.recipients)
        facts = Facts(delivery.message, delivery.recipients, outcomes, attempt, line.plan.on_uncertain, False, until)
        settlement = settle_attempt(facts, self.plan.policy, now, self._random.random())
        self._writer.write(line, replace(settlement, attempt=None), last=True)
        line.lane.gate.abandoned()
        return True

    def _hold(self, line: Line, delivery: Delivery, error: StoreError) -> None:
        """What cannot be read waits for an operator; nothing else would help."""
        self._log.error(
            "message set aside: its content cannot be read",
            id=format_id(delivery.message.id),
            upstream=line.plan.name,
            error=str(error),
        )
        settlement = steer(
            delivery.message,
            delivery.recipients,
            Act.HOLD,
            self.plan.policy,
            self._clock(),
            by="relayd",
            reason=f"its content in the spool cannot be read: {error}",
        )
        self._writer.write(line, settlement, last=True)
        line.lane.gate.abandoned()

    async def _expired(self, delivery: Delivery, now: Millis) -> list[Change]:
        """The lifetime has ended: only those recipients go on that were released since, once."""
        message = delivery.message
        spared = await self._store.released([message.id], now - RELEASED)
        ended = [w for w in delivery.recipients if (message.id, w.n) not in spared]
        return [expire(message, w, self.plan.policy, now) for w in ended]

    def _stopped(self, delivery: Delivery, now: Millis) -> list[Change]:
        """The recipients that may not be mailed: they are suppressed. Asked again before every attempt."""
        message, blocked = delivery.message, self._blocked
        stopped: list[Change] = []
        if not message.origin.inbound:
            for waiting in delivery.recipients:
                if (block := blocked(message, waiting.recipient.address)) is not None:
                    stopped.append(suppress(message, waiting, block, self.plan.policy, now))
        return stopped

    async def _without(self, line: Line, delivery: Delivery, ended: Sequence[Change]) -> Delivery:
        """Write down what some recipients end with; what is left of the delivery."""
        if not ended:
            return delivery
        gone = {change.after.n for change in ended}
        stay = tuple(waiting for waiting in delivery.recipients if waiting.n not in gone)
        written = self._writer.write(line, Settlement(delivery.message.id, tuple(ended)), last=not stay)
        if stay:
            await asyncio.wait([written])
        else:
            line.lane.gate.abandoned()
        return replace(delivery, recipients=stay)

    @staticmethod
    def _step(line: Line, delivery: Delivery) -> int:
        """So many recipients in one transaction: as the upstream takes, or one where each has its own return path."""
        plan = line.plan
        return plan.recipients if plan.return_path is None or not delivery.message.envelope.sender else 1

    async def _in_parts(self, line: Line, carrier: Carrier, delivery: Delivery, step: int, started: Millis) -> None:
        """Send to all recipients in several transactions, since the upstream or a budget wants that."""
        behind = Behind(partial(line.end, delivery.message.id))
        try:
            await self._transact(line, carrier, delivery, step, behind, started=started)
        except BaseException:
            # whoever hears of it lets go of the message: not before all that was sent is written
            await behind.written()
            raise

    async def _transact(
        self, line: Line, carrier: Carrier, delivery: Delivery, step: int, behind: Behind | None, *, started: Millis
    ) -> None:
        """As many recipients in one transaction as the upstream takes and its budgets allow, until all were tried."""
        message, rest = delivery.message, delivery.recipients
        signed: tuple[bytes, bytes] | None = None
        domain = ""
        reused = carrier.session is not None
        while rest:
            if carrier.session is None or not carrier.session.usable:
                if not await self._open(line, carrier, delivery, rest, behind, started=started):
                    return
                reused = False
            session = carrier.session
            assert session is not None  # noqa: S101 - _open said so
            if signed is None:
                signed, domain = await self._signed(line, delivery)
            part, budget = rest[:step], line.lane.budget
            if budget is not None:
                part = part[: await budget.spend(message.id, len(part))]
                if not part:
                    self._wait_for_budget(line, message, behind, started)
                    return
            try:
                outgoing = self._outgoing(line, message, part, signed, from_domain=domain, started=started)
                sent = await session.send(outgoing)
            except asyncio.CancelledError:
                await self._cut_off(line, delivery, part, session, behind, started=started)
                raise
            if budget is not None:
                budget.sent(message.id, counted(sent))
            if sent.stage is _MAIL and reused and not session.usable and _nothing_tried(sent):
                # the upstream had given up an idle connection: that is no attempt, a fresh one gets the mail
                reused = False
                continue
            reused = True
            rest = rest[len(part) :]
            if sent.dsn and outgoing.envelope.sender != message.envelope.sender:
                # the upstream's report of success goes to another address: the sender's is still ours to make
                sent = replace(sent, dsn=False)
            self._settle(line, delivery, part, sent, behind, started=started, session=session, last=not rest)
            if rest and (trouble := trouble_in(sent)) is not None:
                more = replace(sent, outcomes=(trouble,) * len(rest))
                self._settle(line, delivery, rest, more, behind, started=started, session=session, last=True)
                return
            if behind is not None:
                await behind.room()

    @staticmethod
    def _wait_for_budget(line: Line, message: Message, behind: Behind | None, now: Millis) -> None:
        """Nothing was attempted for what is left of the recipients: they wait in their lane as before."""
        line.lane.due_at(now, message.id)
        line.lane.gate.abandoned()
        if behind is not None:
            behind.end()
        else:
            line.end(message.id)

    async def _signed(self, line: Line, delivery: Delivery) -> tuple[tuple[bytes, bytes], str]:
        """The content as it goes out by this line, with what goes in front of it, and the domain of its From."""
        message = delivery.message
        content = delivery.content if delivery.content is not None else await self._store.content(message.id)
        outward, domain = line.plan.outward, message.from_domain
        if outward is not None and len(content) < APART and is_short(content):
            content, domain = outward.content(message, content)
        elif outward is not None:
            content, domain = await asyncio.to_thread(outward.content, message, content)
        return await self.plan.signing.signed(content, domain) if line.plan.sign else (b"", content), domain

    @staticmethod
    def _outgoing(
        line: Line,
        message: Message,
        part: tuple[Waiting, ...],
        signed: tuple[bytes, bytes],
        *,
        from_domain: str,
        started: Millis,
    ) -> Outgoing:
        """One transaction, under the name that goes out by this line."""
        envelope, outward, verp = message.envelope, line.plan.outward, line.plan.return_path
        if outward is not None:
            envelope = replace(envelope, sender=outward.sender(message))
        if verp is not None and message.envelope.sender:
            envelope = replace(envelope, sender=verp(message.id, part[0].n, started, from_domain))
        front, content = signed
        return Outgoing(format_id(message.id), envelope, tuple([waiting.recipient for waiting in part]), content, front)

    def _settle(
        self,
        line: Line,
        delivery: Delivery,
        part: tuple[Waiting, ...],
        sent: Sent,
        behind: Behind | None,
        *,
        started: Millis,
        session: Session | None,
        last: bool,
        endpoint: str = "",
    ) -> asyncio.Future[None]:
        """Write what became of a part of the recipients, `behind` others or alone. Nothing is awaited before it is."""
        alone = last and behind is None
        written = self._writer.settle(
            line, delivery, part, sent, started=started, session=session, last=alone, endpoint=endpoint
        )
        if behind is not None:
            behind.add(written, last=last)
        return written

    async def _cut_off(
        self,
        line: Line,
        delivery: Delivery,
        part: tuple[Waiting, ...],
        session: Session,
        behind: Behind | None,
        *,
        started: Millis,
    ) -> None:
        """We must stop now. What was sent whole may have arrived: that is written down before anything else."""
        sent = session.in_doubt
        if sent is not None:
            if line.lane.budget is not None:
                line.lane.budget.sent(delivery.message.id, counted(sent))
            end = self._settle(line, delivery, part, sent, behind, started=started, session=session, last=True)
            await asyncio.wait([end])

    async def _open(
        self,
        line: Line,
        carrier: Carrier,
        delivery: Delivery,
        rest: tuple[Waiting, ...],
        behind: Behind | None,
        *,
        started: Millis,
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
            end = failure.endpoint
            self._settle(line, delivery, rest, sent, behind, started=started, session=None, last=True, endpoint=end)
            return False
        self._observer.connections(line.plan.name, 1)
        return True


def _nothing_tried(sent: Sent) -> bool:
    return all(outcome.kind in (OutcomeKind.DEFERRED, OutcomeKind.TROUBLE) for outcome in sent.outcomes)
