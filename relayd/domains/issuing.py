"""The duty of getting and renewing certificates of tracking hosts: one worker at a time, one order at a time.

An order itself is ordering.py's, what a failure means certificates.py's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from relayd.config.models import Acme, Config
from relayd.core.units import Millis
from relayd.domains import certificates
from relayd.domains.issued import CertificateSafe
from relayd.spool.certificates import ChallengeStore
from relayd.spool.domains import DomainStore, Everything
from relayd.spool.state import StateDB

if TYPE_CHECKING:
    from relayd.domains.ordering import Orders

LEASE = "certificates"
_LEASE_FOR: Millis = 300_000


class CertificateDuty:
    """One worker's part in it. `owner` names this process among the workers."""

    def __init__(self, state: StateDB, config: Config, owner: str, clock: Callable[[], Millis]) -> None:
        self._state = state
        self._store = DomainStore(state)
        self._challenges = ChallengeStore(state)
        self._config = config
        self._owner = owner
        self._clock = clock
        self._safe: CertificateSafe | None = None

    def use(self, secret: bytes) -> None:
        """Know the secret that locks keys."""
        self._safe = CertificateSafe(secret)

    def apply(self, config: Config) -> None:
        """Take over a changed configuration."""
        self._config = config

    async def challenge(self, token: str) -> str | None:
        """The answer to a CA's challenge, whichever worker is asked. Raises StateError."""
        return None if self._config.tracking.acme is None else await self._challenges.answer(token)

    async def tick(self, known: Everything, unusable: Callable[[], list[str]] = list) -> int:
        """Get what is due, if it is our turn; how many were tried. `known` may be a moment old. Raises StateError.

        `unusable`: hosts whose key cannot be opened any more.
        """
        acme = self._config.tracking.acme
        if acme is None or self._safe is None or not certificates.due(known, self._config, self._clock(), unusable()):
            return 0
        if (await self._challenges.account(acme.directory)).pause_until > self._clock():
            return 0
        if not await self._hold():
            return 0
        tried = 0
        try:
            orders = await asyncio.to_thread(self._orders, acme, self._safe)
            # another worker may have done it all since `known` was read
            fresh = await self._store.everything()
            for host in certificates.due(fresh, self._config, self._clock(), unusable()):
                if not await self._hold():
                    break
                tried += 1
                if not await orders.get(host):
                    break
        finally:
            await self._state.release(LEASE, self._owner)
        return tried

    async def _hold(self) -> bool:
        return await self._state.claim(LEASE, self._owner, self._clock(), _LEASE_FOR)

    def _orders(self, acme: Acme, safe: CertificateSafe) -> Orders:
        from relayd.domains.ordering import Orders  # noqa: PLC0415 - 14 MiB, for the one worker that orders

        store, challenges = self._store, self._challenges
        return Orders(store, challenges, self._config, acme=acme, safe=safe, hold=self._hold, clock=self._clock)
