"""Slows, then refuses those who guess passwords: failed logins per address and per network (/24, /64).

Counts in memory; workers tell each other their failures through state.db once a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import OrderedDict, deque
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address

import structlog

from relayd.config.models import Config
from relayd.core.units import Millis
from relayd.spool.state import Guess, StateDB, StateError

NETWORK_FACTOR = 8
"""A network may fail this many times as often as one address."""
FIRST_DELAY = 0.5
MAX_DELAY = 8.0
"""Seconds that an answer to a failed login is held back: doubled with each failure, up to the second figure."""
MAX_KEYS = 16_384
"""Addresses, and as many networks, that are remembered; those quiet for longest are forgotten first."""
SHARE_INTERVAL = 1.0
"""Seconds between exchanges with the other workers."""
_MAX_UNSHARED = 10_000

Peer = IPv4Address | IPv6Address


def network_of(peer: Peer) -> int:
    """A key for the /24 or /64 around an address; IPv6 keys are negative, so that the two never meet."""
    return int(peer) >> 8 if peer.version == 4 else -(int(peer) >> 64) - 1


def address_of(peer: Peer) -> int:
    """A key for the address itself, in the same way."""
    return int(peer) if peer.version == 4 else -int(peer) - 1


class Failures:
    """When each key failed lately: at most `limit` moments each, none older than `window` ms.

    Pure: the caller has the clock.
    """

    def __init__(self, limit: int, window: Millis, max_keys: int = MAX_KEYS) -> None:
        self.limit = limit
        self.window = window
        self._max_keys = max_keys
        self._moments: OrderedDict[int, deque[Millis]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._moments)

    def add(self, key: int, at: Millis) -> int:
        """Count one more; how many there are in the window now, at most `limit`."""
        moments = self._moments.get(key)
        if moments is None:
            moments = self._moments[key] = deque()
            if len(self._moments) > self._max_keys:
                self._moments.popitem(last=False)
        self._moments.move_to_end(key)
        moments.append(at)
        return self._prune(key, moments, at)

    def count(self, key: int, now: Millis) -> int:
        """How many there are in the window, at most `limit`."""
        moments = self._moments.get(key)
        return 0 if moments is None else self._prune(key, moments, now)

    def _prune(self, key: int, moments: deque[Millis], now: Millis) -> int:
        # moments further ahead than the window were written before the clock stepped back: they mean nothing
        while moments and (len(moments) > self.limit or not -self.window < now - moments[0] < self.window):
            moments.popleft()
        if not moments:
            del self._moments[key]
        return len(moments)


class GuessLimiter:
    """Failed logins of one worker, and what it heard from the others."""

    def __init__(self, config: Config, clock: Callable[[], Millis], state: StateDB | None = None) -> None:
        """`state` None: nothing is shared (a single worker whose count may start anew with it)."""
        window = int(config.limits.auth_window * 1000)
        self._clock = clock
        self._state = state
        self._addresses = Failures(config.limits.auth_failures, window)
        self._networks = Failures(config.limits.auth_failures * NETWORK_FACTOR, window)
        self._owner = secrets.token_hex(8)
        self._unshared: list[Guess] = []
        self._mark = 0
        self._silent = False
        self._task: asyncio.Task[None] | None = None

    def apply(self, config: Config) -> None:
        """Take over changed limits; what was counted stays counted."""
        self._addresses.limit = config.limits.auth_failures
        self._networks.limit = config.limits.auth_failures * NETWORK_FACTOR
        self._addresses.window = self._networks.window = int(config.limits.auth_window * 1000)

    def blocked(self, peer: Peer) -> bool:
        """This address, or its network, has used up its failures: no login is looked at until the window has passed."""
        if not self._addresses and not self._networks:
            return False
        now = self._clock()
        return (
            self._addresses.count(address_of(peer), now) >= self._addresses.limit
            or self._networks.count(network_of(peer), now) >= self._networks.limit
        )

    def failed(self, peer: Peer) -> float:
        """Count a failed login; the seconds to hold the answer back."""
        now = self._clock()
        if self._state is not None and len(self._unshared) < _MAX_UNSHARED:
            self._unshared.append(Guess(str(peer), now))
        return self._count(peer, now)

    def _count(self, peer: Peer, at: Millis) -> float:
        self._networks.add(network_of(peer), at)
        failures = self._addresses.add(address_of(peer), at)
        return min(FIRST_DELAY * 2.0 ** min(failures - 1, 10), MAX_DELAY)

    async def start(self) -> None:
        """Hear what happened before and elsewhere, and keep exchanging."""
        if self._state is not None:
            await self.share()
            self._task = asyncio.create_task(self._exchange(), name="share failed logins")

    async def stop(self) -> None:
        """Tell the last failures, and end."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self.share()

    async def share(self) -> None:
        """Exchange failures with the other workers now. A state.db that fails leaves each worker with its own count."""
        if self._state is None:
            return
        own, self._unshared = self._unshared, []
        now = self._clock()
        try:
            heard, self._mark = await self._state.share_guesses(
                self._owner, own, now - self._addresses.window, self._mark
            )
        except StateError as error:
            self._unshared = own[: _MAX_UNSHARED - len(self._unshared)] + self._unshared
            if not self._silent:
                structlog.get_logger("relayd.intake").warning("failed logins not shared", error=str(error))
            self._silent = True
            return
        self._silent = False
        for guess in heard:
            with contextlib.suppress(ValueError):  # no address: not written by us
                self._count(ip_address(guess.peer), guess.at)

    async def _exchange(self) -> None:
        while True:
            await asyncio.sleep(SHARE_INTERVAL)
            await self.share()
