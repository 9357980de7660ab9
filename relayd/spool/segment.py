"""One segment at work: its connections, its group commit, its reads. Which segment a message belongs to is sqlite.py's.

Group commit: whatever arrives while a commit is under way shares the next one, so a disk that syncs slowly only
makes the groups larger; and a loop that is busy, or clients who are about to, bring more before it begins.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import structlog

from relayd.core.event import Event
from relayd.core.ids import MessageId
from relayd.core.units import Millis
from relayd.spool import files, reads, schema, writes
from relayd.spool.company import Company
from relayd.spool.connection import Connection, open_reader, open_writer
from relayd.spool.faults import is_damage, store_error
from relayd.spool.schema import CHECKPOINT_PAGES, PAGE
from relayd.spool.store import Delivery, StoreError

P = ParamSpec("P")
T = TypeVar("T")

PARTS = 2
"""Parts of large bodies in one commit: some 2 MiB, so that others hardly notice."""
ROW = 512
"""Rough octets of a message's rows, for knowing when to measure a segment."""
PAGES = 12
"""Rough pages that any commit writes besides its bodies, for knowing when to checkpoint."""


class Owner(Protocol):
    """What a segment tells the store."""

    company: Company
    """Who is about to bring mail to it."""

    def committed(self, segment: Segment, accepted: Sequence[MessageId], events: Sequence[Event]) -> None:
        """A commit is on disk and its futures are resolved."""

    def wrote(self, seconds: float, items: int) -> None:
        """A commit of so many items took that long."""

    def failed(self) -> None:
        """A commit failed: nothing of it was kept."""

    def broken(self, segment: Segment, error: Exception) -> None:
        """The file is damaged; nothing more can be done with it."""


class _Mark:
    """Up to which message a question needs no asking again, held right while commits and scans overlap."""

    def __init__(self) -> None:
        self.value: MessageId = 0
        self._lowest: MessageId = reads.LAST
        self._scans = 0

    def begin(self) -> MessageId:
        """A scan begins: behind which message."""
        if not self._scans:
            self._lowest = reads.LAST
        self._scans += 1
        return self.value

    def end(self, clear_up_to: MessageId) -> None:
        """The scan found nothing up to there; what was committed meanwhile it may have missed."""
        self._scans -= 1
        self.value = max(self.value, min(clear_up_to, self._lowest - 1))

    def touched(self, message: MessageId) -> None:
        """A commit made the question worth asking of this message."""
        self.value = min(self.value, message - 1)
        self._lowest = min(self._lowest, message)


class Segment:
    """One file of the spool. Opened when first used."""

    def __init__(self, path: Path, slot: int, owner: Owner, *, drop_bodies: bool, make: bool = False) -> None:
        self.path = path
        self.start: Millis = files.start_of(path)
        self.slot = slot
        self.waiting = make
        """Something may wait or be owed here. True until retain() finds otherwise."""
        self.newest: MessageId | None = None
        self.octets = 0
        """Octets in use, as last measured, plus what was written since."""
        self.drop_bodies = drop_bodies
        self.measure_every = 0
        """Octets after which to measure again; 0 for never."""
        self.gone: StoreError | None = None
        """Why it cannot be used any more: damaged, or past its keeping time."""
        self.commits = 0
        self.told: tuple[int, int] | None = None
        """The last event, and how many commits there were when it was looked up."""
        self.counted: int | None = None
        """How many commits there were when the ledger was last brought up to date; None: not since the start."""
        self.bodies_dropped = False
        """No body is left in it, nor will be."""
        self.used_at: float = 0.0
        self._owner = owner
        self._make = make
        self._opening = asyncio.Lock()
        self._writer: Connection | None = None
        self._reader: Connection | None = None
        self._keeper: Connection | None = None
        self._surveyor: Connection | None = None
        self._checkpointing: asyncio.Task[None] | None = None
        self._wal_pages = 0
        self._users = 0
        self._pending: deque[writes.Item] = deque()
        self._large: deque[writes.Accept] = deque()
        self._orphans: list[MessageId] = []
        self._unmeasured = 0
        self._committing: asyncio.Task[None] | None = None
        self._accepts = 0  # of what is pending
        self._marks = {reads.WAITING: _Mark(), reads.UNDELAYED: _Mark(), reads.HELD: _Mark()}

    def __repr__(self) -> str:
        return f"<Segment {self.path.parent.name}/{self.path.name}>"

    @property
    def idle(self) -> bool:
        """Nobody uses it at this moment."""
        return not (self._users or self._pending or self._large or self._committing or self._checkpointing)

    @property
    def open(self) -> bool:
        """It has a connection."""
        return self._writer is not None or self._reader is not None or self._surveyor is not None

    # ---------------------------------------------------------------- writing

    def submit(self, item: writes.Item) -> None:
        """Have an item written with the next commit; its future tells."""
        if self.gone is not None:
            item.future.set_exception(self._reason())
            return
        self._pending.append(item)
        if type(item) is writes.Accept:
            self._accepts += 1
            self._owner.company.look()
        if self._committing is None:
            # a task starts in the next turn of the loop: all that arrives in this turn shares its commit
            self._committing = asyncio.get_running_loop().create_task(
                self._commit_all(), name=f"spool commit {self.path.name}"
            )

    async def _commit_all(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._pending or self._large:
                await self._owner.company.wait(self._clients)
                batch = self._take()
                if not (batch.items or batch.parts):  # the segment was given up meanwhile
                    continue
                begun = loop.time()
                try:
                    writer = self._writer or await self._open_writer()
                    results = await writer.run(writes.commit, batch)
                except Exception as error:  # noqa: BLE001 - whatever failed, those who wait must be told
                    self._failed(batch, error)
                    continue
                self._owner.wrote(loop.time() - begun, len(batch.items))
                self._succeeded(batch, results)
                self._checkpoint_in_time(batch)
                if self.measure_every and self._unmeasured >= self.measure_every:
                    await self._measure(writer)
        finally:
            self._committing = None

    def _clients(self) -> int:
        """Mails whose clients wait for the next commit, and for which it may wait for others; a large one has so many
        commits to make that it waits for nobody.
        """
        return 0 if self._large else self._accepts

    def _take(self) -> writes.Batch:
        """The next commit's share of what waits."""
        batch = writes.Batch(drop_bodies=self.drop_bodies, orphans=self._orphans)
        pending, items = self._pending, batch.items
        octets = values = 0
        while pending and octets < writes.OCTETS and values < writes.VALUES:
            item = pending.popleft()
            if type(item) is writes.Accept:
                self._accepts -= 1
                if item.large:
                    self._large.append(item)
                    continue
                octets += len(item.content)
                values += len(item.recipients)
            elif type(item) is writes.Settle:
                values += len(item.updates)
            items.append(item)
        batch.octets = octets
        for _ in range(min(PARTS, len(self._large))):
            self._take_part(batch)
        return batch

    def _take_part(self, batch: writes.Batch) -> None:
        item = self._large.popleft()
        begin = item.part * writes.PART
        view = memoryview(item.content)[begin : begin + writes.PART]
        batch.parts.append((item.message, item.part, view))
        batch.octets += len(view)
        item.part += 1
        if begin + writes.PART >= len(item.content):
            batch.items.append(item)
        else:
            self._large.append(item)

    def _succeeded(self, batch: writes.Batch, results: Sequence[writes.Result]) -> None:
        accepted: list[MessageId] = []
        events: list[Event] = []
        waits, undelayed = self._marks[reads.WAITING], self._marks[reads.UNDELAYED]
        self._orphans = []
        self.commits += 1
        for item, result in zip(batch.items, results, strict=True):
            if type(item) is writes.Accept:
                accepted.append(item.message)
                if result.error is not None and item.large:
                    self._orphans.append(item.message)
                waits.touched(item.message)
                undelayed.touched(item.message)
            elif type(item) is writes.Settle:
                if item.waits:
                    waits.touched(item.message)
                if item.undelayed:
                    undelayed.touched(item.message)
                if item.held:
                    self._marks[reads.HELD].touched(item.message)
            events += result.events
            if item.future.done():
                continue
            if result.error is not None:
                item.future.set_exception(result.error)
            else:
                item.future.set_result(result.value)
        if accepted:
            self.newest = max(self.newest or 0, *accepted)
        written = batch.octets + ROW * len(batch.items)
        self.octets += written
        self._unmeasured += written
        self._owner.committed(self, accepted, events)

    def _failed(self, batch: writes.Batch, error: Exception) -> None:
        """Nothing of the batch was kept: tell all who wait for it."""
        cause = store_error(error)
        half = {message for message, _, _ in batch.parts}
        lost = list(batch.items)
        for large in [item for item in self._large if item.message in half]:
            self._large.remove(large)
            lost.append(large)
        self._orphans = [*batch.orphans, *(message for message in half if message not in batch.orphans)]
        accepted = [item.message for item in lost if type(item) is writes.Accept]
        for item in lost:
            if not item.future.done():
                item.future.set_exception(cause)
        structlog.get_logger("relayd.spool").error(
            "spool_commit_failed", segment=str(self.path), items=len(lost), error=str(error)
        )
        self._owner.failed()
        self._owner.committed(self, accepted, ())
        if is_damage(error):
            self.break_off(error)

    def break_off(self, error: Exception) -> None:
        """The file is damaged: fail what waits and tell the store, once."""
        if self.gone is not None:
            return
        self.gone = StoreError("the segment is damaged and set aside")
        lost = [*self._pending, *self._large]
        self._pending.clear()
        self._accepts = 0
        self._large.clear()
        for item in lost:
            if not item.future.done():
                item.future.set_exception(store_error(error))
        self._owner.committed(self, [item.message for item in lost if type(item) is writes.Accept], ())
        self._owner.broken(self, error)

    def _checkpoint_in_time(self, batch: writes.Batch) -> None:
        """See that the WAL is copied into the file now and then, without making a commit wait for all of it."""
        self._wal_pages += PAGES + batch.octets // PAGE + 2 * len(batch.items)
        if self._wal_pages >= CHECKPOINT_PAGES and self._checkpointing is None:
            self._checkpointing = asyncio.get_running_loop().create_task(
                self._checkpoint(), name=f"spool checkpoint {self.path.name}"
            )

    async def _checkpoint(self) -> None:
        try:
            if self._keeper is None:
                self._keeper = await open_writer(self.path)
            # the bulk of it beside the commits; then, between two commits, the little that came meanwhile: only when
            # all is copied does SQLite begin the WAL anew
            await self._keeper.run(writes.checkpoint)
            if self._writer is not None:
                await self._writer.run(writes.checkpoint)
            self._wal_pages = 0
        except (sqlite3.Error, OSError) as error:
            structlog.get_logger("relayd.spool").error(
                "spool_checkpoint_failed", segment=str(self.path), error=str(error)
            )
            if is_damage(error):
                self.break_off(error)
        finally:
            self._checkpointing = None

    async def _measure(self, writer: Connection) -> None:
        self._unmeasured = 0
        try:
            self.octets = await writer.run(reads.used_octets)
        except sqlite3.Error as error:
            structlog.get_logger("relayd.spool").warning("spool_measure_failed", error=str(error))

    async def work(
        self, function: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run upkeep on the writer between two commits. Raises StoreError."""
        return await self._guarded(self._open_writer, function, *args, **kwargs)

    # ---------------------------------------------------------------- reading

    async def read(
        self, function: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a question on the read connection. Raises StoreError, or what the question raises of it."""
        return await self._guarded(self._open_reader, function, *args, **kwargs)

    async def survey(
        self, function: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """As `read`, for questions that walk over a whole table: they keep no other read waiting."""
        return await self._guarded(self._open_surveyor, function, *args, **kwargs)

    async def _guarded(
        self,
        opened: Callable[[], Awaitable[Connection]],
        function: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        if self.gone is not None:
            raise self._reason()
        self._users += 1
        self.used_at = asyncio.get_running_loop().time()
        try:
            return await (await opened()).run(function, *args, **kwargs)
        except (sqlite3.Error, OSError) as error:
            if is_damage(error):
                self.break_off(error)
            raise store_error(error) from error
        finally:
            self._users -= 1

    async def after_mark(self, condition: str, before: MessageId, limit: int) -> list[Delivery]:
        """Messages under `before` with recipients that fulfil a condition, without walking twice over what has none."""
        mark = self._marks[condition]
        start = mark.begin()
        clear = start
        try:
            found = await self.read(reads.messages_with, condition, start, before, limit)
            clear = found[0] - 1 if found else before - 1
        finally:
            mark.end(clear)
        return await self.read(reads.deliveries, found, condition)

    # ---------------------------------------------------------------- opening and closing

    async def _open_writer(self) -> Connection:
        async with self._opening:
            if self._writer is None:
                if self._make:
                    await asyncio.to_thread(files.make_segment, self.path)
                    self._make = False
                self._writer = await open_writer(self.path)
                await self._mark_open(self._writer)
            return self._writer

    async def _mark_open(self, writer: Connection) -> None:
        """Before anything is committed to the WAL, the file itself says that it has one."""
        try:
            await writer.run(writes.mark, schema.OPEN)
        except sqlite3.Error as error:
            if is_damage(error):
                raise
            # a full disk: the mark only serves to notice that a WAL was lost
            structlog.get_logger("relayd.spool").warning("spool_mark_failed", error=str(error))

    async def _open_reader(self) -> Connection:
        if self._make:
            await self._open_writer()
        async with self._opening:
            if self._reader is None:
                self._reader = await open_reader(self.path)
            return self._reader

    async def _open_surveyor(self) -> Connection:
        if self._make:
            await self._open_writer()
        async with self._opening:
            if self._surveyor is None:
                self._surveyor = await open_reader(self.path)
            return self._surveyor

    async def open_now(self) -> None:
        """Open, or make, the file. Raises StoreError."""
        try:
            await self._open_writer()
        except (sqlite3.Error, OSError) as error:
            raise store_error(error) from error

    def _reason(self) -> StoreError:
        return type(self.gone)(str(self.gone)) if self.gone else StoreError("closed")

    async def drain(self) -> None:
        """Wait until all that was submitted is written, or has failed."""
        while tasks := [task for task in (self._committing, self._checkpointing) if task is not None]:
            await asyncio.wait(tasks)

    async def close(self) -> None:
        """Commit what is pending, checkpoint, and let go of the file. It opens again when used."""
        await self.drain()
        async with self._opening:
            connections = (self._reader, self._surveyor, self._keeper, self._writer)
            writer = self._writer
            # whoever comes from now on waits for the lock, and opens anew
            self._reader = self._surveyor = self._keeper = self._writer = None
            with ExitStack() as held:
                for connection in connections:
                    if connection is not None:
                        try:
                            if connection is writer:
                                await connection.run(writes.retire, held)
                            await connection.close()
                        except sqlite3.Error as error:
                            structlog.get_logger("relayd.spool").warning("spool_close_failed", error=str(error))
