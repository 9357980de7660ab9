"""Reads the whole spool, all slots, without a daemon or beside one: for commands and reports. Never writes.

Changing what waits is the running daemon's own business (store.py, through the control socket).
"""

from __future__ import annotations

import heapq
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from relayd.core.ids import MessageId, format_id, slot_of, time_of
from relayd.core.lifecycle import State
from relayd.core.mail import Message
from relayd.core.units import Millis
from relayd.spool import files, histories, reads, schema, search
from relayd.spool.faults import store_error
from relayd.spool.filter import QueueFilter
from relayd.spool.store import Delivery, History, NoSuchMessageError, StoreError, Waiting

PAGE = 500
"""Messages fetched at once."""


@dataclass(frozen=True, slots=True)
class QueueRow:
    """One recipient with its message."""

    message: Message
    waiting: Waiting


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """Recipients of one lane in one state that is not final."""

    lane: str
    state: State
    count: int
    oldest: Millis
    """When the oldest was accepted."""


@dataclass(frozen=True, slots=True)
class SpoolStats:
    """The spool in figures."""

    depths: tuple[QueueDepth, ...]
    segments: int
    octets: int
    """Size of all segment files, WAL included."""
    messages: int
    """Messages kept, finished ones included."""
    owed: int
    """Messages with a report owed to their sender."""
    damaged: tuple[str, ...] = field(default=())
    """Segments that were set aside."""


class SpoolReader:
    """Answers from data_dir/spool. Every method raises StoreError where a segment cannot be read."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __enter__(self) -> SpoolReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Nothing stays open between two answers; there for `with`."""

    def segments(self) -> list[Path]:
        """Every segment, slot by slot, oldest first."""
        return [
            path
            for slot in files.slots_on_disk(self._directory)
            for path in files.segments_in(files.slot_directory(self._directory, slot))
        ]

    def find(self, wanted: QueueFilter, limit: int | None = None) -> Iterator[QueueRow]:
        """Recipients that the filter means, in the order in which their messages were accepted."""
        given = 0
        slots = [self._find_in_slot(slot, wanted) for slot in files.slots_on_disk(self._directory)]
        for delivery in heapq.merge(*slots, key=lambda delivery: delivery.message.id):
            for waiting in delivery.recipients:
                if given == limit:
                    return
                given += 1
                yield QueueRow(delivery.message, waiting)

    def _find_in_slot(self, slot: int, wanted: QueueFilter) -> Iterator[Delivery]:
        for path in files.segments_in(files.slot_directory(self._directory, slot)):
            after: MessageId = -1
            with _reading(path) as db:
                while page := search.matching(db, wanted, after, PAGE) if db is not None else []:
                    after = page[-1].message.id
                    yield from page

    def history(self, message: MessageId) -> History:
        """Everything known of a message. Raises NoSuchMessageError."""
        with self._home(message) as db:
            return histories.history(db, message)

    def content(self, message: MessageId) -> bytes:
        """The kept octets. Raises NoSuchMessageError when message or body is gone."""
        with self._home(message) as db:
            return histories.content(db, message)

    def about(self, addresses: Sequence[str], since: Millis) -> Iterator[tuple[History, int]]:
        """Mail to one of these addresses accepted since then: its history and the recipient's n, newest first."""
        slots = [self._about_in_slot(slot, addresses, since) for slot in files.slots_on_disk(self._directory)]
        for _, history, n in heapq.merge(*slots, key=lambda found: found[0], reverse=True):
            yield history, n

    def _about_in_slot(
        self, slot: int, addresses: Sequence[str], since: Millis
    ) -> Iterator[tuple[MessageId, History, int]]:
        ended: Millis | None = None
        for path in reversed(files.segments_in(files.slot_directory(self._directory, slot))):
            if ended is not None and ended <= since:
                return
            ended = files.start_of(path)
            with _reading(path) as db:
                if db is None:
                    continue
                for message, n in histories.addressed(db, addresses, reads.first_id(since)):
                    yield message, histories.history(db, message), n

    def stats(self) -> SpoolStats:
        """Figures about what waits and what is kept."""
        counts: dict[tuple[str, State], tuple[int, MessageId]] = {}
        octets = messages = owed = 0
        paths = self.segments()
        for path in paths:
            octets += sum(
                part.stat().st_size
                for suffix in files.SUFFIXES
                if (part := path.with_name(path.name + suffix)).exists()
            )
            with _reading(path) as db:
                if db is None:
                    continue
                found, kept, reports = reads.figures(db)
                messages += kept
                owed += reports
                for lane, code, count, oldest in found:
                    key = (lane, schema.STATE_OF[code])
                    before, first = counts.get(key, (0, oldest))
                    counts[key] = (before + count, min(first, oldest))
        depths = tuple(
            QueueDepth(lane, state, count, time_of(oldest))
            for (lane, state), (count, oldest) in sorted(counts.items(), key=lambda item: item[0])
        )
        damaged = tuple(str(path) for path in files.damaged_in(self._directory))
        return SpoolStats(depths, len(paths), octets, messages, owed, damaged)

    @contextmanager
    def _home(self, message: MessageId) -> Iterator[sqlite3.Connection]:
        folder = files.slot_directory(self._directory, slot_of(message))
        home = None
        for path in files.segments_in(folder):
            if files.start_of(path) > time_of(message):
                break
            home = path
        if home is None:
            raise NoSuchMessageError(f"no message {format_id(message)}")
        with _reading(home) as db:
            if db is None:
                raise NoSuchMessageError(f"no message {format_id(message)}")
            yield db


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection | None]:
    """A read-only connection, or None where the segment was removed meanwhile. Raises StoreError."""
    try:
        db = open_readonly(path)
    except FileNotFoundError:
        yield None
        return
    with closing(db):
        try:
            yield db
        except sqlite3.Error as error:
            raise StoreError(f"{path}: {error}") from error


def open_readonly(path: Path) -> sqlite3.Connection:
    """A connection that changes nothing, whether a daemon has the segment open or not.

    Raises FileNotFoundError, StoreError.
    """
    version = _version(path)
    if version is not None and version > schema.VERSION:
        raise StoreError(f"{path} was written by a newer relayd (schema {version})")
    wal = path.with_name(path.name + "-wal")
    # Without a WAL nobody has it open: read the file as it is, and leave no -shm behind (a folder that may not be
    # written to would not take one anyway). With one, take part in the locking, and see what is not checkpointed.
    modes: Sequence[str] = ("mode=ro",) if wal.exists() else ("mode=ro&immutable=1", "mode=ro")
    failure: sqlite3.Error | None = None
    for mode in modes:
        db = sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, isolation_level=None, timeout=10)
        try:
            # a segment of an older version has all that is asked for here
            if db.execute("PRAGMA user_version").fetchone()[0] not in (*schema.MIGRATIONS, schema.VERSION):
                raise sqlite3.DatabaseError("not a segment of this version")
        except sqlite3.Error as error:
            db.close()
            failure = error
        else:
            return db
    assert failure is not None  # noqa: S101 - there is at least one mode
    if not path.exists():
        raise FileNotFoundError(path)
    raise StoreError(f"{path} cannot be read: {failure}") from store_error(failure)


def _version(path: Path) -> int | None:
    try:
        return files.version_of(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error
