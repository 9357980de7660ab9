"""Makes the reports that are owed to senders: composed from the store, sent through the same intake, then struck out.

Whether one is owed is decided in settle.py, what it says in core/dsn.py. A crash between the two steps makes a report
twice rather than never.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import structlog

from relayd.core.dsn import Fate, Kind, compose
from relayd.core.event import Event, EventKind
from relayd.core.ids import MessageId, format_id
from relayd.core.mail import Body
from relayd.core.reply import Reply
from relayd.core.units import Millis
from relayd.delivery.observer import DeliveryObserver
from relayd.delivery.settle import Policy
from relayd.spool.store import History, NoSuchMessageError, Notice, Store, StoreError, UnreadableError, Waiting

_BATCH = 100
_AGAIN = 60.0
"""Seconds until what is owed is looked at again without being asked."""
_KIND = {Notice.FAILURE: Kind.FAILED, Notice.DELAY: Kind.DELAYED, Notice.SUCCESS: Kind.RELAYED}
_TELLING = {
    Notice.FAILURE: {EventKind.BOUNCED, EventKind.EXPIRED, EventKind.SUPPRESSED},
    Notice.DELAY: {EventKind.DEFERRED, EventKind.UNCERTAIN},
    Notice.SUCCESS: {EventKind.DELIVERED},
}
"""Events that hold the reply which a report passes on; the last one counts."""
_REPLY = re.compile(r"([2-5]\d\d)(?: ([245]\.\d{1,3}\.\d{1,3}))?(?: (.*))?", re.DOTALL | re.ASCII)


class ReportDoor(Protocol):
    """The part of intake that takes our reports."""

    async def submit_report(
        self, recipient: str, content: bytes, *, smtputf8: bool = False, body: Body = Body.SEVEN_BIT
    ) -> MessageId:
        """Keep a report for this recipient; its id, once it is on disk. Raises StoreError."""


class Reporter:
    """Pays what one worker's store owes, on its event loop."""

    def __init__(
        self,
        store: Store,
        door: ReportDoor,
        policy: Policy,
        hostname: str,
        *,
        observer: DeliveryObserver,
        clock: Callable[[], Millis],
    ) -> None:
        self._store = store
        self._door = door
        self._policy = policy
        self._hostname = hostname
        self._observer = observer
        self._clock = clock
        self._owed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._log = structlog.get_logger("relayd.notices")

    def start(self) -> None:
        """Begin with what was owed before the last stop."""
        self._owed.set()
        self._task = asyncio.create_task(self._run(), name="reports to senders")

    async def stop(self) -> None:
        """Stop; what is still owed stays on disk."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def apply(self, policy: Policy, hostname: str) -> None:
        """Take over a changed configuration."""
        self._policy, self._hostname = policy, hostname

    def wake(self) -> None:
        """Something new is owed."""
        self._owed.set()

    async def _run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(_AGAIN):
                    await self._owed.wait()
            except TimeoutError:
                pass
            self._owed.clear()
            try:
                await self.pay()
            except StoreError as error:
                self._log.error("reports cannot be made now", error=str(error))

    async def pay(self) -> int:
        """Make every report that is owed; how many messages were reported on. Raises StoreError."""
        paid = 0
        failed: set[MessageId] = set()
        while owing := [m for m in await self._store.owing(_BATCH + len(failed)) if m not in failed]:
            for message in owing:
                try:
                    await self._report_on(message)
                    paid += 1
                except NoSuchMessageError as error:
                    self._log.error("report not made", id=format_id(message), error=str(error))
                    failed.add(message)
                except StoreError:
                    raise
                except Exception:  # noqa: BLE001 - one message that cannot be reported on must not end all reports
                    self._log.exception("report not made", id=format_id(message))
                    failed.add(message)
                    await self._give_up(message)
        return paid

    async def _give_up(self, message: MessageId) -> None:
        """What is late by a mail's lifetime will never be made, and nothing is owed for ever. Raises StoreError."""
        history = await self._store.history(message)
        since = max((event.at for event in history.events), default=history.message.accepted_at)
        if self._clock() - since > self._policy.lifetime:
            await self._strike(message, [waiting for waiting in history.recipients if waiting.notice is not None])
            self._log.error("report given up", id=format_id(message), sender=history.message.envelope.sender)

    async def _report_on(self, message: MessageId) -> None:
        history = await self._store.history(message)
        content = await self._content(message) if history.has_content else None
        for notice, kind in _KIND.items():
            owed = [waiting for waiting in history.recipients if waiting.notice is notice]
            if notice is Notice.DELAY:
                # what has ended meanwhile is late no more
                await self._strike(message, [waiting for waiting in owed if waiting.state.final])
                owed = [waiting for waiting in owed if not waiting.state.final]
            if not owed:
                continue
            report = compose(
                kind,
                history.message,
                [self._fate(history, waiting, notice) for waiting in owed],
                content,
                hostname=self._hostname,
                now=self._clock(),
            )
            sender = history.message.envelope.sender
            body = Body.SEVEN_BIT if report.isascii() else Body.EIGHT_BIT_MIME
            made = await self._door.submit_report(sender, report, smtputf8=not sender.isascii(), body=body)
            await self._strike(message, owed)
            self._observer.report(notice.value)
            self._log.info("report made", id=format_id(message), kind=notice.value, report=format_id(made))

    async def _content(self, message: MessageId) -> bytes | None:
        try:
            return await self._store.content(message)
        except UnreadableError as error:
            # the sender is told all the same, only that nothing is quoted
            self._log.error("a report returns nothing of its mail", id=format_id(message), error=str(error))
            return None

    async def _strike(self, message: MessageId, paid: Sequence[Waiting]) -> None:
        if paid:
            await self._store.noticed(message, [waiting.n for waiting in paid])

    def _fate(self, history: History, waiting: Waiting, notice: Notice) -> Fate:
        event = _last(history.events, waiting.n, _TELLING[notice])
        give_up = history.message.accepted_at + self._policy.lifetime if notice is Notice.DELAY else None
        if event is None:
            return Fate(waiting.recipient, retry_until=give_up)
        endpoint = str(event.detail.get("endpoint") or "")
        attempts = [attempt.at for attempt in history.attempts if waiting.n in attempt.recipients]
        return Fate(
            waiting.recipient,
            _reply(str(event.detail.get("reply") or "")),
            remote=endpoint.rpartition(":")[0] or endpoint,
            attempted_at=max(attempts, default=None),
            retry_until=give_up,
        )


def _last(events: Sequence[Event], n: int, kinds: Iterable[EventKind]) -> Event | None:
    wanted = set(kinds)
    return next((event for event in reversed(events) if event.n == n and event.kind in wanted), None)


def _reply(text: str) -> Reply | None:
    match = _REPLY.fullmatch(text)
    return Reply(int(match[1]), match[2] or "", match[3] or "") if match else None
