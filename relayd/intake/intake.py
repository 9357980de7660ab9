"""The door itself: gathers facts for admission, hands messages to the spool and then to delivery.

What is refused, and with which words, is admission.py's; what is kept, submission.py's; how, the spool's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import structlog

from relayd.config.models import Config, Credential, Limits, Listener, Role
from relayd.core.headers import HeaderFacts
from relayd.core.ids import MessageId
from relayd.core.mail import Body, Envelope, Message, Origin, Recipient
from relayd.core.reply import Reply
from relayd.core.token import ReturnPaths
from relayd.core.units import Millis
from relayd.intake import admission
from relayd.intake.admission import Refused, SenderPatterns
from relayd.intake.auth import BusyError, PasswordVerifier
from relayd.intake.cidr import unmap
from relayd.intake.disk import DiskWatch
from relayd.intake.guesses import GuessLimiter, network_of
from relayd.intake.memory import MemoryBudget
from relayd.intake.networks import NetworkBook
from relayd.intake.observer import AuthFailure, IntakeObserver
from relayd.intake.rates import RateBook
from relayd.intake.session import ClientSession
from relayd.intake.submission import Kept, Preparer, deliveries, origin_of
from relayd.intake.urgency import RoutePriority
from relayd.intake.vouching import AnyDomain, Vouching
from relayd.spool.joining import Joiner
from relayd.spool.state import StateError
from relayd.spool.store import Delivery, Store, StoreError, StoreFullError

AUTH_OK = Reply(235, "2.7.0", "Authentication successful")
AUTH_WRONG = Reply(535, "5.7.8", "Authentication credentials invalid")
AUTH_BUSY = Reply(454, "4.7.0", "Temporary authentication failure, try again later")
AUTH_BLOCKED = admission.GUESSING.reply
NO_RECIPIENTS = Reply(503, "5.5.1", "No valid recipients")

_QUIET: Millis = 10_000
"""Between two log entries of one kind: when the disk fails, every mail does, and the metrics have the count."""
REPORT_LISTENER = "report"
"""Stands for a listener in the origin of our own reports."""


@dataclass(frozen=True, slots=True)
class _Account:
    """A credential, made ready for the hot path."""

    credential: Credential
    patterns: SenderPatterns


class Intake:
    """Implements Door for one worker."""

    def __init__(  # noqa: PLR0917 - its parts, wired once in app.py
        self,
        config: Config,
        store: Store,
        networks: NetworkBook,
        passwords: PasswordVerifier,
        guesses: GuessLimiter,
        rates: RateBook,
        disk: DiskWatch,
        *,
        lane_of: Callable[[Message, Recipient], str | None],
        on_kept: Callable[[Delivery], None],
        observer: IntakeObserver,
        clock: Callable[[], Millis],
        return_paths: ReturnPaths | None = None,
        vouching: Vouching | None = None,
        stranger: Callable[[Message, Recipient], bool] = lambda message, recipient: False,
        priority_of: RoutePriority | None = None,
    ) -> None:
        """`on_kept` is called on the loop for each lane of a message, once it is on disk; it must be quick.

        `lane_of` returns the upstream of the route that fits, None when none does. `return_paths` are the addresses
        that inbound listeners take mail for. `vouching` knows which domains are verified; without it, all may send.
        `stranger` says of mail without a lane that a route fits, but the sender has no account at its upstream.
        `priority_of` returns what the route says of a mail's priority.
        """
        self.draining = False
        """Refuse new connections and new mails; what is in reception is still taken."""
        self.memory = MemoryBudget(config.limits.memory)
        self.joiner = Joiner()
        self.company = store.company
        self._store = store
        self._networks = networks
        self._passwords = passwords
        self._guesses = guesses
        self._rates = rates
        self._disk = disk
        self._lane_of = lane_of
        self._priority_of = priority_of
        self._stranger = stranger
        self._on_kept = on_kept
        self._observer = observer
        self._clock = clock
        self._log = structlog.get_logger("relayd.intake")
        self._logged: dict[str, Millis] = {}
        self._return_paths = return_paths
        self._vouching = vouching or AnyDomain()
        self._compile(config)

    def apply(self, config: Config, return_paths: ReturnPaths | None = None) -> None:
        """Take over a changed configuration, here and in all parts of intake."""
        self._return_paths = return_paths
        self._networks.apply(config)
        self._passwords.apply(config)
        self._guesses.apply(config)
        self._rates.apply(config)
        self._disk.apply(config)
        self._compile(config)

    def _compile(self, config: Config) -> None:
        self.memory.limit = config.limits.memory
        self._limits = config.limits
        self._own_limits = {
            listener.name: limits
            for listener in config.listeners
            if (limits := config.limits_of(listener)) is not config.limits
        }
        self._hostname = config.hostname
        self._preparer = Preparer(config, self._lane_of, self._priority_of, self.joiner)
        self._listeners = {listener.name: listener for listener in config.listeners}
        self._accounts = {c.username: _Account(c, SenderPatterns(c.senders)) for c in config.credentials}

    # --- Door -------------------------------------------------------------------------------------------------

    def connect(self, session: ClientSession) -> Reply | None:
        """See Door."""
        listener = session.listener
        session.peer = unmap(session.peer)
        session.network = self._networks.lookup(session.peer, listener.networks)
        refused = admission.connect(
            admission.ConnectFacts(
                self.draining,
                listener.access,
                session.network is not None,
                self._guesses.blocked(session.peer),
                session.proxy,
            ),
            inbound=listener.role is Role.INBOUND,
        )
        return None if refused is None else self._refuse(refused, listener)

    async def authenticate(self, session: ClientSession, username: str, password: str) -> Reply:
        """See Door. The answer to a wrong login is held back, longer each time."""
        peer, name = session.peer, session.listener.name
        if self._guesses.blocked(peer):
            self._observer.auth_failed(AuthFailure.GUESSING, name)
            return AUTH_BLOCKED
        try:
            credential = await self._passwords.verify(username, password, network_of(peer))
        except BusyError:
            self._observer.auth_failed(AuthFailure.BUSY, name)
            return AUTH_BUSY
        if self._guesses.blocked(peer):
            # many guesses at once: those beyond the limit learn nothing, not even a right one
            self._observer.auth_failed(AuthFailure.GUESSING, name)
            return AUTH_BLOCKED
        if credential is None:
            delay = self._guesses.failed(peer)
            self._observer.auth_failed(AuthFailure.PASSWORD, name)
            # a name that is none of ours may be a password typed into the wrong field
            shown = username if username in self._accounts else None
            self._log.info("login failed", listener=name, peer=str(peer), username=shown)
            await asyncio.sleep(delay)
            return AUTH_WRONG
        session.credential = credential
        self._observer.auth_succeeded(name)
        return AUTH_OK

    def mail(self, session: ClientSession, envelope: Envelope, size: int) -> Reply | None:
        """See Door."""
        account = self._current(session)
        listener = session.listener
        refused = admission.mail(
            admission.MailFacts(
                self.draining,
                self._disk.low,
                self.memory.welcomes(size),
                listener.require_tls,
                session.tls is not None,
                listener.access,
                session.network is not None,
                account is not None,
                size,
                self._limits_of(listener).message_size,
                envelope.sender,
                envelope.smtputf8,
                None if account is None else account.patterns,
                account is not None and self._rates.exhausted(account.credential.username),
                account is not None
                and bool(account.credential.accounts)
                and not self._vouching.may_use(envelope.sender, account.credential.accounts),
            ),
            inbound=listener.role is Role.INBOUND,
        )
        return None if refused is None else self._refuse(refused, listener)

    def rcpt(self, session: ClientSession, envelope: Envelope, recipient: Recipient, count: int) -> Reply | None:
        """See Door."""
        listener = session.listener
        refused = admission.rcpt(
            admission.RcptFacts(count, self._limits_of(listener).recipients, recipient.address, envelope.smtputf8)
        )
        if refused is None and listener.role is Role.INBOUND:
            refused = self._issued(recipient.address)
        return None if refused is None else self._refuse(refused, listener)

    def _issued(self, address: str) -> Refused | None:
        """An inbound listener takes mail for the return paths that we signed, and for those who mind the domain."""
        paths = self._return_paths
        if paths is None:
            return admission.NOT_OURS
        # the listener completes a bare <postmaster> by our host name
        at_host = address.lower() == f"postmaster@{self._hostname}"
        if at_host or paths.is_role(address) or paths.read(address, self._clock()) is not None:
            return None
        return admission.FORGED if paths.looks_issued(address) else admission.NOT_OURS

    def _limits_of(self, listener: Listener) -> Limits:
        return self._own_limits.get(listener.name, self._limits)

    async def submit(
        self,
        session: ClientSession,
        envelope: Envelope,
        recipients: Sequence[Recipient],
        content: bytes,
        rest: list[bytes] | None = None,
    ) -> Reply:
        """See Door."""
        listener = session.listener
        try:
            if not recipients:
                return NO_RECIPIENTS
            size = len(content)
            if rest:
                size += sum(map(len, rest))
                content = await self._preparer.with_header(content, rest)
            facts = await self._preparer.facts_of(content)
            refused = (
                admission.LONG_HEADER
                if facts is None
                else admission.content(
                    admission.ContentFacts(
                        size,
                        self._limits_of(listener).message_size,
                        facts.received_count,
                        self._limits.received_headers,
                        self._unvouched(listener, facts),
                    )
                )
            )
            if refused is None and session.credential is not None:
                refused = await self._rate(session.credential.username)
            if refused is not None or facts is None:
                return self._refuse(refused or admission.LONG_HEADER, listener)
            kept = await self._preparer.prepare(
                number=self._store.mint(),
                now=self._clock(),
                origin=origin_of(session, envelope),
                envelope=envelope,
                recipients=recipients,
                content=content,
                facts=facts,
                trace=True,
                rest=rest,
            )
            unrouted = next((w for w in kept.waiting if not w.lane), None)
            if unrouted is not None:
                stranger = self._stranger(kept.message, unrouted.recipient)
                refused = admission.no_account(envelope.sender) if stranger else _no_route(unrouted.recipient)
                return self._refuse(refused, listener)
            error = await self._keep(kept)
            if error is None:
                return Reply(250, "2.0.0", f"OK queued as {kept.id_text}")
            return self._refuse(self._spool_trouble(error), listener)
        except Exception as error:  # noqa: BLE001
            # whatever it was: the client comes back later, and is not told what is wrong with us
            self._log_seldom("submission failed", error, exc_info=True)
            return self._refuse(admission.INTERNAL, listener)

    async def submit_fetched(self, mailbox: str, host: str, address: str, content: bytes) -> MessageId:
        """Keep a mail that was fetched from a mailbox of bounces, as it is; its id, once durable.

        Raises StoreFullError while space is low or too much is in memory, StoreError.
        """
        if self._disk.low or not self.memory.room(len(content)):
            raise StoreFullError("no room for fetched mail now")
        kept = await self._preparer.prepare(
            number=self._store.mint(),
            now=self._clock(),
            origin=Origin(f"mailbox {mailbox}", host, protocol="IMAP", inbound=True),
            envelope=Envelope(""),
            recipients=(Recipient(address),),
            content=content,
            facts=await self._preparer.facts_of(content) or HeaderFacts(),
            trace=False,
        )
        error = await self._keep(kept)
        if error is not None:
            raise error
        return kept.message.id

    async def submit_report(
        self, recipient: str, content: bytes, *, smtputf8: bool = False, body: Body = Body.SEVEN_BIT
    ) -> MessageId:
        """Keep a report of our own (null sender) through the same door, without access checks; its id, once durable.

        A report that no route fits waits unrouted: it must not be lost. Raises StoreError.
        """
        envelope = Envelope("", body=body, smtputf8=smtputf8)
        origin = Origin(REPORT_LISTENER, "", self._hostname, protocol="LOCAL")
        facts = self._preparer.facts(content)
        kept = await self._preparer.prepare(
            number=self._store.mint(),
            now=self._clock(),
            origin=origin,
            envelope=envelope,
            recipients=(Recipient(recipient),),
            content=content,
            facts=facts,
            trace=False,
        )
        error = await self._keep(kept)
        if error is not None:
            raise error
        return kept.message.id

    def _unvouched(self, listener: Listener, facts: HeaderFacts) -> str | None:
        if listener.role is Role.INBOUND:  # what comes back to us is from anybody
            return None
        # all of them: our signature covers every From, and a reader may be shown any
        unvouched = self._vouching.unvouched
        if not facts.co_authors:
            return facts.from_domain if unvouched(facts.from_domain) else None
        return next((domain for domain in (facts.from_domain, *facts.co_authors) if unvouched(domain)), None)

    # --- steps ------------------------------------------------------------------------------------------------

    def _refuse(self, refused: Refused, listener: Listener) -> Reply:
        self._observer.refused(refused.reason, listener.name)
        return refused.reply

    def _current(self, session: ClientSession) -> _Account | None:
        """Bring a session that began before a reload up to date; the account it is logged in with, if any."""
        listener = self._listeners.get(session.listener.name)
        if listener is not None and listener is not session.listener:
            session.listener = listener
            session.network = self._networks.lookup(session.peer, listener.networks)
        credential = session.credential
        if credential is None:
            return None
        account = self._accounts.get(credential.username)
        if account is not None and account.credential is not credential:
            # with another password the old login proves nothing any more
            same = account.credential.password.get_secret_value() == credential.password.get_secret_value()
            account = account if same else None
        session.credential = None if account is None else account.credential
        return account

    async def _rate(self, username: str) -> Refused | None:
        """Use one permit of the credential's rate, now that the message has come whole."""
        taken = self._rates.take_now(username)
        if taken is None:
            try:
                taken = await self._rates.take(username)
            except StateError as error:
                self._log_seldom("rate unknown", error)
                return admission.SPOOL_FAILED
        return None if taken else admission.RATE

    async def _keep(self, kept: Kept) -> Exception | None:
        """Write to the spool and hand on to delivery, both even if the caller is cancelled meanwhile.

        The trouble, when it was not kept. The store's future is never awaited itself: cancelling would reach it.
        """
        size = len(kept.content)
        self.memory.take(size)
        try:
            future = self._store.accept(kept.message, kept.waiting, kept.content)
        except StoreError as error:
            self.memory.release(size)
            return error
        except BaseException:
            self.memory.release(size)
            raise
        waiter: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

        def done(future: asyncio.Future[None]) -> None:
            error = StoreError("the spool gave up") if future.cancelled() else future.exception()
            if error is None:
                self._hand_on(kept)
            self.memory.release(size)
            if not waiter.done():
                waiter.set_result(error if error is None or isinstance(error, Exception) else StoreError(str(error)))

        future.add_done_callback(done)
        return await waiter

    def _hand_on(self, kept: Kept) -> None:
        try:
            for delivery in deliveries(kept):
                self._on_kept(delivery)
        except Exception as error:  # noqa: BLE001
            # it is on disk, so it is ours, and the client must hear so: delivery finds it there
            self._log_seldom("not handed on", error, exc_info=True)

    def _spool_trouble(self, error: Exception) -> Refused:
        self._log_seldom("message not kept", error)
        if isinstance(error, StoreFullError):
            return admission.SPOOL_FULL
        return admission.SPOOL_FAILED if isinstance(error, StoreError) else admission.INTERNAL

    def _log_seldom(self, event: str, error: Exception, *, exc_info: bool = False) -> None:
        now = self._clock()
        last = self._logged.get(event)
        if last is None or not 0 <= now - last < _QUIET:
            self._logged[event] = now
            self._log.error(event, error=f"{type(error).__name__}: {error}", exc_info=exc_info)


def _no_route(recipient: Recipient) -> Refused:
    reply = admission.NO_ROUTE.reply
    return Refused(admission.NO_ROUTE.reason, replace(reply, text=f"{reply.text} to <{recipient.address}>"))
