"""Long walks over the segments of one worker, page by page, so that others need not wait: new routes, a clock put back.

What one page asks and writes is reads.py's and writes.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence

from relayd.core.event import Event, EventKind
from relayd.core.ids import MessageId
from relayd.core.mail import Message
from relayd.core.units import Millis
from relayd.spool import histories, reads, writes
from relayd.spool.segment import Segment
from relayd.spool.shelf import Shelf
from relayd.spool.store import NoSuchMessageError, Waiting

PAGE = 500
"""Messages looked at in one read."""
SCANNED = 20_000
"""Messages that one step of a search looks at: some 10 ms."""

Committed = Callable[[Segment, Sequence[MessageId], Sequence[Event]], None]
"""Tells readers what is on disk: segment, accepted messages, events."""


async def relane(
    shelf: Shelf,
    choose: Callable[[Message, Waiting], str],
    *,
    clock: Callable[[], Millis],
    committed: Committed,
    skip: Container[MessageId],
    written: Callable[[Sequence[MessageId]], None] | None,
) -> int:
    """Look at the routes again for every recipient that is not final (Store.relane)."""
    changed = 0
    for segment in shelf.waiting():
        after: MessageId = -1
        while True:
            page = await segment.read(reads.after_messages, reads.UNFINISHED, after, reads.LAST, PAGE)
            if not page:
                break
            after = page[-1].message.id
            now = clock()
            moves = []
            for delivery in page:
                message = delivery.message
                found = [
                    _moved(message, waiting, lane, now)
                    for waiting in delivery.recipients
                    if (lane := choose(message, waiting)) != waiting.lane
                ]
                if found and message.id not in skip:
                    moves += found
            messages = list(dict.fromkeys(move.message for move in moves))
            try:
                changed += await _relane(segment, committed, messages, moves)
            finally:
                if written is not None:
                    written(messages)
    return changed


async def _relane(segment: Segment, committed: Committed, messages: Sequence[MessageId], moves: Sequence[Event]) -> int:
    """Write moves, save for what an operator put where it is."""
    if not moves:
        return 0
    hand = set(await segment.read(histories.put_by_hand, messages))
    some = [move for move in moves if (move.message, move.n, move.detail["from"]) not in hand]
    done = await segment.work(writes.relane, some)
    committed(segment, (), done)
    return len(done)


def _moved(message: Message, waiting: Waiting, lane: str, now: Millis) -> Event:
    detail = {"from": waiting.lane, "upstream": lane, "reason": "the configuration was changed"}
    return Event(
        now, message.id, waiting.n, EventKind.MOVED, waiting.recipient.address, message.envelope.sender, detail
    )


async def pull_in(shelf: Shelf, now: Millis, by: Millis) -> int:
    """What waits for a moment later than `now` waits for one that is earlier by so much; how many (Store.pull_in)."""
    moved = 0
    for segment in shelf.waiting():
        after: MessageId = -1
        while page := await segment.survey(reads.due_later, now, after, PAGE):
            after = page[-1]
            moved += await segment.work(writes.pull_in, page, now, by)
    return moved


async def by_message_id(shelf: Shelf, wanted: Sequence[str], since: Millis) -> dict[str, list[MessageId]]:
    """Messages accepted since that moment that carry one of these Message-IDs (Store.by_message_id)."""
    found: dict[str, list[MessageId]] = {}
    for segment in shelf.all():
        if segment.gone is not None or shelf.end_of(segment) <= since:
            continue
        if segment.newest is None and segment is shelf.current:
            continue  # nothing was written to it yet
        after: MessageId | None = reads.first_id(since) - 1
        while after is not None:
            try:
                page, after = await segment.read(histories.by_message_id, wanted, after, SCANNED)
            except NoSuchMessageError:
                break  # removed meanwhile
            for message_id, message in page:
                found.setdefault(message_id, []).append(message)
    await shelf.close_unused(0)
    return found
