"""The duty of looking at DNS again and again: done by whichever worker holds the lease, for domains that are due.

What a look means is lifecycle.py's and tracking.py's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog

from relayd.config.models import Config
from relayd.core.units import Millis
from relayd.domains.lifecycle import GoneError
from relayd.spool.domains import DomainStore, Everything, TrackingState
from relayd.spool.state import StateDB, StateError

if TYPE_CHECKING:
    from relayd.domains.service import Checker

LEASE = "domains"
_LEASE_FOR: Millis = 120_000
_AT_ONCE = 4
_SULK: Millis = 60_000
"""After a fault of ours, before that domain is tried again."""


class DomainDuty:
    """One worker's part in it."""

    def __init__(self, state: StateDB, config: Config, owner: str, clock: Callable[[], Millis]) -> None:
        self._state = state
        self._store = DomainStore(state)
        self._config = config
        self._owner = owner
        self._clock = clock
        self._sulking: dict[str, Millis] = {}
        self._log = structlog.get_logger("relayd.domains")

    def apply(self, config: Config) -> None:
        """Take over a changed configuration."""
        self._config = config

    async def tick(self, known: Everything) -> int:
        """Check what is due, if it is our turn; how many that were. `known` may be a moment old. Raises StateError."""
        if not self._due(known):
            return 0
        if not await self._claim():
            return 0
        try:
            # another worker may have done it all since `known` was read
            due = self._due(await self._store.everything())
            checker = await asyncio.to_thread(self._checker)
            gate = asyncio.Semaphore(_AT_ONCE)
            await asyncio.gather(*(self._check(checker, kind, name, gate) for kind, name in due))
        finally:
            await self._state.release(LEASE, self._owner)
        return len(due)

    async def _claim(self) -> bool:
        return await self._state.claim(LEASE, self._owner, self._clock(), _LEASE_FOR)

    def _checker(self) -> Checker:
        from relayd.domains.service import Checker  # noqa: PLC0415 - 3 MiB, for the one worker that asks DNS

        return Checker(self._store, self._config, self._clock)

    def _due(self, everything: Everything) -> list[tuple[str, str]]:
        now = self._clock()
        due = [("domain", each.name) for each in everything.domains if each.next_check <= now]
        due += [
            ("tracking", each.name)
            for each in everything.tracking
            if each.next_check <= now and each.state is not TrackingState.EXPIRED
        ]
        return [each for each in due if self._sulking.get(each[1], 0) <= now]

    async def _check(self, checker: Checker, kind: str, name: str, gate: asyncio.Semaphore) -> None:
        async with gate:
            try:
                if not await self._claim():
                    return
                if kind == "domain":
                    await checker.check_domain(name)
                else:
                    await checker.check_tracking(name)
                self._sulking.pop(name, None)
            except GoneError:
                return
            except StateError as error:
                self._sulking[name] = self._clock() + _SULK
                self._log.error("domain not checked", domain=name, error=str(error))
            except Exception:  # noqa: BLE001 - one domain that breaks us must not keep the others from their checks
                self._sulking[name] = self._clock() + _SULK
                self._log.exception("domain not checked", domain=name)
