"""Keeps networks current from URLs: one worker fetches, state.db remembers, all workers follow.

A faulty answer changes nothing; what an answer means for lookups is networks.py's.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Callable, Mapping
from ipaddress import ip_network
from typing import Any
from urllib.parse import urlsplit

import orjson
import structlog

from relayd.config.models import Config, FetchedNetwork
from relayd.core.bind import is_loopback
from relayd.core.units import Millis
from relayd.intake.cidr import Network, unmap_network
from relayd.spool.state import FetchedList, StateDB, StateError

MAX_ANSWER = 1024**2
"""Octets."""
MAX_ENTRIES = 10_000
BROADEST = {4: 8, 6: 16}
"""Shortest prefix that is believed: an answer that lists half the Internet would make an open relay of us."""
MOST_OF_BROADEST = 16
"""So many of these in all, for many narrower ones would do the same."""
TIMEOUT, CONNECT_TIMEOUT = 30, 10
"""Seconds."""
LOOK = 10.0
"""Seconds between looks at state.db, for what another worker fetched and what has been gone long enough."""
_LEASE: Millis = 60_000
_FIRST_RETRY: Millis = 30_000
"""After a failure; doubled with each, up to the network's `refresh`."""


class FetchError(Exception):
    """The URL did not give a list; the text says why, without the URL (which may hold a token)."""


def parse_list(octets: bytes, path: str) -> list[Network]:
    """The networks that a JSON answer lists at a dotted path ("" for the answer itself). Raises FetchError."""
    try:
        found: Any = orjson.loads(octets)
    except orjson.JSONDecodeError:
        raise FetchError("the answer is not JSON") from None
    for key in filter(None, path.split(".")):
        if not isinstance(found, dict) or key not in found:
            raise FetchError(f"the answer has no {path!r}")
        found = found[key]
    if not isinstance(found, list) or not 0 < len(found) <= MAX_ENTRIES:
        raise FetchError(f"{path or 'the answer'!r} is not a list of 1 to {MAX_ENTRIES} addresses")
    networks = [_entry(entry) for entry in found]
    for version, bits in ((4, 32), (6, 128)):
        addresses = sum(network.num_addresses for network in set(networks) if network.version == version)
        if addresses > MOST_OF_BROADEST << (bits - BROADEST[version]):
            raise FetchError(f"the list holds more addresses than {MOST_OF_BROADEST} networks of /{BROADEST[version]}")
    return networks


def _entry(entry: object) -> Network:
    try:
        # mapped networks first: ::ffff:0:0/96 is all of IPv4
        network = unmap_network(ip_network(str(entry).strip(), strict=False))
    except ValueError:
        raise FetchError("the list holds something that is not an address or CIDR") from None
    if network.prefixlen < BROADEST[network.version]:
        raise FetchError(f"the list holds a network wider than /{BROADEST[network.version]}")
    return network


def check_url(url: str) -> None:
    """Only https, or http on this very machine: whoever can change the answer can send mail. Raises FetchError."""
    parts = urlsplit(url)
    if parts.scheme == "https" and parts.hostname:
        return
    if parts.scheme != "http" or not is_loopback(parts.hostname or ""):
        raise FetchError("the URL is not https")


async def fetch(url: str) -> bytes:
    """GET, at most MAX_ANSWER octets. Raises FetchError. Redirects are not followed: they could lead off https."""
    import aiohttp  # noqa: PLC0415 - 5 MiB in every worker, and few have networks to fetch

    check_url(url)
    timeout = aiohttp.ClientTimeout(total=TIMEOUT, connect=CONNECT_TIMEOUT)
    headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, headers=headers) as session,
            session.get(url, allow_redirects=False) as response,
        ):
            if response.status != 200:
                raise FetchError(f"the answer was {response.status}")
            octets = bytearray()
            async for chunk in response.content.iter_chunked(65536):
                octets += chunk
                if len(octets) > MAX_ANSWER:
                    raise FetchError(f"the answer is longer than {MAX_ANSWER} octets")
            return bytes(octets)
    except (aiohttp.ClientError, OSError, ValueError) as error:  # TimeoutError is an OSError
        raise FetchError(f"no answer: {type(error).__name__}") from None


def merge(
    old: Mapping[str, Millis | None], listed: list[Network], now: Millis, keep_removed: Millis
) -> dict[str, Millis | None]:
    """What to remember after a fetch: all that is listed, and what vanished within `keep_removed`, with its moment."""
    merged: dict[str, Millis | None] = {str(network): None for network in listed}
    for cidr, gone in old.items():
        since = now if gone is None else min(gone, now)
        if cidr not in merged and now - since < keep_removed:
            merged[cidr] = since
    return merged


def allowed(known: FetchedList | None, network: FetchedNetwork, now: Millis) -> frozenset[Network]:
    """What a fetched network lets in at this moment."""
    if known is None or known.fetched_at is None:
        return frozenset(network.fallback)
    keep = network.keep_removed * 1000
    return frozenset(ip_network(cidr) for cidr, gone in known.addresses.items() if gone is None or now - gone < keep)


class Fetches:
    """The fetched networks of one worker."""

    def __init__(
        self,
        config: Config,
        state: StateDB,
        clock: Callable[[], Millis],
        allow: Callable[[str, frozenset[Network]], None],
    ) -> None:
        """`allow` is told what each network lets in, at the start and whenever it changes."""
        self._state = state
        self._clock = clock
        self._allow = allow
        self._owner = secrets.token_hex(8)
        self._networks: dict[str, FetchedNetwork] = {}
        self._told: dict[str, frozenset[Network]] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.apply(config)

    def apply(self, config: Config) -> None:
        """Take over changed networks; they are looked at at once."""
        self._networks = {name: n for name, n in config.networks.items() if isinstance(n, FetchedNetwork)}
        self._told = {}
        self._wake.set()

    async def start(self) -> None:
        """Take up what is known already (no URL is waited for), then keep it current."""
        await self.look(fetching=False)
        self._task = asyncio.create_task(self._run(), name="fetch networks")

    async def stop(self) -> None:
        """Fetch no more."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def look(self, *, fetching: bool = True) -> None:
        """Bring everything up to date once: fetch what is due, unless another worker does, and tell what changed."""
        if not self._networks:
            return
        networks = dict(self._networks)
        try:
            known = await self._state.networks()
            if fetching:
                due = [name for name, network in networks.items() if self._due(known.get(name), network)]
                if due:
                    await self._fetch_all({name: networks[name] for name in due})
                    known = await self._state.networks()
        except StateError as error:
            structlog.get_logger("relayd.intake").warning("networks not looked at", error=str(error))
            return
        for name, network in networks.items():
            if self._networks.get(name) is not network:
                continue  # reloaded meanwhile
            found = allowed(self._same_url(known.get(name), network), network, self._clock())
            if self._told.get(name) != found:
                self._told[name] = found
                self._allow(name, found)

    @staticmethod
    def _same_url(known: FetchedList | None, network: FetchedNetwork) -> FetchedList | None:
        # another URL is another list: what the old one said lets nobody in
        return known if known is not None and known.url == network.url else None

    def _due(self, known: FetchedList | None, network: FetchedNetwork) -> bool:
        known = self._same_url(known, network)
        now = self._clock()
        # further ahead than any refresh: it was shortened, or the clock stepped back
        return known is None or now >= known.next_try or known.next_try > now + network.refresh * 1100

    async def _fetch_all(self, networks: Mapping[str, FetchedNetwork]) -> None:
        # side by side: a URL that hangs must not hold up the others
        results = await asyncio.gather(
            *(self._fetch_leased(name, network) for name, network in networks.items()), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _fetch_leased(self, name: str, network: FetchedNetwork) -> None:
        lease = f"network {name}"
        if not await self._state.claim(lease, self._owner, self._clock(), _LEASE):
            return
        try:
            known = (await self._state.networks()).get(name)
            if self._due(known, network):
                await self._state.keep_network(await self._fetch(name, network, self._same_url(known, network)))
        finally:
            await self._state.release(lease, self._owner)

    async def _fetch(self, name: str, network: FetchedNetwork, known: FetchedList | None) -> FetchedList:
        log = structlog.get_logger("relayd.intake").bind(network=name)
        old = known.addresses if known is not None else {}
        refresh = int(network.refresh * 1000)
        try:
            listed = parse_list(await fetch(network.url), network.path)
        except FetchError as error:
            failures = known.failures + 1 if known is not None else 1
            retry = min(_FIRST_RETRY * 2 ** min(failures - 1, 20), refresh)
            log.warning("network not fetched", problem=str(error), failures=failures)
            fetched_at = known.fetched_at if known is not None else None
            return FetchedList(name, network.url, fetched_at, self._clock() + _jitter(retry), failures, old)
        now = self._clock()
        addresses = merge(old, listed, now, int(network.keep_removed * 1000))
        if addresses.keys() != old.keys():
            log.info("network changed", listed=len(listed), kept=len(addresses) - len(set(listed)))
        return FetchedList(name, network.url, now, now + _jitter(refresh), 0, addresses)

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            await self.look()
            try:
                await asyncio.wait_for(self._wake.wait(), LOOK if self._networks else None)
            except TimeoutError:
                continue


def _jitter(span: Millis) -> Millis:
    """Up to a tenth less, so that many machines don't ask one server at the same moment."""
    return int(span * random.uniform(0.9, 1.0))  # noqa: S311 - no secret
