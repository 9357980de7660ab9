"""What is dropped from the spool when its keeping time has passed: bodies, then whole files. Never what still waits.

Before that, the figures of a finished segment are kept in the ledger: first counted, then unlinked.

The times come from the configuration (spool.keep, spool.keep_body); the caller says when to look.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import structlog

from relayd.core.ids import MessageId
from relayd.core.units import Millis
from relayd.spool import histories, reads, statistics, writes
from relayd.spool.ledger import Ledger, name_of
from relayd.spool.segment import Segment
from relayd.spool.shelf import Shelf
from relayd.spool.store import StoreError

UPKEEP = 200
"""Messages changed in one transaction of upkeep, between two commits of mail."""


async def retain(shelf: Shelf, now: Millis, ledger: Ledger | None) -> None:
    """Drop bodies and whole segments past their keeping time. What fails is logged and tried again next time.

    Without a ledger the figures go with their segments.
    """
    keep, keep_body = round(shelf.settings.keep * 1000), round(shelf.settings.keep_body * 1000)
    marks = await ledger.marks() if ledger is not None else {}
    for segment in shelf.all():
        if segment.gone is not None:
            continue
        current = segment is shelf.current
        try:
            if not current:
                await _look_again(segment)
                if ledger is not None and not segment.waiting:
                    await _count(segment, ledger, marks)
                counted = ledger is None or segment.counted == segment.commits
                if counted and not segment.waiting and segment.idle and shelf.end_of(segment) <= now - keep:
                    await shelf.remove(segment)
                    continue
            if keep_body < keep:
                await _drop_bodies(shelf, segment, now - keep_body, compact=not current)
        except StoreError as error:
            structlog.get_logger("relayd.spool").error("retention_failed", segment=str(segment.path), error=str(error))
    await shelf.close_unused(0)


async def _count(segment: Segment, ledger: Ledger, marks: Mapping[str, int]) -> None:
    """Bring the ledger up to date. What is committed meanwhile is counted in the next round."""
    commits, name = segment.commits, name_of(segment.path)
    if segment.counted == commits or not segment.idle:
        return
    try:
        if segment.counted is not None or await asyncio.to_thread(statistics.mark_of_file, segment.path) != marks.get(
            name
        ):
            await ledger.keep(name, await asyncio.to_thread(statistics.count_file, segment.path))
    except FileNotFoundError:
        return  # never written to
    segment.counted = commits


async def _look_again(segment: Segment) -> None:
    """Find out whether anything still waits in a segment that takes no new mail."""
    if segment.waiting and segment.idle:
        commits = segment.commits
        standing = await segment.read(reads.standing)
        # what was committed meanwhile has its say in the next round
        if not (standing.waiting or standing.owed) and segment.idle and segment.commits == commits:
            segment.waiting = False


async def _drop_bodies(shelf: Shelf, segment: Segment, before: Millis, *, compact: bool) -> None:
    """Drop the bodies of messages whose last recipient became final before a moment."""
    if segment.start > before or segment.bodies_dropped:
        return
    after: MessageId = -1
    left = False
    dropped = 0
    while page := await segment.read(histories.bodies, after, reads.first_id(before), UPKEEP):
        after = page[-1]
        count = await segment.work(writes.drop_bodies, page, before)
        dropped += count
        left = left or count < len(page)
    if dropped:
        structlog.get_logger("relayd.spool").info("bodies_dropped", segment=str(segment.path), messages=dropped)
    if compact and not segment.waiting:
        await segment.work(writes.compact)
        # once all bodies are gone for good, the next rounds need not look
        segment.bodies_dropped = not left and shelf.end_of(segment) <= before
