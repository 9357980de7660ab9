"""The named source allowlists: which network lets a client in. Fetched ones are kept current by fetches.py.

Lookups cost one set access for each prefix length in use, however long the lists are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from ipaddress import ip_network

from relayd.config.models import Config, FetchedNetwork
from relayd.core.units import Millis
from relayd.intake.cidr import CidrSet, Network, Peer, unmap
from relayd.intake.fetches import Fetches
from relayd.spool.state import StateDB


class NetworkBook:
    """All networks of the configuration, fetched ones included."""

    def __init__(self, config: Config, state: StateDB, clock: Callable[[], Millis]) -> None:
        self._config = config
        self._named: dict[str, CidrSet] = {}
        self._lists: dict[tuple[str, ...], tuple[tuple[str, CidrSet], ...]] = {}
        self._fetches = Fetches(config, state, clock, self._allow)
        self._name(config, {})

    def apply(self, config: Config) -> None:
        """Take over changed networks. A fetched one whose URL changed lets in its fallback until it is fetched."""
        old, self._config = self._config.networks, config
        unchanged = {
            name: self._named[name]
            for name, network in config.networks.items()
            if isinstance(network, FetchedNetwork)
            and isinstance(before := old.get(name), FetchedNetwork)
            and before.url == network.url
        }
        self._name(config, unchanged)
        self._fetches.apply(config)

    def _name(self, config: Config, unchanged: dict[str, CidrSet]) -> None:
        self._named = {
            name: unchanged.get(name) or CidrSet(network.fallback if isinstance(network, FetchedNetwork) else network)
            for name, network in config.networks.items()
        }
        self._lists = {}

    def _allow(self, name: str, networks: Iterable[Network]) -> None:
        self._named[name] = CidrSet(networks)
        self._lists = {}

    async def start(self) -> None:
        """Know what was fetched before, and keep it current. Waits for no URL."""
        await self._fetches.start()

    async def stop(self) -> None:
        """Fetch no more; lookups go on with what is known."""
        await self._fetches.stop()

    async def refresh(self) -> None:
        """Fetch what is due now, and take up what other workers fetched."""
        await self._fetches.look()

    def lookup(self, peer: Peer, names: Sequence[str]) -> str | None:
        """The first of `names` (networks by name, or CIDRs) that holds the peer; None when none does."""
        key = tuple(names)
        compiled = self._lists.get(key)
        if compiled is None:
            compiled = self._lists[key] = tuple((name, self._set(name)) for name in key)
        peer = unmap(peer)
        for name, networks in compiled:
            if peer in networks:
                return name
        return None

    def _set(self, name: str) -> CidrSet:
        known = self._named.get(name)
        if known is not None:
            return known
        try:
            return CidrSet([ip_network(name, strict=False)])
        except ValueError:
            return CidrSet(())  # a name that the check of the configuration complains about: lets nobody in
