"""The Store on SQLite segments: each verb of mail as writes to one segment, or as an answer over all of them.

Which segments there are is shelf.py's, what happens inside one segment.py's, what goes through all mail walks.py's.
Processes never share a slot, so nobody else writes these files.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Container, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import structlog

from relayd.config.models import Spool
from relayd.core.event import Event, EventKind
from relayd.core.ids import MessageId, format_id, time_of
from relayd.core.lifecycle import State
from relayd.core.mail import Message
from relayd.core.units import Millis
from relayd.spool import codec, histories, reads, retention, schema, search, stream, walks, writes
from relayd.spool.company import Company
from relayd.spool.filter import QueueFilter
from relayd.spool.ledger import Ledger
from relayd.spool.segment import Segment
from relayd.spool.shelf import Shelf
from relayd.spool.store import (
    Amended,
    Amendment,
    Change,
    Delivery,
    Due,
    History,
    LaneDepth,
    NoSuchMessageError,
    Page,
    Settlement,
    StoreError,
    Waiting,
)

RECIPIENTS = 10_000
"""Recipients in one answer of due(): a bound on memory where messages have very many."""
FAILING = 10.0
"""Seconds for which a failed commit counts: where nobody sends any more, no later commit would tell that it healed."""


class SqliteStore:
    """One worker's spool in `directory` (data_dir/spool).

    The worker of `slot` among `slots` also serves the mail of slots that have no worker any more.
    """

    def __init__(self, directory: Path, slot: int, slots: int, settings: Spool, clock: Callable[[], Millis]) -> None:
        self._clock = clock
        self.company = Company()
        """Who is about to bring mail, as listeners tell."""
        self._shelf = Shelf(directory, slot, slots, settings, clock, owner=self)
        self._fresh: set[MessageId] = set()
        """Accepted, but those who wait for the commit have not heard of it yet."""
        self._readers: list[Callable[[Sequence[Event]], None]] = []
        self._watchers: list[Callable[[float, int], None]] = []
        self._failed_at: float | None = None

    async def open(self) -> None:
        """Recover what is on disk and begin. Raises StoreError: of a newer schema before anything is changed."""
        await self._shelf.open()

    def apply(self, settings: Spool) -> None:
        """Take changed settings; a new period or size holds from the next segment on."""
        self._shelf.apply(settings)

    async def close(self) -> None:
        """Commit what is pending, checkpoint and close."""
        await self._shelf.close()

    @property
    def damaged(self) -> int:
        """Segments of ours that lie set aside."""
        return self._shelf.damaged

    # ---------------------------------------------------------------- writing

    def mint(self) -> MessageId:
        """A fresh id of this worker."""
        return self._shelf.mint()

    def accept(self, message: Message, recipients: Sequence[Waiting], content: bytes) -> asyncio.Future[None]:
        """Keep message, recipients and their `accepted` events in one durable transaction."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        number, sender = message.id, message.envelope.sender
        segment = self._shelf.home(number)
        if segment is None:
            future.set_exception(StoreError(f"{format_id(number)} is not an id of this worker"))
            return future
        rows: list[object] = []
        event_rows: list[object] = []
        events = []
        detail = codec.accepted_detail(message)
        for waiting in recipients:
            if waiting.state.final:
                raise ValueError(f"a recipient cannot be accepted as {waiting.state}")
            _check_due(waiting)
            rows += codec.recipient_row(number, waiting, message.priority)
            # what the event tells stands in the message's row and is not written twice
            event_rows += (number, waiting.n, message.accepted_at, "accepted", None)
            events.append(
                Event(
                    message.accepted_at,
                    number,
                    waiting.n,
                    EventKind.ACCEPTED,
                    waiting.recipient.address,
                    sender,
                    detail,
                )
            )
        self._fresh.add(number)
        segment.waiting = True
        segment.submit(writes.Accept(future, number, codec.message_row(message), content, rows, event_rows, events))
        if future.done():
            self._fresh.discard(number)
        return future

    def settle(self, settlement: Settlement) -> asyncio.Future[None]:
        """Write attempt, recipient states and events in one durable transaction, in the message's own segment."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        message = settlement.message
        segment = self._shelf.home(message)
        if segment is None:
            future.set_exception(NoSuchMessageError(f"no message {format_id(message)} here"))
            return future
        updates: list[object] = []
        event_rows: list[object] = []
        final = waits = undelayed = held = False
        for change in settlement.changes:
            updates += _update_row(message, change)
            event_rows += codec.event_row(change.event)
            state = change.after.state
            if state.final:
                final = True
            elif state is State.HELD:
                held = True
            else:
                waits = True
                undelayed = undelayed or not change.after.delayed
        attempt = settlement.attempt
        segment.waiting = True
        segment.submit(
            writes.Settle(
                future,
                message,
                updates,
                event_rows,
                [change.event for change in settlement.changes],
                None if attempt is None else codec.attempt_row(message, attempt),
                final,
                waits,
                undelayed,
                held,
            )
        )
        return future

    def amend(self, amendment: Amendment) -> asyncio.Future[Amended]:
        """Write what came back about a recipient in one durable transaction, in the message's own segment."""
        future: asyncio.Future[Amended] = asyncio.get_running_loop().create_future()
        after, event = amendment.change.after, amendment.change.event
        if after.state is not amendment.before and not after.state.final:
            raise ValueError(f"a fact makes no recipient {after.state}")
        if amendment.before.final and (amendment.before, after.state) != (State.DELIVERED, State.BOUNCED):
            # every other final state stands, whatever comes back
            after = replace(after, state=amendment.before, notice=None)
        segment = self._shelf.home(event.message)
        if segment is None:
            future.set_exception(NoSuchMessageError(f"no message {format_id(event.message)} here"))
            return future
        if after.notice is not None:
            segment.waiting = True
        segment.submit(
            writes.Amend(
                future,
                event.message,
                event.n,
                amendment.key,
                schema.STATE_CODE[amendment.before],
                schema.STATE_CODE[after.state],
                None if after.notice is None else after.notice.value,
                codec.event_row(event),
                event,
            )
        )
        return future

    def noticed(self, message: MessageId, ns: Sequence[int]) -> asyncio.Future[None]:
        """The owed reports about these recipients are made: clear their `notice`."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        segment = self._shelf.home(message)
        if segment is None:
            future.set_exception(NoSuchMessageError(f"no message {format_id(message)} here"))
        else:
            segment.submit(writes.Noticed(future, message, tuple(ns)))
        return future

    def subscribe(self, reader: Callable[[Sequence[Event]], None]) -> None:
        """Call `reader` on the loop with the events of each commit, in order, after it is on disk."""
        self._readers.append(reader)

    async def positions(self) -> dict[str, int]:
        """By segment, the last event that was committed since the start: every reader has been called with it."""
        return await stream.positions(self._shelf)

    def behind(self, known: Mapping[str, int], kinds: Sequence[EventKind], since: Millis) -> AsyncIterator[Page]:
        """Events of these kinds behind such positions, for a reader that a crash may have kept from hearing of them."""
        return stream.behind(self._shelf, known, kinds, since)

    def observe(self, watcher: Callable[[float, int], None]) -> None:
        """Call `watcher` on the loop after each commit, with its seconds and how many items shared it."""
        self._watchers.append(watcher)

    @property
    def failing(self) -> bool:
        """The last commit failed, a moment ago: the disk is full, read-only or broken."""
        return self._failed_at is not None and asyncio.get_running_loop().time() - self._failed_at < FAILING

    def wrote(self, seconds: float, items: int) -> None:
        """A segment's commit succeeded (Owner)."""
        self._failed_at = None
        for watcher in self._watchers:
            watcher(seconds, items)

    def failed(self) -> None:
        """A segment's commit failed (Owner)."""
        self._failed_at = asyncio.get_running_loop().time()

    def committed(self, segment: Segment, accepted: Sequence[MessageId], events: Sequence[Event]) -> None:
        """A segment's commit has ended (Owner)."""
        if accepted:
            # behind the callbacks of their futures: from then on whoever accepted them answers for them
            asyncio.get_running_loop().call_soon(self._fresh.difference_update, accepted)
        if events:
            for reader in self._readers:
                try:
                    reader(events)
                except Exception:  # noqa: BLE001 - a faulty reader must not stop the mail
                    structlog.get_logger("relayd.spool").exception("event_reader_failed")
        if segment.measure_every:
            self._shelf.roll_when_full(segment)

    def broken(self, segment: Segment, error: Exception) -> None:
        """A segment turned out to be damaged while at work (Owner)."""
        self._shelf.broken(segment, error)

    # ---------------------------------------------------------------- what is to be done

    async def due(self, lane: str, now: Millis, limit: int, skip: Container[MessageId], urgency: int = 0) -> Due:
        """At most `limit` messages of one priority with recipients of `lane` whose time has come, oldest first, less
        those in `skip`.

        Fewer where they have very many recipients; `next_due` is `now` then, as whenever more is due than was given.
        """
        heads: list[tuple[Millis, MessageId, int, Segment]] = []
        more = False
        later: list[Millis] = []
        for segment in self._shelf.waiting():
            found, cut = await self._due_heads(segment, (lane, urgency), now, limit, skip)
            heads += [(head.due, head.message, head.recipients, segment) for head in found]
            more = more or cut
            after = await segment.read(reads.next_due, lane, urgency, now)
            if after is not None:
                later.append(after)
        heads.sort(key=lambda head: head[:2])
        chosen, recipients = heads[:limit], 0
        for place, head in enumerate(chosen):
            recipients += head[2]
            if recipients > RECIPIENTS and place:
                chosen = chosen[:place]
                break
        more = more or len(chosen) < len(heads)
        # Read them again: what was settled since the first look, and has therefore left `skip`, must not come twice.
        loaded: dict[MessageId, Delivery] = {}
        for segment in dict.fromkeys(head[3] for head in chosen):
            numbers = [head[1] for head in chosen if head[3] is segment]
            readable, unreadable = await segment.read(reads.due_deliveries, lane, now, numbers)
            for delivery in readable:
                loaded[delivery.message.id] = delivery
            if unreadable:
                await self._set_aside(segment, unreadable, lane)
        deliveries = [loaded[head[1]] for head in chosen if head[1] in loaded and head[1] not in skip]
        return Due(deliveries, now if more else min(later, default=None))

    async def _set_aside(self, segment: Segment, messages: Sequence[MessageId], lane: str) -> None:
        """Hold what cannot be read: an operator has to look at it, and the lane goes on."""
        reason = "its record in the spool cannot be read"
        await segment.work(writes.set_aside, messages, lane, reason, self._clock())
        for message in messages:
            structlog.get_logger("relayd.spool").error(
                "message set aside", id=format_id(message), upstream=lane, segment=str(segment.path), reason=reason
            )

    async def _due_heads(
        self, segment: Segment, turn: tuple[str, int], now: Millis, limit: int, skip: Container[MessageId]
    ) -> tuple[list[reads.Head], bool]:
        """The first messages of a segment that are not to be skipped; whether there are more."""
        place = (-1, -1)
        chosen: dict[MessageId, reads.Head] = {}
        page = limit + 256
        while True:
            heads = await segment.read(reads.due_heads, turn, now, place, page)
            for head in heads:
                if head.message in chosen or head.message in skip or head.message in self._fresh:
                    continue
                if len(chosen) == limit:
                    return list(chosen.values()), True
                chosen[head.message] = head
            if len(heads) < page:
                return list(chosen.values()), False
            place = (heads[-1].due, heads[-1].message)

    async def lanes(self) -> list[LaneDepth]:
        """Every lane that has waiting recipients (held and parked ones not counted)."""
        depth: dict[str, int] = {}
        oldest: dict[str, MessageId] = {}
        for segment in self._shelf.waiting():
            for lane, count, message in await segment.survey(reads.lanes):
                depth[lane] = depth.get(lane, 0) + count
                oldest[lane] = min(oldest.get(lane, message), message)
        return [LaneDepth(lane, depth[lane], time_of(oldest[lane])) for lane in sorted(depth)]

    async def relane(
        self,
        choose: Callable[[Message, Waiting], str],
        skip: Container[MessageId],
        written: Callable[[Sequence[MessageId]], None] | None = None,
    ) -> int:
        """Look at the routes again for every recipient that is not final; how many changed lanes.

        They are due there at once, save for those that wait for an operator. Of what is to move, `skip` is asked, and
        `written` is told once it is on disk.
        """
        return await walks.relane(
            self._shelf, choose, clock=self._clock, committed=self.committed, skip=skip, written=written
        )

    @property
    def ahead(self) -> Millis:
        """How far the clock was behind the newest message when the store was opened."""
        return self._shelf.ahead

    async def pull_in(self, by: Millis) -> int:
        """The clock was put back: what waits for a later moment waits for one that is earlier by so much; how many."""
        return await walks.pull_in(self._shelf, self._clock(), by)

    async def overdue(self, accepted_before: Millis, limit: int) -> list[Delivery]:
        """Waiting recipients (deferred, paused, uncertain; not held) of messages accepted before that moment."""
        return await self._after_mark(reads.WAITING, accepted_before, limit)

    async def held(self, accepted_before: Millis, limit: int) -> list[Delivery]:
        """Held recipients of messages accepted before that moment."""
        return await self._after_mark(reads.HELD, accepted_before, limit)

    async def undelayed(self, accepted_before: Millis, limit: int) -> list[Delivery]:
        """Waiting recipients accepted before that moment about which no delay notice was considered yet."""
        return await self._after_mark(reads.UNDELAYED, accepted_before, limit)

    async def _after_mark(self, condition: str, accepted_before: Millis, limit: int) -> list[Delivery]:
        """By the moment in the id, which is when the message was accepted."""
        before = reads.first_id(accepted_before)
        found: list[Delivery] = []
        for segment in self._shelf.waiting():
            if segment.start < accepted_before and len(found) < limit:
                found += await segment.after_mark(condition, before, limit - len(found))
        return found

    async def owing(self, limit: int) -> list[MessageId]:
        """Messages with a report owed to their sender."""
        found: list[MessageId] = []
        for segment in self._shelf.waiting():
            if len(found) < limit:
                found += await segment.read(reads.owing, limit - len(found))
        return found

    # ---------------------------------------------------------------- what is known

    async def put_by_hand(self, messages: Sequence[MessageId]) -> frozenset[tuple[MessageId, int, str]]:
        """Recipients whose last move was an operator's: message, n and the lane that they were put into."""
        found: list[tuple[MessageId, int, str]] = []
        for segment, some in (await self._homes(messages)).items():
            found += await segment.read(histories.put_by_hand, some)
        return frozenset(found)

    async def released(self, messages: Sequence[MessageId], since: Millis) -> frozenset[tuple[MessageId, int]]:
        """Recipients released since that moment, and neither attempted nor held again."""
        found: list[tuple[MessageId, int]] = []
        for segment, some in (await self._homes(messages)).items():
            found += await segment.read(histories.released, some, since)
        return frozenset(found)

    async def _homes(self, messages: Sequence[MessageId]) -> dict[Segment, list[MessageId]]:
        homes: dict[Segment, list[MessageId]] = {}
        for message in messages:
            homes.setdefault(await self._shelf.open_home(message), []).append(message)
        return homes

    async def content(self, message: MessageId) -> bytes:
        """The kept octets. Raises NoSuchMessageError when message or body is gone."""
        return await (await self._shelf.open_home(message)).read(histories.content, message)

    async def history(self, message: MessageId) -> History:
        """Everything known of a message. Raises NoSuchMessageError."""
        return await (await self._shelf.open_home(message)).read(histories.history, message)

    async def by_message_id(self, wanted: Sequence[str], since: Millis) -> dict[str, list[MessageId]]:
        """Messages accepted since that moment that carry one of these Message-IDs (angle brackets included).

        Reads every message of that time, some at once, so that others need not wait: ask about many together.
        """
        return await walks.by_message_id(self._shelf, wanted, since)

    async def select(self, wanted: QueueFilter, limit: int, after: MessageId = 0) -> list[Delivery]:
        """Messages behind `after`, in the order of ids, with those of their recipients that the filter means."""
        found: list[Delivery] = []
        for segment in self._shelf.waiting():
            found += await segment.survey(search.matching, wanted, after, limit)
        found.sort(key=lambda delivery: delivery.message.id)
        return found[:limit]

    async def adopt(self, segments: Iterable[Path]) -> int:
        """Take in recovered segments, as far as they are ours; how many. Raises StoreError."""
        return sum([await self._shelf.adopt(path) for path in segments])

    async def retain(self, now: Millis, ledger: Ledger | None = None) -> None:
        """Drop bodies and whole segments past their keeping time; never anything that still waits.

        The figures of finished segments go to the ledger first.
        """
        await retention.retain(self._shelf, now, ledger)


def _check_due(waiting: Waiting) -> None:
    """What waits for an attempt must have a time for it, or nobody would ever look at it again."""
    if waiting.due is None and waiting.state in (State.QUEUED, State.DEFERRED):
        raise ValueError(f"a {waiting.state} recipient needs a time for its next attempt")


def _update_row(message: MessageId, change: Change) -> Iterable[object]:
    after = change.after
    state = after.state
    if state.final or state is State.HELD:
        due = None
    else:
        _check_due(after)
        due = after.due
    return (
        message,
        after.n,
        after.lane,
        schema.STATE_CODE[state],
        after.attempts,
        due,
        1 if after.delayed else 0,
        None if after.notice is None else after.notice.value,
    )
