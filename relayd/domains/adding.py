"""Adding, rotating and removing sender domains in state.db. What is allowed and made is changes.py's.

Keys are made before the transaction: an RSA key takes longer than others should wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

from relayd.config.models import Config
from relayd.core.units import Millis
from relayd.domains import changes, dmarc
from relayd.domains.changes import DomainError, shown
from relayd.domains.keys import Vault
from relayd.domains.providers import PROVIDERS
from relayd.domains.service import provider_for
from relayd.spool.domains import DomainEvent, DomainStore, Editor, KeyState, SenderDomain


@dataclass(frozen=True, slots=True)
class Wish:
    """What an operator asks for."""

    name: str
    upstream: str = ""
    selectors: tuple[str, ...] = ()
    return_path: str = ""
    delegate: bool = False
    underscore_cname: bool = True


def planned(wish: Wish, config: Config, now: Millis) -> SenderDomain:
    """The domain as it would be added. Raises DomainError."""
    name = changes.owned(wish.name)
    if wish.upstream and wish.upstream not in config.upstreams and wish.upstream not in PROVIDERS:
        raise DomainError(
            f"there is no upstream {wish.upstream}: known are {', '.join(config.upstreams)}, "
            f"and the providers {', '.join(PROVIDERS)}"
        )
    zone = config.domains.zone or ""
    if wish.delegate and not zone:
        raise DomainError("--delegate needs a zone of our own: set domains.zone in the configuration")
    if not wish.underscore_cname and not wish.delegate:
        raise DomainError("--no-underscore-cname goes with --delegate: without it there are no CNAMEs")
    back = changes.normal(wish.return_path) if wish.return_path else ""
    if back == name:
        raise DomainError("the return path must be another domain, such as bounce." + shown(name))
    if back and dmarc.organisational(back) != dmarc.organisational(name):
        raise DomainError(
            f"the return path {shown(back)} is not below {shown(dmarc.organisational(name))}: no alignment"
        )
    return SenderDomain(
        name,
        upstream=wish.upstream,
        provider=provider_for(config, wish.upstream) if wish.upstream else "",
        return_path=back,
        delegate=wish.delegate,
        zone=zone if wish.delegate else "",
        underscore_cname=wish.underscore_cname,
        added_at=now,
        next_check=now,
    )


async def add(
    wish: Wish, config: Config, store: DomainStore, vault: Vault, clock: Callable[[], Millis]
) -> SenderDomain:
    """Add a domain and make its keys. Raises DomainError, StateError."""
    domain = planned(wish, config, clock())
    changes.selectors_for(domain, wish.selectors)
    made = await asyncio.to_thread(changes.first_keys, domain, wish.selectors, vault, clock())

    def work(editor: Editor) -> None:
        if editor.domain(domain.name) is not None:
            raise DomainError(
                f"{shown(domain.name)} is there already: relayd domain show {shown(domain.name)}, or remove it first"
            )
        editor.put_domain(domain)
        for key in made:
            editor.put_key(key)
        editor.tell(DomainEvent(domain.name, clock(), "domain.added", {"upstream": domain.upstream}))

    await store.change(work)
    return domain


async def rotate(name: str, store: DomainStore, vault: Vault, clock: Callable[[], Millis]) -> SenderDomain:
    """Make the next keys of a domain, to be seen before they sign. Raises DomainError, StateError."""
    everything = await store.everything()
    domain = changes.find(everything, name)
    there = [key for key in everything.keys if key.domain == domain.name]
    made = await asyncio.to_thread(changes.next_keys, domain, there, vault, clock())

    def work(editor: Editor) -> SenderDomain:
        current = editor.domain(domain.name)
        if current is None or editor.keys(domain.name) != there:
            raise DomainError(f"the keys of {shown(domain.name)} were changed at this very moment: try again")
        for key in made:
            editor.put_key(key)
        current = replace(current, next_check=clock(), unsettled=0)
        editor.put_domain(current)
        selectors = [key.selector for key in made if key.state is KeyState.NEXT]
        editor.tell(DomainEvent(domain.name, clock(), "key.made", {"selectors": selectors}))
        return current

    return await store.change(work)


async def reissue(name: str, store: DomainStore, clock: Callable[[], Millis]) -> str:
    """Turn the delegating CNAMEs into TXT records; the domain. Raises DomainError, StateError."""

    def work(editor: Editor) -> str:
        domain = changes.without_underscore_cname(changes.find(editor.everything(), name))
        editor.put_domain(domain)
        editor.tell(DomainEvent(domain.name, clock(), "domain.reissued", {"text": "TXT records instead of CNAMEs"}))
        return domain.name

    return await store.change(work)


async def remove(name: str, store: DomainStore, clock: Callable[[], Millis]) -> None:
    """Forget a domain and its keys. Raises DomainError, StateError."""

    def work(editor: Editor) -> None:
        domain = changes.find(editor.everything(), name)
        accounts = [a.id for a in editor.everything().accounts if a.address.rpartition("@")[2] == domain.name]
        if accounts:
            raise DomainError(f"sender accounts are on {shown(domain.name)}: remove {', '.join(accounts)} first")
        now = clock()
        editor.remove_domain(domain.name, now)
        editor.tell(DomainEvent(domain.name, now, "domain.removed"))

    await store.change(work)
