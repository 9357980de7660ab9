"""Reads the mailboxes that bounces are sent to: each mail is kept in our spool once, then marked or moved.

With several workers only the one that holds a mailbox's lease reads it. The protocol is imap.py's; what the mails
mean is found out later, like that of mail which came by SMTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import structlog

from relayd.config.models import Mailbox, MailboxTLS
from relayd.core.ids import MessageId
from relayd.core.units import Millis
from relayd.inbound.imap import ImapClient, ImapError
from relayd.inbound.observer import InboundObserver
from relayd.spool.state import StateError
from relayd.spool.store import StoreError

LEASE: Millis = 60_000
RENEW = 20.0
"""Seconds between renewals of a lease, and between attempts to get one."""
FIRST_PAUSE, MOST_PAUSE = 5.0, 300.0
"""Seconds to wait after a failure: doubled up to the most."""
MOST_IDLE = 1500.0
"""Seconds of one IDLE: servers hang up after 30 minutes (RFC 2177)."""
MOST_OCTETS = 16 * 1024**2
"""Of a mail; what is longer is cut: what a bounce tells stands at its beginning."""

_BARE = re.compile(rb"(?<!\r)\n|\r(?!\n)")

Keep = Callable[[str, str, str, bytes], Awaitable[MessageId]]
"""intake.submit_fetched: mailbox, host, address, content → durable. Raises StoreError."""


class State(Protocol):
    """What is asked of state.db; all of it raises StateError."""

    async def claim(self, name: str, owner: str, now: Millis, ttl: Millis) -> bool: ...
    async def release(self, name: str, owner: str) -> None: ...
    async def mailbox_mark(self, name: str) -> tuple[int, int] | None: ...
    async def keep_mailbox_mark(self, name: str, uidvalidity: int, uid: int) -> None: ...


class Mailboxes:
    """All mailboxes of one worker's configuration, each read by a task of its own."""

    def __init__(self, state: State, keep: Keep, observer: InboundObserver, clock: Callable[[], Millis]) -> None:
        self._state = state
        self._keep = keep
        self._observer = observer
        self._clock = clock
        self._owner = uuid.uuid4().hex
        self._readers: dict[str, tuple[Mailbox, float, asyncio.Task[None]]] = {}

    async def apply(self, mailboxes: Sequence[Mailbox], verify_for: float) -> None:
        """Read these from now on; those that stay as they are go on undisturbed. `verify_for`: seconds."""
        wanted = {mailbox.name: mailbox for mailbox in mailboxes}
        gone = [
            name
            for name, (mailbox, age, _) in self._readers.items()
            if (wanted.get(name), verify_for) != (mailbox, age)
        ]
        await self._end(gone)
        for name, mailbox in wanted.items():
            if name not in self._readers:
                reader = MailboxReader(
                    mailbox,
                    self._state,
                    self._keep,
                    observer=self._observer,
                    clock=self._clock,
                    owner=self._owner,
                    verify_for=verify_for,
                )
                task = asyncio.create_task(reader.run(), name=f"mailbox {name}")
                self._readers[name] = (mailbox, verify_for, task)

    async def stop(self) -> None:
        """Stop reading; what was not marked yet is fetched again by whoever comes next."""
        await self._end(list(self._readers))

    async def _end(self, names: Sequence[str]) -> None:
        tasks = [self._readers.pop(name)[2] for name in names]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class MailboxReader:
    """One mailbox."""

    def __init__(
        self,
        mailbox: Mailbox,
        state: State,
        keep: Keep,
        *,
        observer: InboundObserver,
        clock: Callable[[], Millis],
        owner: str,
        verify_for: float,
    ) -> None:
        """`owner`: of leases, this process's life. `verify_for`: seconds; older mails are left alone."""
        self._mailbox = mailbox
        self._state = state
        self._keep = keep
        self._observer = observer
        self._clock = clock
        self._owner = owner
        self._age = round(verify_for * 1000)
        self._lease = f"mailbox {mailbox.name}"
        self._key = f"{mailbox.name}\0{mailbox.folder}"
        self._log = structlog.get_logger("relayd.inbound")
        self._failures = 0

    async def run(self) -> None:
        """Read it for ever, whenever this worker holds the lease. Ends by being cancelled."""
        while True:
            pause = RENEW
            try:
                if await self._claim():
                    await self._while_ours()
            except (ImapError, OSError, StateError, StoreError) as error:
                pause = self._failed(error)
            except Exception as error:  # noqa: BLE001 - whatever a server does to our code, it is tried again
                self._log.exception("mailbox failed", mailbox=self._mailbox.name)
                pause = self._failed(error)
            await asyncio.sleep(pause)

    def _failed(self, error: Exception) -> float:
        pause: float = min(FIRST_PAUSE * 2**self._failures, MOST_PAUSE)
        self._failures = min(self._failures + 1, 10)
        self._observer.mailbox_failed(self._mailbox.name)
        reason = str(error) if isinstance(error, ImapError | StateError | StoreError) else _reason(error)
        self._log.warning(
            "mailbox cannot be read", mailbox=self._mailbox.name, reason=reason, next_try_seconds=round(pause, 1)
        )
        return pause

    async def _claim(self) -> bool:
        return await self._state.claim(self._lease, self._owner, self._clock(), LEASE)

    async def _while_ours(self) -> None:
        """Read until the lease is lost or something fails."""
        work = asyncio.create_task(self._read(), name=f"read {self._mailbox.name}")
        try:
            while not work.done():
                await asyncio.wait({work}, timeout=RENEW)
                if not work.done() and not await self._claim():
                    return
            await work
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            with contextlib.suppress(StateError):
                await self._state.release(self._lease, self._owner)

    async def _read(self) -> None:
        mailbox = self._mailbox
        client = await self._connect()
        try:
            await client.login(mailbox.username, mailbox.password.get_secret_value())
            if mailbox.done_folder is not None:
                await client.make(mailbox.done_folder)
            await client.select(mailbox.folder)
            self._log.info("mailbox opened", mailbox=mailbox.name, folder=mailbox.folder)
            while True:
                await self._take(client)
                self._failures = 0
                await client.wait(min(mailbox.poll, MOST_IDLE))
        finally:
            await client.logout()

    async def _connect(self) -> ImapClient:
        mailbox = self._mailbox
        context = None
        if mailbox.tls is not MailboxTLS.NONE:
            context = await asyncio.to_thread(_context, mailbox)
        port = mailbox.port or (993 if mailbox.tls is MailboxTLS.IMPLICIT else 143)
        return await ImapClient.connect(mailbox.host, port, context, starttls=mailbox.tls is MailboxTLS.STARTTLS)

    async def _take(self, client: ImapClient) -> None:
        """Keep every mail that is new here."""
        mark = await self._state.mailbox_mark(self._key)
        # other UIDVALIDITY, other UIDs: all mails are looked at again, and what was known already changes nothing
        last = mark[1] if mark is not None and mark[0] == client.uidvalidity else 0
        for uid in await client.search(last, self._clock() - self._age):
            content = await client.fetch(uid, MOST_OCTETS)
            if content is not None:
                await self._keep(self._mailbox.name, self._mailbox.host, self._address(), _with_crlf(content))
                self._observer.fetched(self._mailbox.name)
            await self._state.keep_mailbox_mark(self._key, client.uidvalidity, uid)
            if content is not None:
                await self._mark(client, uid)

    async def _mark(self, client: ImapClient, uid: int) -> None:
        if self._mailbox.done_folder is not None:
            await client.move(uid, self._mailbox.done_folder)
        else:
            await client.mark_seen(uid)

    def _address(self) -> str:
        username = self._mailbox.username
        return username if "@" in username else f"{username}@{self._mailbox.host}"


def _context(mailbox: Mailbox) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=mailbox.ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _with_crlf(content: bytes) -> bytes:
    """Servers hand out CRLF; what a broken one does not must not enter the spool."""
    return _BARE.sub(b"\r\n", content)


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the server's certificate is not good: {error.verify_message}"
    if isinstance(error, OSError):
        return f"{type(error).__name__}: {error.strerror or 'the connection failed'}"
    return type(error).__name__
