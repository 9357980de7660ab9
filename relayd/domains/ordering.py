"""One order: the look at port 80, the conversation with the CA, and what came of it, written down.

Loaded by the one worker that orders, when it does: what it needs takes 14 MiB. What is due is issuing.py's.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import random
import secrets
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeVar

import structlog
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from relayd.config.models import Acme, Config
from relayd.core.units import Millis
from relayd.domains import certificates, keypair, reach
from relayd.domains.ca import Conversation
from relayd.domains.certificates import CAError
from relayd.domains.issued import CertificateSafe
from relayd.domains.service import lookup_of
from relayd.spool.certificates import CAAccount, Certificate, ChallengeStore
from relayd.spool.domains import DomainEvent, DomainStore, Editor
from relayd.spool.vault import LockedError

T = TypeVar("T")

_STEP = 120.0
"""Seconds for one step of a conversation with a CA."""
_PROOF = 180.0
"""Seconds that a CA gets to look at the proof."""
_SHOWN: Millis = 3_600_000
"""How long a challenge may stay answered if nobody takes it away."""
WELL_KNOWN = "/.well-known/acme-challenge/"


class Orders:
    """Makes orders, one after the other."""

    def __init__(
        self,
        store: DomainStore,
        challenges: ChallengeStore,
        config: Config,
        *,
        acme: Acme,
        safe: CertificateSafe,
        hold: Callable[[], Awaitable[bool]],
        clock: Callable[[], Millis],
    ) -> None:
        """`hold` renews the right to order."""
        self._store, self._challenges = store, challenges
        self._config, self._acme = config, acme
        self._locks = safe
        self._hold = hold
        self._clock = clock
        self._random = random.Random()  # noqa: S311 - jitter, not secrecy
        self._log = structlog.get_logger("relayd.domains")

    async def get(self, host: str) -> bool:
        """Try to get a certificate, and write down what came of it; False where the CA wants to be left alone."""
        attempt = _Attempt(host)
        try:
            await self._reachable(host)
            await self._order(attempt)
        except (CAError, LockedError) as error:
            return await self._fail(attempt, error if isinstance(error, CAError) else CAError(str(error)))
        except Exception:
            # a fault of ours must not order again and again
            await self._fail(attempt, CAError("a fault inside relayd: the log says more"))
            raise
        return True

    async def _reachable(self, host: str) -> None:
        if not self._acme.self_check:
            return
        token, content = (secrets.token_urlsafe(24) for _ in range(2))
        now = self._clock()
        await self._challenges.show({token: content}, now, now + _SHOWN)
        lookup = lookup_of(self._config)
        try:
            trouble = await reach.trouble(host, self._acme.http_port, WELL_KNOWN + token, content, lookup)
        finally:
            await lookup.close()
            await self._challenges.hide([token])
        if trouble:
            raise CAError(trouble)

    async def _order(self, attempt: _Attempt) -> None:
        talk = await self._open()
        host = attempt.host
        await self._write(host, lambda known: certificates.ordering(known, self._acme.directory, self._clock()))
        attempt.ordered = True
        key = keypair.fresh_key()
        answers = await self._step(lambda: talk.order(keypair.request_for(host, key)))
        await self._remember(talk)
        try:
            now = self._clock()
            await self._challenges.show(answers, now, now + _SHOWN)
            await self._step(talk.answer)
            await self._proven(talk)
            chain = await self._step(talk.finalize)
        finally:
            await self._challenges.hide(list(answers))
        await self._keep(host, chain, key)

    async def _open(self) -> Conversation:
        """Directory and account. The key is kept before it is registered: a crash must not lose the account."""
        account = await self._challenges.account(self._acme.directory)
        try:
            key = keypair.read_key(self._locks.open(account.private, self._acme.directory)) if account.private else None
        except LockedError as error:
            self._log.warning("a new account at the CA is made", directory=self._acme.directory, reason=str(error))
            key = None
        if key is None:
            key = keypair.fresh_key()
            private = self._locks.lock(keypair.written(key), self._acme.directory)
            account = CAAccount(self._acme.directory, private=private, pause_until=account.pause_until)
            await self._challenges.keep_account(account)
        talk = await in_thread(lambda: Conversation(self._acme, key, account.uri, account.email))
        await self._step(talk.open)
        await self._remember(talk)
        return talk

    async def _remember(self, talk: Conversation) -> None:
        account = await self._challenges.account(self._acme.directory)
        now = replace(account, uri=talk.uri, email=self._acme.email or "")
        if now != account:
            await self._challenges.keep_account(now)

    async def _proven(self, talk: Conversation) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _PROOF
        while wait := await self._step(talk.pending):
            if loop.time() + wait > deadline:
                raise CAError(f"the CA did not look at the proof within {_PROOF:g} s")
            await self._hold()
            await asyncio.sleep(wait)

    async def _step(self, step: Callable[[], T]) -> T:
        try:
            async with asyncio.timeout(_STEP):
                return await in_thread(step)
        except TimeoutError:
            raise CAError(f"the CA took longer than {_STEP:g} s") from None

    # -- what is written down

    async def _keep(self, host: str, chain: str, key: EllipticCurvePrivateKey) -> None:
        span = keypair.lives(chain, host, key)
        private = self._locks.lock(keypair.written(key), host)
        chance = self._random.random()
        first: list[bool] = []

        def renewed(known: Certificate) -> Certificate:
            first.append(not known.chain)
            return certificates.got(known, chain, private, span, now=self._clock(), chance=chance)

        def told(written: Certificate) -> DomainEvent:
            kind = "certificate.issued" if first[-1] else "certificate.renewed"
            detail = {"expires_at": written.not_after, "renewal_at": written.due}
            return DomainEvent(host, self._clock(), kind, detail)

        await self._write(host, renewed, told)

    async def _fail(self, attempt: _Attempt, error: CAError) -> bool:
        chance = self._random.random()

        def failed(known: Certificate) -> Certificate:
            return certificates.failed(
                known, self._acme.directory, error, ordered=attempt.ordered, now=self._clock(), chance=chance
            )

        def told(written: Certificate) -> DomainEvent:
            detail: dict[str, Any] = {"reason": str(error), "again_at": written.due}
            if written.not_after is not None:
                detail["expires_at"] = written.not_after
            return DomainEvent(attempt.host, self._clock(), "certificate.failed", detail)

        await self._write(attempt.host, failed, told)
        pause = certificates.pause(error)
        if pause:
            account = await self._challenges.account(self._acme.directory)
            await self._challenges.keep_account(replace(account, pause_until=self._clock() + pause))
        return not pause

    async def _write(
        self,
        host: str,
        change: Callable[[Certificate], Certificate],
        told: Callable[[Certificate], DomainEvent] | None = None,
    ) -> None:
        def work(editor: Editor) -> None:
            known = editor.certificate(host)
            written = change(known or Certificate(host))
            if host not in certificates.wanted(editor.everything(), self._config) and known is None:
                return  # removed meanwhile
            editor.put_certificate(written)
            if told is not None:
                editor.tell(told(written))

        await self._store.change(work)


class _Attempt:
    """How far one got."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.ordered = False


def in_thread(work: Callable[[], T]) -> Awaitable[T]:
    """Run what blocks in a thread that ends with the process: one of the loop's pool would keep it from stopping."""
    result: concurrent.futures.Future[T] = concurrent.futures.Future()

    def run() -> None:
        if not result.set_running_or_notify_cancel():
            return
        try:
            result.set_result(work())
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits
            result.set_exception(error)

    threading.Thread(target=run, name="certificates", daemon=True).start()
    return asyncio.wrap_future(result)
