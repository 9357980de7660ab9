"""The segments of one worker: which there are, which one a message lives in, rollover, recovery, setting aside.

What happens inside one segment is segment.py's; the verbs of mail are sqlite.py's.
"""

from __future__ import annotations

import asyncio
import sqlite3
from bisect import bisect_right
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import structlog

from relayd.config.models import Spool
from relayd.core.ids import IdMint, MessageId, format_id, place_of, time_of
from relayd.core.units import Millis
from relayd.spool import files, reads, schema, wal, writes
from relayd.spool.faults import is_damage, store_error
from relayd.spool.segment import Owner, Segment
from relayd.spool.store import NoSuchMessageError, StoreError, StoreFullError

OPEN_FINISHED = 8
"""Finished segments that stay open after a look into them."""


class Shelf:
    """The segments of `slot` among `slots`, and those of slots that have no worker any more."""

    def __init__(
        self,
        directory: Path,
        slot: int,
        slots: int,
        settings: Spool,
        clock: Callable[[], Millis],
        *,
        owner: Owner,
    ) -> None:
        if not 0 <= slot < slots:
            raise ValueError(f"slot {slot} of {slots}")
        self.damaged = 0
        """Segments of ours that lie set aside."""
        self.settings = settings
        self._directory = directory
        self._slot = slot
        self._slots = slots
        self._clock = clock
        self._owner = owner
        self._mint = IdMint(slot)
        self._last_id: MessageId = 0
        self._segments: dict[int, list[Segment]] = {slot: []}
        """Per slot, by start."""
        self._roll_at: Millis = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self.ahead: Millis = 0
        """How far the clock was behind the newest message of ours at the start."""
        self._lost: list[tuple[int, Millis, Millis]] = []
        """Slot and span of ids of what was set aside since the start: no other segment takes them."""

    # ---------------------------------------------------------------- opening and closing

    async def open(self) -> None:
        """Recover what is on disk and begin. Raises StoreError: of a newer schema before anything is changed."""
        log = structlog.get_logger("relayd.spool")
        try:
            found = await asyncio.to_thread(self._survey)
            for slot, path in found:
                await self._recover(slot, path)
            if self._last_id:
                self.ahead = max(time_of(self._last_id) - self._clock(), 0)
            if not self._segments[self._slot]:
                self._begin_segment(self._clock())
            else:
                self._resume(self._segments[self._slot][-1])
            await self._open_current()
        except OSError as error:
            raise store_error(error) from error
        log.info(
            "spool_recovered",
            slot=self._slot,
            adopted=sorted(slot for slot in self._segments if slot != self._slot),
            segments=len(found),
            damaged=self.damaged,
        )

    async def _open_current(self) -> None:
        try:
            await self.current.open_now()
        except StoreFullError as error:
            # what waits can still be sent once there is room; the segment is made when first written to
            structlog.get_logger("relayd.spool").error("spool_full", error=str(error))

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
            files.refuse_newer(path, schema.VERSION)
        files.make_folder(files.slot_directory(self._directory, self._slot))
        self.damaged = sum(int(path.parent.name) in mine for path in files.damaged_in(self._directory))
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
        parts = [path.with_name(path.name + suffix) for suffix in files.SUFFIXES]
        written = round(max(part.stat().st_mtime for part in parts if part.exists()) * 1000) + 1
        lowest = reads.first_id(files.start_of(path))
        return max(lowest, reads.first_id(written) if written <= self._clock() + reads.SKEW else 0)

    def _segment(self, path: Path, slot: int, *, make: bool = False) -> Segment:
        return Segment(path, slot, self._owner, drop_bodies=self.settings.keep_body == 0, make=make)

    def _resume(self, segment: Segment) -> None:
        self._roll_at = segment.start + round(self.settings.segment * 1000)
        segment.measure_every = max(self.settings.segment_size // 16, 1)
        self.roll_when_full(segment)

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
        if self._closed:
            segment.gone = StoreError("the spool is closed")
        mine.append(segment)
        self._resume(segment)

    def roll_when_full(self, segment: Segment) -> None:
        """Have the next id begin a new segment if this one has reached its size."""
        if segment.octets >= self.settings.segment_size:
            self._roll_at = 0

    def apply(self, settings: Spool) -> None:
        """Take changed settings; a new period or size holds from the next segment on."""
        self.settings = settings
        for segment in self.all():
            segment.drop_bodies = settings.keep_body == 0

    async def close(self) -> None:
        """Commit what is pending, checkpoint and close. What comes later is refused: nobody would look at it."""
        self._closed = True
        for segment in self.all():
            segment.gone = segment.gone or StoreError("the spool is closed")
        for segment in self.all():
            await segment.close()
        if self._tasks:
            await asyncio.wait(self._tasks)

    # ---------------------------------------------------------------- ids and segments

    def mint(self) -> MessageId:
        """A fresh id of this worker."""
        now = self._clock()
        if now >= self._roll_at:
            current = self.current
            if current.newest is None and current.idle:
                # nothing is in it yet: it serves for another period
                self._roll_at = now + round(self.settings.segment * 1000)
            else:
                self._begin_segment(now)
        self._last_id = self._mint.next(now)
        return self._last_id

    @property
    def current(self) -> Segment:
        """The segment that new mail goes to."""
        return self._segments[self._slot][-1]

    def all(self) -> list[Segment]:
        """Every segment."""
        return [segment for segments in self._segments.values() for segment in segments]

    def waiting(self) -> list[Segment]:
        """Segments in which something may wait or be owed."""
        return [segment for segment in self.all() if segment.waiting]

    def end_of(self, segment: Segment) -> Millis:
        """The moment from which on no message of the segment was accepted."""
        segments = self._segments[segment.slot]
        place = segments.index(segment) + 1
        if place < len(segments):
            return segments[place].start
        return segment.start if segment.newest is None else time_of(segment.newest) + 1

    async def remove(self, segment: Segment) -> None:
        """Unlink a segment that nobody needs any more. Raises StoreError."""
        self._segments[segment.slot].remove(segment)
        segment.gone = NoSuchMessageError("past its keeping time")
        await segment.close()
        try:
            await asyncio.to_thread(files.remove, segment.path)
        except OSError as error:
            raise store_error(error) from error
        structlog.get_logger("relayd.spool").info("segment_removed", segment=str(segment.path))

    def home(self, message: MessageId) -> Segment | None:
        """The segment of an id: the last one that starts at or before the id's moment."""
        slot, at = place_of(message)
        segments = self._segments.get(slot)
        if not segments:
            return None
        if segments[-1].start <= at:
            return segments[-1]
        place = bisect_right(segments, at, key=lambda segment: segment.start)
        if not place or any(lost[0] == slot and lost[1] <= at < lost[2] for lost in self._lost):
            return None
        return segments[place - 1]

    async def open_home(self, message: MessageId) -> Segment:
        """The segment of an id, to be read from. Raises NoSuchMessageError."""
        segment = self.home(message)
        if segment is None:
            raise NoSuchMessageError(f"no message {format_id(message)} here")
        if not segment.open:
            await self.close_unused(OPEN_FINISHED - 1)
        return segment

    async def close_unused(self, leave: int) -> None:
        """Close finished segments that nobody uses, all but the `leave` last used ones."""
        current = self.current
        unused = [
            segment
            for segment in self.all()
            if segment.open and segment is not current and not segment.waiting and segment.idle
        ]
        unused.sort(key=lambda segment: segment.used_at, reverse=True)
        for segment in unused[leave:]:
            if segment.idle:
                await segment.close()

    async def adopt(self, path: Path) -> bool:
        """Take in a recovered segment; False where it is not ours, or known already. Raises StoreError."""
        slot, start = int(path.parent.name), files.start_of(path)
        mine = slot == self._slot or (slot >= self._slots and slot % self._slots == self._slot)
        segments = self._segments.setdefault(slot, [])
        if not mine or any(segment.start == start for segment in segments):
            return False
        damaged = self.damaged
        await self._recover(slot, path)
        if self.damaged > damaged:
            raise StoreError(f"{path} is damaged again")
        self._segments[slot].sort(key=lambda segment: segment.start)
        self._lost = [lost for lost in self._lost if lost[:2] != (slot, start)]
        self.damaged = max(0, damaged - 1)
        return True

    def broken(self, segment: Segment, error: Exception) -> None:
        """A segment turned out to be damaged while at work: set it aside and go on without it."""
        current = segment is self.current
        self._segments[segment.slot].remove(segment)
        if current:
            self._begin_segment(self._clock())
        later = [other.start for other in self._segments[segment.slot] if other.start > segment.start]
        self._lost.append((segment.slot, segment.start, min(later, default=reads.LAST)))
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


def _probe(path: Path) -> tuple[reads.Standing, int]:
    """Recover a segment after whatever happened to it; what is in it and its size. Raises sqlite3.Error, OSError."""
    if fault := wal.fault(path):
        raise _damage(fault)
    with ExitStack() as held, closing(schema.connect(path)) as db:
        if schema.migrate(db) != schema.VERSION:
            raise _damage("the file is not a segment")
        writes.drop_unfinished_parts(db)
        found = reads.standing(db), reads.used_octets(db)
        with suppress(sqlite3.OperationalError):  # no room: then the WAL stays
            writes.retire(db, held)
        return found


def _damage(text: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(text)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error
