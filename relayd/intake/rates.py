"""Per-credential rates: never more messages in any window than the credential's `rate`, all workers together.

Each worker leases slices of permits from state.db and decides from memory while one lasts. A slice that is not
handed back (kill -9) counts as used, so the limit holds across crashes and restarts too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from relayd.config.models import Config
from relayd.core.units import Millis
from relayd.spool.state import Slice, Spent, StateDB, StateError, Used

_SLICES_PER_WINDOW = 16
"""A slice is at most this part of a worker's share: small enough that a crash costs the client little."""
_MAX_VALID = 60_000
_MIN_VALID = 50
"""Milliseconds that a slice can be used for; between these bounds a sixteenth of the window."""
_GRAINS = 256
"""How finely use is written back: uses closer together than this part of the window count from the last of them."""
_RECHECK = 1000
"""Milliseconds after which a refusal is checked again at the latest: another worker may have handed permits back."""
_SWEEP = 1.0
"""Seconds between looks for slices that ran out unused."""


@dataclass(slots=True)
class _Held:
    """A slice in use."""

    slice: Slice
    since: Millis
    left: int
    used: list[Used] = field(default_factory=list)

    def usable(self, now: Millis) -> bool:
        """A clock behind its beginning stepped back: then the slice's time has lost its meaning."""
        return self.left > 0 and self.since <= now < self.slice.until


class _Account:
    """One credential's rate, as this worker holds it."""

    __slots__ = ("count", "grain", "held", "leasing", "refused_until", "spent", "username", "valid", "want", "window")

    def __init__(self, username: str) -> None:
        self.username = username
        self.held: _Held | None = None
        self.spent: list[Spent] = []
        self.refused_until: Millis = 0
        self.leasing: asyncio.Task[None] | None = None

    def set_rate(self, count: int, seconds: float, workers: int) -> None:
        self.count = count
        self.window = max(int(seconds * 1000), 1)
        self.valid = min(max(self.window // 16, _MIN_VALID), _MAX_VALID)
        self.grain = max(self.window // _GRAINS, 1)
        self.want = max(count // (_SLICES_PER_WINDOW * workers), 1)
        self.refused_until = 0

    def take(self, now: Millis) -> bool:
        """Use one permit of the slice in hand."""
        held = self.held
        if held is None:
            return False
        if not held.usable(now):
            self.put_down()
            return False
        held.left -= 1
        used = held.used
        if used and used[-1].at // self.grain == now // self.grain:
            used[-1] = Used(now, used[-1].count + 1)
        else:
            used.append(Used(now, 1))
        return True

    def put_down(self) -> None:
        """Be done with the slice in hand."""
        if self.held is not None:
            self.spent.append(Spent(self.held.slice.id, self.username, self.grain, tuple(self.held.used)))
            self.held = None


class RateBook:
    """The rates of all credentials, as one worker may use them."""

    def __init__(self, config: Config, state: StateDB, clock: Callable[[], Millis]) -> None:
        self._state = state
        self._clock = clock
        self._accounts: dict[str, _Account] = {}
        self._orphans: list[Spent] = []
        self._task: asyncio.Task[None] | None = None
        self.apply(config)

    def apply(self, config: Config) -> None:
        """Take over changed rates. What was used before counts against the new rate."""
        old, self._accounts = self._accounts, {}
        for credential in config.credentials:
            if credential.rate is not None:
                account = old.pop(credential.username, None) or _Account(credential.username)
                account.put_down()
                account.set_rate(credential.rate.count, credential.rate.seconds, config.worker_count)
                self._accounts[credential.username] = account
        for account in old.values():
            account.put_down()
            self._orphans += account.spent

    def exhausted(self, username: str) -> bool:
        """It is known that nothing is left just now. Takes nothing, asks nobody: for MAIL."""
        account = self._accounts.get(username)
        return account is not None and self._clock() < account.refused_until

    def take_now(self, username: str) -> bool | None:
        """Use one permit: True when done (or no rate is set), False when refused, None when only `take` can tell."""
        account = self._accounts.get(username)
        if account is None:
            return True
        now = self._clock()
        if account.take(now):
            return True
        return False if now < account.refused_until else None

    async def take(self, username: str) -> bool:
        """Use one permit, leasing another slice where needed. Raises StateError when state.db does not answer."""
        while (taken := self.take_now(username)) is None:
            account = self._accounts[username]
            if account.leasing is None:
                # a task of ours, shared by all who wait: a client that leaves must not lose the slice it asked for
                account.leasing = asyncio.create_task(self._lease(account), name="lease a rate")
                account.leasing.add_done_callback(_seen)
            await asyncio.shield(account.leasing)
        return taken

    async def _lease(self, account: _Account) -> None:
        spent, account.spent = account.spent, []
        now = self._clock()
        try:
            slice_ = await self._state.lease_rate(
                account.username,
                now,
                want=account.want,
                count=account.count,
                window=account.window,
                valid=account.valid,
                spent=spent,
            )
        except StateError:
            account.spent = spent + account.spent
            raise
        finally:
            account.leasing = None
        if not slice_.permits:
            account.refused_until = min(slice_.until, self._clock() + _RECHECK)
            return
        account.put_down()
        account.held = _Held(slice_, now, slice_.permits)
        if self._clock() >= slice_.until:
            # a disk so slow that the slice came too late: ask for longer ones rather than for ever
            account.valid = min(account.valid * 2, _MAX_VALID)

    async def start(self) -> None:
        """Begin to hand back what runs out unused."""
        self._task = asyncio.create_task(self._sweep(), name="sweep rates")

    async def stop(self) -> None:
        """Hand everything back."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        leasing = [account.leasing for account in self._accounts.values() if account.leasing is not None]
        await asyncio.gather(*leasing, return_exceptions=True)
        for account in self._accounts.values():
            account.put_down()
        await self.hand_back()

    async def hand_back(self) -> None:
        """Return slices that are spent or whose time is over; what state.db does not take now, it gets next time."""
        now = self._clock()
        spent, self._orphans = self._orphans, []
        for account in self._accounts.values():
            if account.held is not None and not account.held.usable(now):
                account.put_down()
            spent += account.spent
            account.spent = []
        if not spent:
            return
        try:
            await self._state.return_rates(spent)
        except StateError as error:
            self._orphans += spent
            structlog.get_logger("relayd.intake").warning("rates not handed back", error=str(error))

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP)
            await self.hand_back()


def _seen(task: asyncio.Task[None]) -> None:
    """A failure with nobody left to hear it is no unretrieved exception."""
    if not task.cancelled():
        task.exception()
