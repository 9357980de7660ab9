"""The Store interface, in the verbs of mail: accept, settle, due, content, notices, history.

Engines (sqlite.py) implement it and pass one common suite; nobody else touches a database.
All writes of one worker go through one Store; reading across workers is reader.py's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from relayd.core.event import Event, EventKind
from relayd.core.ids import MessageId
from relayd.core.lifecycle import Stage, State
from relayd.core.mail import Message, Recipient
from relayd.core.quick import quick
from relayd.core.units import Millis
from relayd.spool.company import Company

if TYPE_CHECKING:
    from relayd.spool.filter import QueueFilter  # which knows the values below
    from relayd.spool.ledger import Ledger


class StoreError(Exception):
    """The spool could not do what was asked; nothing of the request was kept."""


class StoreFullError(StoreError):
    """No room: the disk or its inodes are exhausted, or under the configured reserve."""


class UnwritableError(StoreError):
    """What was asked cannot be written, however often it is tried: the fault lies with it, not with the disk."""


class UnreadableError(StoreError):
    """What is kept of this one message is damaged: it cannot be read as it was written."""


class NoSuchMessageError(StoreError):
    """No segment holds this message (never accepted here, or past its keeping time)."""


class Notice(StrEnum):
    """A report that is owed to the envelope sender about a recipient (RFC 3461, RFC 3464)."""

    FAILURE = "failure"
    DELAY = "delay"
    SUCCESS = "success"


@quick
@dataclass(frozen=True, slots=True)
class Waiting:
    """One recipient as the queue knows it."""

    n: int
    recipient: Recipient
    lane: str
    """The upstream chosen at the last look at the routes; "" while no route fits."""
    state: State = State.QUEUED
    attempts: int = 0
    due: Millis | None = None
    """When to try next; None while held or final."""
    delayed: bool = False
    """A delay notice was made (or was due but not wanted)."""
    notice: Notice | None = None
    """A report owed to the sender, not sent yet. Settling with None leaves a debt as it is: `noticed` strikes it."""


@quick
@dataclass(frozen=True, slots=True)
class Delivery:
    """One message with those of its recipients that are to be sent together. `content` is None when on disk only."""

    message: Message
    recipients: tuple[Waiting, ...]
    content: bytes | None = None


@dataclass(frozen=True, slots=True)
class Due:
    """What is due now, oldest first, and when the next after these will be (None: nothing waits)."""

    deliveries: list[Delivery]
    next_due: Millis | None


@quick
@dataclass(frozen=True, slots=True)
class Attempt:
    """One transaction with an upstream, as history shows it."""

    at: Millis
    took: Millis
    upstream: str
    endpoint: str
    """host:port that was spoken to; "" when no connection came about."""
    tls: str | None
    stage: Stage
    """How far it came."""
    reply: str
    transcript: str | None
    """The dialogue, secrets left out; kept for failed attempts only."""
    recipients: tuple[int, ...]


@quick
@dataclass(frozen=True, slots=True)
class Change:
    """The next standing of one recipient, with the event that says why. The event is written with it or not at all."""

    after: Waiting
    event: Event


@quick
@dataclass(frozen=True, slots=True)
class Settlement:
    """What one attempt (or one act of an operator) changed in one message: one transaction."""

    message: MessageId
    changes: tuple[Change, ...]
    attempt: Attempt | None = None


class Amended(StrEnum):
    """What became of an amendment."""

    WRITTEN = "written"
    KNOWN = "known"
    """This fact was written before: nothing has changed."""
    OVERTAKEN = "overtaken"
    """The recipient's state is not the expected one any more: nothing has changed; look again."""


@dataclass(frozen=True, slots=True)
class Amendment:
    """What a fact that came back changes about one recipient: one transaction, once for each `key`."""

    change: Change
    """The next standing with its event. Where `after.state` is `before`, the event alone is written."""
    before: State
    """The state that the change was decided on."""
    key: str
    """Names the fact among all facts about the recipient."""


@dataclass(frozen=True, slots=True)
class LaneDepth:
    """How much waits for one upstream, and since when the oldest was accepted."""

    lane: str
    depth: int
    oldest: Millis | None


@dataclass(frozen=True, slots=True)
class History:
    """All that is known of one message."""

    message: Message
    recipients: tuple[Waiting, ...]
    attempts: tuple[Attempt, ...]
    events: tuple[Event, ...]
    has_content: bool


@dataclass(frozen=True, slots=True)
class Page:
    """Some of a segment's events, and up to which event of it they are all that was asked for."""

    segment: str
    position: int
    events: Sequence[Event]


class Store(Protocol):
    """One worker's spool. Futures resolve on the worker's loop, after the commit is on disk."""

    company: Company
    """To be told of mail that is coming: a commit waits for it."""

    def mint(self) -> MessageId:
        """A fresh id of this worker."""

    def accept(self, message: Message, recipients: Sequence[Waiting], content: bytes) -> asyncio.Future[None]:
        """Keep message, recipients and their `accepted` events in one durable transaction.

        The future's cancellation cancels nothing that is under way. It raises StoreFullError or StoreError.
        """

    def settle(self, settlement: Settlement) -> asyncio.Future[None]:
        """Write attempt, recipient states and events in one durable transaction, in the message's own segment.

        Recipients that are final already are left as they are, and their events are not written: the first
        final outcome stands. Raises StoreError, StoreFullError.
        """

    def amend(self, amendment: Amendment) -> asyncio.Future[Amended]:
        """Write what came back about a recipient in one durable transaction, in the message's own segment.

        The one verb that may change a final state: delivered to bounced. Raises NoSuchMessageError, StoreError.
        """

    def subscribe(self, reader: Callable[[Sequence[Event]], None]) -> None:
        """Call `reader` on the loop with the events of each commit, in order, after it is on disk."""

    async def positions(self) -> dict[str, int]:
        """By segment, the last event that was committed since the start: every reader has been called with it."""

    def behind(self, known: Mapping[str, int], kinds: Sequence[EventKind], since: Millis) -> AsyncIterator[Page]:
        """Events of these kinds behind such positions, for a reader that a crash may have kept from hearing of them.

        A segment that is not known is read from its beginning; what is older than `since` is left out.
        """

    async def due(self, lane: str, now: Millis, limit: int, skip: Container[MessageId], urgency: int = 0) -> Due:
        """Recipients of `lane` whose time has come, of messages of one priority, grouped by message, without content,
        less those in `skip`. However much waits of other priorities costs nothing.
        """

    async def lanes(self) -> list[LaneDepth]:
        """Every lane that has waiting recipients (held and parked ones not counted)."""

    async def relane(
        self,
        choose: Callable[[Message, Waiting], str],
        skip: Container[MessageId],
        written: Callable[[Sequence[MessageId]], None] | None = None,
    ) -> int:
        """Look at the routes again for every recipient that is not final; how many changed lanes (after a reload).

        They are due there at once, save for those that wait for an operator. `choose` says "" for no lane. Of what is
        to move, `skip` is asked, and `written` is told once it is on disk (or could not be written).
        """

    async def select(self, wanted: QueueFilter, limit: int, after: MessageId = 0) -> list[Delivery]:
        """Messages behind `after`, in the order of ids, with those of their recipients that the filter means."""

    async def put_by_hand(self, messages: Sequence[MessageId]) -> frozenset[tuple[MessageId, int, str]]:
        """Recipients whose last move was an operator's: message, n and the lane that they were put into."""

    async def content(self, message: MessageId) -> bytes:
        """The kept octets. Raises NoSuchMessageError when message or body is gone."""

    async def history(self, message: MessageId) -> History:
        """Everything known of a message. Raises NoSuchMessageError."""

    async def owing(self, limit: int) -> list[MessageId]:
        """Messages with a report owed to their sender."""

    def noticed(self, message: MessageId, ns: Sequence[int]) -> asyncio.Future[None]:
        """The owed reports about these recipients are made: clear their `notice`."""

    async def overdue(self, accepted_before: Millis, limit: int) -> list[Delivery]:
        """Waiting recipients (deferred, paused, uncertain; not held) of messages accepted before that moment."""

    async def held(self, accepted_before: Millis, limit: int) -> list[Delivery]:
        """Held recipients of messages accepted before that moment."""

    async def released(self, messages: Sequence[MessageId], since: Millis) -> frozenset[tuple[MessageId, int]]:
        """Recipients released since that moment, and neither attempted nor held again."""

    async def undelayed(self, accepted_before: Millis, limit: int) -> list[Delivery]:
        """Waiting recipients accepted before that moment about which no delay notice was considered yet."""

    async def retain(self, now: Millis, ledger: Ledger | None = None) -> None:
        """Drop bodies and whole segments past their keeping time; never anything that still waits.

        The figures of finished segments go to the ledger first: by day, sender domain, upstream, state and class.
        """

    async def close(self) -> None:
        """Commit what is pending and close."""
