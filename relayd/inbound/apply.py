"""Writes down what came back about mail that had left: in the message's own segment, once, by the lifecycle table.

What it means is core/lifecycle.py's to say. Blocks, mail log and metrics hear of it as of any other event.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from relayd.core.dsn import Kind, wanted
from relayd.core.event import Event, EventKind
from relayd.core.feedback import Applied, Fact, FactError, FeedbackKind
from relayd.core.ids import MessageId
from relayd.core.lifecycle import State, learn
from relayd.core.mail import Message
from relayd.spool.schema import FROM_FACT
from relayd.spool.store import Amended, Amendment, Change, NoSuchMessageError, Notice, Store, StoreError, Waiting

_REPORTS = frozenset({FeedbackKind.BOUNCE, FeedbackKind.DELIVERY_REPORT})
_TRIES = 10
"""Looks at a recipient whose state keeps changing meanwhile."""


class Queue(Protocol):
    """The part of the dispatcher that takes a message out of memory, so that what has ended is not sent."""

    def claim(self, message: MessageId) -> bool:
        """False while it is being sent."""

    def unclaim(self, message: MessageId) -> None:
        """The change is on disk."""


class FactApplier:
    """Applies facts about the mail of one worker, on its event loop."""

    def __init__(
        self,
        store: Store,
        queue: Queue,
        *,
        notify: Callable[[], bool],
        rewrites: Callable[[str], bool],
        owed: Callable[[], None],
    ) -> None:
        """`notify`: reports go to senders. `rewrites`: the upstream of a lane sends with return paths of ours.

        `owed`: told when a report is owed.
        """
        self._store = store
        self._queue = queue
        self._notify = notify
        self._rewrites = rewrites
        self._owed = owed

    async def apply(self, fact: Fact) -> Applied:
        """Write a fact down. Raises FactError where that cannot be done now."""
        try:
            for _ in range(_TRIES):
                history = await self._store.history(fact.message)
                waiting = next((each for each in history.recipients if each.n == fact.n), None)
                if waiting is None or history.message.origin.inbound:
                    return Applied.UNKNOWN
                amended = await self._amend(history.message, waiting, fact)
                if amended is not Amended.OVERTAKEN:
                    return Applied.NEW if amended is Amended.WRITTEN else Applied.DUPLICATE
        except NoSuchMessageError:
            return Applied.UNKNOWN
        except StoreError as error:
            raise FactError(str(error)) from error
        raise FactError("the recipient's state keeps changing")

    async def _amend(self, message: Message, waiting: Waiting, fact: Fact) -> Amended:
        told = self._notify() and (fact.rewritten or self._rewrites(waiting.lane))
        amendment = came_back(message, waiting, fact, report=told)
        ends = amendment.change.after.state is not waiting.state and not waiting.state.final
        # while it is being sent the amendment stands all the same: what the attempt finds comes second
        claimed = ends and self._queue.claim(message.id)
        try:
            amended = await self._store.amend(amendment)
        finally:
            if claimed:
                self._queue.unclaim(message.id)
        if amended is Amended.WRITTEN and amendment.change.after.notice is not None:
            self._owed()
        return amended


def came_back(message: Message, waiting: Waiting, fact: Fact, *, report: bool) -> Amendment:
    """What the lifecycle table makes of a fact that came back after the mail had left.

    `report`: the sender hears of a bounce from us. That is so where the return path was ours; otherwise the remote
    system has told it already. A null sender is told nothing (RFC 5321 4.5.5).
    """
    learned = learn(waiting.state, fact.kind, fact.action, hard=fact.hard)
    after = waiting
    if learned.state is not waiting.state:
        bounced = learned.state is State.BOUNCED and bool(message.envelope.sender)
        owed = report and bounced and wanted(waiting.recipient.notify, Kind.FAILED)
        after = replace(waiting, state=learned.state, due=None, notice=Notice.FAILURE if owed else None)
    event = Event(
        fact.at,
        message.id,
        waiting.n,
        learned.event,
        waiting.recipient.address,
        message.envelope.sender,
        _detail(message, waiting, fact),
    )
    return Amendment(Change(after, event), waiting.state, _key(fact, learned.event))


def _detail(message: Message, waiting: Waiting, fact: Fact) -> dict[str, str | int | float | bool | None]:
    """What the event tells. `source` marks it as learned after the mail had left."""
    detail: dict[str, str | int | float | bool | None] = {
        FROM_FACT: fact.kind.value,
        "class": fact.cls,
        "hard": fact.hard,
        "upstream": waiting.lane,
        "delay_ms": max(fact.at - message.accepted_at, 0),
        "digest": fact.source,
    }
    if fact.kind in _REPORTS:
        if fact.diagnostic or fact.status or fact.reply_code:
            detail["reply"] = _reply(fact)
    elif fact.diagnostic:
        detail["reply"] = fact.diagnostic
    told = {
        "action": fact.action,
        "remote_mta": fact.remote_mta,
        "reported_recipient": "" if fact.recipient == waiting.recipient.address else fact.recipient,
        "inbound": fact.inbound,
    }
    return detail | {name: value for name, value in told.items() if value}


def _reply(fact: Fact) -> str:
    """The remote system's words in the form of a reply, as reports and people read it."""
    words = " ".join(fact.diagnostic.split())
    if re.match(r"[245]\d\d[ -]", words):
        return words
    late = fact.action == "delayed"
    code = fact.reply_code or {"2": 250, "4": 450, "5": 550}.get(fact.status[:1], 450 if late else 550)
    if fact.status and not words.startswith(fact.status):
        words = f"{fact.status} {words}"
    return f"{code} {words}".strip()


def _key(fact: Fact, event: EventKind) -> str:
    """What makes two facts about one recipient the same: a replayed report, or a second one with the same news.

    There are few for each recipient, whatever comes.
    """
    if event in (EventKind.BOUNCED, EventKind.NOTED):
        return "failed"
    if event is EventKind.POSTPONED:
        return f"postponed {fact.cls}"
    if event in (EventKind.CONFIRMED, EventKind.DELIVERED):
        return f"confirmed {fact.action}"
    return event.value
