"""The Store on SQLite segments: which segment a message lives in, rollover, recovery, and answers over all of them.

What happens inside one segment is segment.py's. Processes never share a slot, so nobody else writes these files.
"""

from __future__ import annotations

import asyncio
import sqlite3
from bisect import bisect_right
from collections.abc import Callable, Container, Iterable, Sequence
from contextlib import closing
from pathlib import Path

import structlog

from relayd.config.models import Spool
from relayd.core.event import Event, EventKind
from relayd.core.ids import IdMint, MessageId, format_id, slot_of, time_of
from relayd.core.lifecycle import State
from relayd.core.mail import Message, Recipient
from relayd.core.units import Millis
from relayd.spool import codec, files, reads, schema, writes
from relayd.spool.faults import is_damage, store_error
from relayd.spool.filter import QueueFilter
from relayd.spool.segment import Segment
from relayd.spool.store import (
    Change,
    Delivery,
    Due,
    History,
    LaneDepth,
    NoSuchMessageError,
    Settlement,
    StoreError,
    Waiting,
)

PAGE = 500
"""Messages looked at in one read of a long walk."""
UPKEEP = 200
"""Messages changed in one transaction of upkeep, between two commits of mail."""
RECIPIENTS = 10_000
"""Recipients in one answer of due(): a bound on memory where messages have very many."""
FAILING = 10.0
"""Seconds for which a failed commit counts: where nobody sends any more, no later commit would tell that it healed."""
OPEN_FINISHED = 8
"""Finished segments that stay open after a look into them."""


class SqliteStore:
    """One worker's spool in `directory` (data_dir/spool).

    The worker of `slot` among `slots` also serves the mail of slots that have no worker any more.
    """

    def __init__(self, directory: Path, slot: int, slots: int, settings: Spool, clock: Callable[[], Millis]) -> None:
        if not 0 <= slot < slots:
            raise ValueError(f"slot {slot} of {slots}")
        self.damaged = 0
        """Segments set aside since the store was opened."""
        self._failed_at: float | None = None
        self._watchers: list[Callable[[float, int], None]] = []
        self._directory = directory
        self._slot = slot
        self._slots = slots
        self._settings = settings
        self._clock = clock
        self._mint = IdMint(slot)
        self._last_id: MessageId = 0
        self._segments: dict[int, list[Segment]] = {slot: []}
        """Per slot, by start."""
        self._roll_at: Millis = 0
        self._fresh: set[MessageId] = set()
        """Accepted, but those who wait for the commit have not heard of it yet."""
        self._readers: list[Callable[[Sequence[Event]], None]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    # ---------------------------------------------------------------- opening and closing

    async def open(self) -> None:
        """Recover what is on disk and begin. Raises StoreError: of a newer schema before anything is changed."""
        log = structlog.get_logger("relayd.spool")
        try:
            found = await asyncio.to_thread(self._survey)
            for slot, path in found:
                await self._recover(slot, path)
            if not self._segments[self._slot]:
                self._begin_segment(self._clock())
            else:
                self._resume(self._segments[self._slot][-1])
            await self._segments[self._slot][-1].open_now()
        except OSError as error:
            raise store_error(error) from error
        waiting = [segment for segment in self._all() if segment.waiting]
        log.info(
            "spool_recovered",
            slot=self._slot,
            adopted=sorted(slot for slot in self._segments if slot != self._slot),
            segments=len(found),
            waiting=len(waiting),
            damaged=self.damaged,
        )

    def _survey(self) -> list[tuple[int, Path]]:
        """Every segment that is ours, after a look at all versions. Raises StoreError, OSError."""
        mine = [
            slot
            for slot in files.slots_on_disk(self._directory)
            if slot == self._slot or (slot >= self._slots and slot % self._slots == self._slot)
        ]
        found = [
            (slot, path) for slot in mine for path in files.segments_in(files.slot_directory(self._directory, slot))
        ]
        for _, path in found:
            version = files.version_of(path)
            if version is not None and version > schema.VERSION:
                raise StoreError(
                    f"{path} was written by a newer relayd (schema {version}, this one knows {schema.VERSION});"
                    " nothing was changed"
                )
        files.make_folder(files.slot_directory(self._directory, self._slot))
        return found

    async def _recover(self, slot: int, path: Path) -> None:
        segment = self._segment(path, slot)
        try:
            standing, segment.octets = await asyncio.to_thread(_probe, path)
        except sqlite3.Error as error:
            if not is_damage(error):
                raise store_error(error) from error
            self._segments.setdefault(slot, [])
            segment.newest = await asyncio.to_thread(self._last_possible, path)
            await self._set_aside(segment, error)
        else:
            segment.waiting = standing.waiting or standing.owed
            segment.newest = standing.newest
            self._segments.setdefault(slot, []).append(segment)
            if segment.waiting:
                await segment.open_now()
        if slot == self._slot:
            # neither ids nor the start of a later segment may fall behind what is there
            self._last_id = max(self._last_id, segment.newest or 0, reads.first_id(segment.start) - 1)
            self._mint.after(self._last_id)

    def _last_possible(self, path: Path) -> MessageId:
        """An id above those of a file that cannot be read, by when it was last written to (if that is credible)."""
        written = round(path.stat().st_mtime * 1000) + 1
        return reads.first_id(written) if written <= self._clock() + reads.SKEW else 0

    def _segment(self, path: Path, slot: int, *, make: bool = False) -> Segment:
        return Segment(path, slot, self, drop_bodies=self._settings.keep_body == 0, make=make)

    def _resume(self, segment: Segment) -> None:
        self._roll_at = segment.start + round(self._settings.segment * 1000)
        segment.measure_every = max(self._settings.segment_size // 16, 1)
        self._roll_when_full(segment)

    def _begin_segment(self, now: Millis) -> None:
        """Ids minted from now on belong to a new file. It is made when first written to."""
        mine = self._segments[self._slot]
        start = max(now, time_of(self._last_id) + 1 if self._last_id else 0, mine[-1].start + 1 if mine else 0)
        # every later id is of that moment or after it, even if the clock steps back
        self._mint.after(reads.first_id(start) - 1)
        folder = files.slot_directory(self._directory, self._slot)
        segment = self._segment(folder / files.name_of(start), self._slot, make=True)
        if mine:
            mine[-1].measure_every = 0
        mine.append(segment)
        self._resume(segment)

    def _roll_when_full(self, segment: Segment) -> None:
        if segment.octets >= self._settings.segment_size:
            self._roll_at = 0

    def apply(self, settings: Spool) -> None:
        """Take changed settings; a new period or size holds from the next segment on."""
        self._settings = settings
        for segment in self._all():
            segment.drop_bodies = settings.keep_body == 0

    async def close(self) -> None:
        """Commit what is pending, checkpoint and close."""
        for segment in self._all():
            await segment.close()
        if self._tasks:
            await asyncio.wait(self._tasks)

    # ---------------------------------------------------------------- writing

    def mint(self) -> MessageId:
        """A fresh id of this worker."""
        now = self._clock()
        if now >= self._roll_at:
            current = self._segments[self._slot][-1]
            if current.newest is None and current.idle:
                # nothing is in it yet: it serves for another period
                self._roll_at = now + round(self._settings.segment * 1000)
            else:
                self._begin_segment(now)
        self._last_id = self._mint.next(now)
        return self._last_id

    def accept(self, message: Message, recipients: Sequence[Waiting], content: bytes) -> asyncio.Future[None]:
        """Keep message, recipients and their `accepted` events in one durable transaction."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        number, sender = message.id, message.envelope.sender
        segment = self._home(number)
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
            rows += codec.recipient_row(number, waiting)
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
        return future

    def settle(self, settlement: Settlement) -> asyncio.Future[None]:
        """Write attempt, recipient states and events in one durable transaction, in the message's own segment."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        message = settlement.message
        segment = self._home(message)
        if segment is None:
            future.set_exception(NoSuchMessageError(f"no message {format_id(message)} here"))
            return future
        updates: list[object] = []
        event_rows: list[object] = []
        final = waits = undelayed = False
        for change in settlement.changes:
            updates += _update_row(message, change)
            event_rows += codec.event_row(change.event)
            state = change.after.state
            if state.final:
                final = True
            elif state is not State.HELD:
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
            )
        )
        return future

    def noticed(self, message: MessageId, ns: Sequence[int]) -> asyncio.Future[None]:
        """The owed reports about these recipients are made: clear their `notice`."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        segment = self._home(message)
        if segment is None:
            future.set_exception(NoSuchMessageError(f"no message {format_id(message)} here"))
        else:
            segment.submit(writes.Noticed(future, message, tuple(ns)))
        return future

    def subscribe(self, reader: Callable[[Sequence[Event]], None]) -> None:
        """Call `reader` on the loop with the events of each commit, in order, after it is on disk."""
        self._readers.append(reader)

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
            self._roll_when_full(segment)

    # ---------------------------------------------------------------- finding segments

    def _all(self) -> list[Segment]:
        return [segment for segments in self._segments.values() for segment in segments]

    def _home(self, message: MessageId) -> Segment | None:
        """The segment of an id: the last one that starts at or before the id's moment."""
        segments = self._segments.get(slot_of(message))
        if not segments:
            return None
        at = time_of(message)
        if segments[-1].start <= at:
            return segments[-1]
        place = bisect_right(segments, at, key=lambda segment: segment.start)
        return segments[place - 1] if place else None

    async def _read_home(self, message: MessageId) -> Segment:
        segment = self._home(message)
        if segment is None:
            raise NoSuchMessageError(f"no message {format_id(message)} here")
        if not segment.open:
            await self._close_unused(OPEN_FINISHED - 1)
        return segment

    async def _close_unused(self, leave: int) -> None:
        """Close finished segments that nobody uses, all but the `leave` last used ones."""
        current = self._segments[self._slot][-1]
        unused = [
            segment
            for segment in self._all()
            if segment.open and segment is not current and not segment.waiting and segment.idle
        ]
        unused.sort(key=lambda segment: segment.used_at, reverse=True)
        for segment in unused[leave:]:
            if segment.idle:
                await segment.close()

    def broken(self, segment: Segment, error: Exception) -> None:
        """A segment turned out to be damaged while at work (Owner)."""
        segments = self._segments[segment.slot]
        current = segment.slot == self._slot and segments[-1] is segment
        segments.remove(segment)
        if current:
            self._begin_segment(self._clock())
        task = asyncio.get_running_loop().create_task(
            self._retire(segment, error), name=f"spool set aside {segment.path.name}"
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _retire(self, segment: Segment, error: Exception) -> None:
        await segment.close()
        await self._set_aside(segment, error)

    async def _set_aside(self, segment: Segment, error: Exception) -> None:
        log = structlog.get_logger("relayd.spool")
        self.damaged += 1
        try:
            aside = str(await asyncio.to_thread(files.set_aside, segment.path))
        except (OSError, StoreError) as failure:
            aside = f"failed: {failure}"
        log.error("segment_damaged", segment=str(segment.path), error=str(error), set_aside=aside)

    # ---------------------------------------------------------------- what is to be done

    async def due(self, lane: str, now: Millis, limit: int, skip: Container[MessageId]) -> Due:
        """At most `limit` messages with recipients of `lane` whose time has come, oldest first, less those in `skip`.

        Fewer where they have very many recipients; `next_due` is `now` then, as whenever more is due than was given.
        """
        heads: list[tuple[Millis, MessageId, int, Segment]] = []
        more = False
        later: list[Millis] = []
        for segment in self._waiting():
            found, cut = await self._due_heads(segment, lane, now, limit, skip)
            heads += [(head.due, head.message, head.recipients, segment) for head in found]
            more = more or cut
            after = await segment.read(reads.next_due, lane, now)
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
            for delivery in await segment.read(reads.due_deliveries, lane, now, numbers):
                loaded[delivery.message.id] = delivery
        deliveries = [loaded[head[1]] for head in chosen if head[1] in loaded and head[1] not in skip]
        return Due(deliveries, now if more else min(later, default=None))

    async def _due_heads(
        self, segment: Segment, lane: str, now: Millis, limit: int, skip: Container[MessageId]
    ) -> tuple[list[reads.Head], bool]:
        """The first messages of a segment that are not to be skipped; whether there are more."""
        place = (-1, -1)
        chosen: dict[MessageId, reads.Head] = {}
        page = limit + 256
        while True:
            heads = await segment.read(reads.due_heads, lane, now, place, page)
            for head in heads:
                if head.message in chosen or head.message in skip or head.message in self._fresh:
                    continue
                if len(chosen) == limit:
                    return list(chosen.values()), True
                chosen[head.message] = head
            if len(heads) < page:
                return list(chosen.values()), False
            place = (heads[-1].due, heads[-1].message)

    def _waiting(self) -> list[Segment]:
        return [segment for segment in self._all() if segment.waiting]

    async def lanes(self) -> list[LaneDepth]:
        """Every lane that has waiting recipients (held and parked ones not counted)."""
        depth: dict[str, int] = {}
        oldest: dict[str, MessageId] = {}
        for segment in self._waiting():
            for lane, count, message in await segment.read(reads.lanes):
                depth[lane] = depth.get(lane, 0) + count
                oldest[lane] = min(oldest.get(lane, message), message)
        return [LaneDepth(lane, depth[lane], time_of(oldest[lane])) for lane in sorted(depth)]

    async def relane(self, choose: Callable[[Message, Recipient], str], skip: Container[MessageId]) -> int:
        """Look at the routes again for every recipient that is not final; how many changed lanes."""
        changed = 0
        for segment in self._waiting():
            after: MessageId = -1
            while True:
                page = await segment.read(reads.after_messages, reads.UNFINISHED, after, reads.LAST, PAGE)
                if not page:
                    break
                after = page[-1].message.id
                moves = [
                    (lane, delivery.message.id, waiting.n)
                    for delivery in page
                    if delivery.message.id not in skip
                    for waiting in delivery.recipients
                    if (lane := choose(delivery.message, waiting.recipient)) != waiting.lane
                ]
                if moves:
                    changed += await segment.work(writes.relane, moves)
        return changed

    async def overdue(self, accepted_before: Millis, limit: int) -> list[Delivery]:
        """Waiting recipients (deferred, paused, uncertain; not held) of messages accepted before that moment."""
        return await self._after_mark(reads.WAITING, accepted_before, limit)

    async def undelayed(self, accepted_before: Millis, limit: int) -> list[Delivery]:
        """Waiting recipients accepted before that moment about which no delay notice was considered yet."""
        return await self._after_mark(reads.UNDELAYED, accepted_before, limit)

    async def _after_mark(self, condition: str, accepted_before: Millis, limit: int) -> list[Delivery]:
        """By the moment in the id, which is when the message was accepted."""
        before = reads.first_id(accepted_before)
        found: list[Delivery] = []
        for segment in self._waiting():
            if segment.start < accepted_before and len(found) < limit:
                found += await segment.after_mark(condition, before, limit - len(found))
        return found

    async def owing(self, limit: int) -> list[MessageId]:
        """Messages with a report owed to their sender."""
        found: list[MessageId] = []
        for segment in self._waiting():
            if len(found) < limit:
                found += await segment.read(reads.owing, limit - len(found))
        return found

    # ---------------------------------------------------------------- what is known

    async def content(self, message: MessageId) -> bytes:
        """The kept octets. Raises NoSuchMessageError when message or body is gone."""
        return await (await self._read_home(message)).read(reads.content, message)

    async def history(self, message: MessageId) -> History:
        """Everything known of a message. Raises NoSuchMessageError."""
        return await (await self._read_home(message)).read(reads.history, message)

    async def select(self, wanted: QueueFilter, limit: int, after: MessageId = 0) -> list[Delivery]:
        """Messages behind `after`, in the order of ids, with those of their recipients that the filter means."""
        found: list[Delivery] = []
        for segment in self._waiting():
            found += await segment.read(reads.matching, wanted, after, limit)
        found.sort(key=lambda delivery: delivery.message.id)
        return found[:limit]

    # ---------------------------------------------------------------- keeping

    async def retain(self, now: Millis) -> None:
        """Drop bodies and whole segments past their keeping time; never anything that still waits."""
        keep, keep_body = round(self._settings.keep * 1000), round(self._settings.keep_body * 1000)
        for slot, segments in list(self._segments.items()):
            for segment in list(segments):
                if segment.gone is not None:
                    continue
                current = slot == self._slot and segment is segments[-1]
                try:
                    if not current and await self._unlink_if_past(segment, now - keep):
                        continue
                    if keep_body < keep:
                        await self._drop_bodies(segment, now - keep_body, compact=not current)
                except StoreError as error:
                    structlog.get_logger("relayd.spool").error(
                        "retention_failed", segment=str(segment.path), error=str(error)
                    )
        await self._close_unused(0)

    async def _unlink_if_past(self, segment: Segment, before: Millis) -> bool:
        """Remove a segment that ended before a moment and in which nothing waits or is owed."""
        if segment.waiting and segment.idle:
            commits = segment.commits
            standing = await segment.read(reads.standing)
            # what was committed meanwhile has its say in the next round
            if not (standing.waiting or standing.owed) and segment.idle and segment.commits == commits:
                segment.waiting = False
        if segment.waiting or not segment.idle or self._end(segment) > before:
            return False
        self._segments[segment.slot].remove(segment)
        segment.gone = NoSuchMessageError("past its keeping time")
        await segment.close()
        try:
            await asyncio.to_thread(files.remove, segment.path)
        except OSError as error:
            raise store_error(error) from error
        structlog.get_logger("relayd.spool").info("segment_removed", segment=str(segment.path))
        return True

    def _end(self, segment: Segment) -> Millis:
        """The moment after which no message of the segment was accepted."""
        segments = self._segments[segment.slot]
        place = segments.index(segment) + 1
        if place < len(segments):
            return segments[place].start
        return segment.start if segment.newest is None else time_of(segment.newest) + 1

    async def _drop_bodies(self, segment: Segment, before: Millis, *, compact: bool) -> None:
        """Drop the bodies of messages whose last recipient became final before a moment."""
        if segment.start > before or segment.bodies_dropped:
            return
        after: MessageId = -1
        left = False
        dropped = 0
        while True:
            page = await segment.read(reads.bodies, after, reads.first_id(before), UPKEEP)
            if not page:
                break
            after = page[-1]
            count = await segment.work(writes.drop_bodies, page, before)
            dropped += count
            left = left or count < len(page)
        if dropped:
            structlog.get_logger("relayd.spool").info("bodies_dropped", segment=str(segment.path), messages=dropped)
        if compact and not segment.waiting:
            await segment.work(writes.compact)
            # all bodies are gone for good: the next rounds need not look
            segment.bodies_dropped = not left


def _probe(path: Path) -> tuple[reads.Standing, int]:
    """Recover a segment after whatever happened to it; what is in it and its size. Raises sqlite3.Error."""
    with closing(schema.connect(path)) as db:
        if db.execute("PRAGMA user_version").fetchone()[0] != schema.VERSION:
            raise _not_a_segment()
        writes.drop_unfinished_parts(db)
        return reads.standing(db), reads.used_octets(db)


def _not_a_segment() -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError("the file is not a segment")
    error.sqlite_errorcode = sqlite3.SQLITE_NOTADB
    return error


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
