"""What a worker knows of all domains: who may send, which keys sign, which addresses accounts have, where bounces come
back, where links lead.

Kept current by looking at state.db once a second; commands and other workers write there. Checking is duty.py's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from relayd.config.models import Config
from relayd.core.address import domain_of
from relayd.core.units import Millis
from relayd.domains.keys import KeyLockedError, Vault
from relayd.domains.records import nearest
from relayd.spool.domains import DomainKey, DomainState, DomainStore, Everything, KeyState, SenderDomain

if TYPE_CHECKING:
    from relayd.domains.keymaking import PrivateKey

_ALWAYS: Millis = 1 << 63
_ALARMS = {"domain.degraded", "domain.stopped", "tracking.expired", "tracking.degraded", "certificate.failed"}


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key whose record was seen in DNS: it may sign."""

    domain: str
    selector: str
    private: PrivateKey


class DomainBook:
    """The domains as one worker knows them. Implements intake's Vouching."""

    def __init__(self, store: DomainStore, config: Config, *, changed: Callable[[DomainBook], None]) -> None:
        """`changed` is called on the loop after every change, the first reading included."""
        self.everything = Everything(generation=-1)
        self.keys: tuple[StoredKey, ...] = ()
        """Those that sign now."""
        self._store = store
        self._changed = changed
        self._vault: Vault | None = None
        self._opened: dict[tuple[str, str, bytes], PrivateKey] = {}
        self._states: dict[str, DomainState] = {}
        self._accounts: dict[str, str] = {}
        self._returns: dict[str, str] = {}
        """Sender domain → domain of its return paths, where its records were seen."""
        self._taken: dict[str, Millis] = {}
        """Domain of return paths → until when they are taken back."""
        self._required = False
        self._default_host = ""
        self._config = config
        self._reading = asyncio.Lock()
        self._log = structlog.get_logger("relayd.domains")

    async def start(self, secret: bytes) -> None:
        """Read for the first time. Raises StateError."""
        self._vault = Vault(secret)
        await self.poll()

    def apply(self, config: Config) -> None:
        """Take over a changed configuration."""
        self._config = config
        self._index()

    async def poll(self) -> None:
        """Read again where something has changed, and log what happened. Raises StateError.

        What was written before the call is known when it returns.
        """
        async with self._reading:
            await self._poll()

    async def _poll(self) -> None:
        if await self._store.generation() == self.everything.generation:
            return
        everything = await self._store.everything()
        self.keys = await asyncio.to_thread(self._open, everything)
        self.everything = everything
        self._index()
        self._changed(self)
        for event in await self._store.untold():
            tell = self._log.warning if event.kind in _ALARMS else self._log.info
            tell(event.kind, domain=event.domain, **{f"about_{k}": v for k, v in event.detail.items()})

    def _index(self) -> None:
        everything, config = self.everything, self._config
        self._states = {domain.name: domain.state for domain in everything.domains}
        self._accounts = {account.id: account.address.lower() for account in everything.accounts}
        self._returns = {domain.name: domain.return_path for domain in everything.domains if returns(domain)}
        verify_for = round(config.bounces.verify_for * 1000)
        self._taken = {name: removed_at + verify_for for name, removed_at in everything.former_return_paths}
        self._taken |= {domain.return_path: _ALWAYS for domain in everything.domains if domain.return_path}
        wanted = config.require_verified_domain
        self._required = bool(self._states) if wanted is None else wanted
        self._default_host = config.tracking.host or ""

    def _open(self, everything: Everything) -> tuple[StoredKey, ...]:
        """The keys that sign. In a thread: it takes milliseconds a key, and what it loads tens of them."""
        if not everything.keys and not everything.certificates:
            self._opened = {}
            return ()
        from relayd.domains.keymaking import opened  # noqa: PLC0415 - 7 MiB, for workers that have keys

        states = {domain.name: domain.state for domain in everything.domains}
        found = []
        cache: dict[tuple[str, str, bytes], PrivateKey] = {}
        for key in everything.keys:
            if not signs(key, states.get(key.domain)):
                continue
            name = (key.domain, key.selector, key.private)
            try:
                cache[name] = self._opened.get(name) or opened(key, self._required_vault())
            except KeyLockedError as error:
                self._log.error("key cannot be used", domain=key.domain, selector=key.selector, error=str(error))
                continue
            found.append(StoredKey(key.domain, key.selector, cache[name]))
        self._opened = cache
        return tuple(found)

    def _required_vault(self) -> Vault:
        if self._vault is None:
            raise KeyLockedError("the secret is not known yet")
        return self._vault

    # -- what others ask

    def unvouched(self, from_domain: str) -> bool:
        """Mail From this domain (A-labels, lower case; "" for none) is to be refused."""
        if not self._required:
            return False
        state = self._states.get(nearest(from_domain, self._states.get))
        return state is None or not state.vouched

    def may_use(self, sender: str, accounts: Sequence[str]) -> bool:
        """This envelope sender is the address of one of the accounts."""
        if not sender:
            return False
        local = sender.rpartition("@")[0].lower()
        wanted = f"{local}@{domain_of(sender)}"
        return any(self._accounts.get(account) == wanted for account in accounts)

    def return_domain(self, from_domain: str) -> str | None:
        """The domain at which return paths for mail From this domain are issued; None where it has none of its own."""
        if not self._returns:
            return None
        return self._returns.get(nearest(from_domain, self._states.get))

    def takes_returns(self, domain: str, now: Millis) -> bool:
        """Return paths at this domain (lower case) are, or may have been, issued."""
        return now < self._taken.get(domain, 0)

    def certificates(self) -> Mapping[str, Millis]:
        """Tracking host → end of its certificate. A shared host of former times is left out: nobody renews it."""
        hosts = {self._default_host, *(each.name for each in self.everything.tracking)}
        known = self.everything.certificates
        return {each.host: each.not_after for each in known if each.not_after is not None and each.host in hosts}

    def states(self) -> Mapping[str, str]:
        """Domain → state."""
        return {name: state.value for name, state in self._states.items()}


def returns(domain: SenderDomain) -> bool:
    """Mail of this domain leaves with its custom return path: the records of it have been seen."""
    return bool(domain.return_path) and domain.return_path_seen_at is not None and domain.state != DomainState.STOPPED


def signs(key: DomainKey, state: DomainState | None) -> bool:
    """This key signs: it is in use, and its record has been seen."""
    return (
        key.state is KeyState.ACTIVE and key.seen_at is not None and state is not None and state != DomainState.STOPPED
    )
