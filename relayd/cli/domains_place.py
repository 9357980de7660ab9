"""What the commands about domains share: state.db opened as its owner, and the words for what cannot be done."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import typer

from relayd.cli.common import FAULT, CommandError, config_path, now_ms, read_config
from relayd.cli.offline import become_owner
from relayd.cli.out import warn
from relayd.cli.place import without_secrets
from relayd.config.models import Config
from relayd.config.secret import resolve_secret
from relayd.control import ControlError, NotRunningError, ask
from relayd.domains.changes import DomainError, find
from relayd.domains.keys import Vault
from relayd.domains.lifecycle import GoneError
from relayd.domains.records import Finding
from relayd.domains.service import Checker, standing_of
from relayd.spool.certificates import ChallengeStore
from relayd.spool.domains import DomainKey, DomainStore, SenderDomain
from relayd.spool.state import StateDB, StateError

T = TypeVar("T")
_WORKERS_WITHIN = 15.0
"""Seconds that each worker has to take a change over."""


class Site:
    """A configuration and its domains, for the length of one command."""

    def __init__(self, config: Config, state: StateDB, store: DomainStore, vault: Vault | None) -> None:
        self.config = config
        self.store = store
        self.challenges = ChallengeStore(state)
        self._vault = vault

    @property
    def vault(self) -> Vault:
        """Opens and locks keys; only for commands that asked for the secret."""
        if self._vault is None:
            raise CommandError("the secret is needed for this")
        return self._vault

    @property
    def checker(self) -> Checker:
        """Looks at DNS and writes what it means."""
        return Checker(self.store, self.config, now_ms)


def run(context: typer.Context, given: Path | None, work: Callable[[Site], Awaitable[T]], *, secret: bool = False) -> T:
    """Do `work` on state.db, beside a running daemon or without one. `secret`: keys are made or opened.

    Raises CommandError, ConfigError.
    """
    path = config_path(context, given)
    config = read_config(context, given) if secret else without_secrets(path)
    data_dir = config.data_dir
    if not data_dir.is_dir():
        # the daemon would make it the same way, as the same user where we are not root
        data_dir.mkdir(mode=0o700, parents=True)
    become_owner(data_dir)
    vault = Vault(resolve_secret(config)) if secret else None
    state = StateDB(data_dir / "state.db")
    store = DomainStore(state)
    try:
        return asyncio.run(_run(state, Site(config, state, store, vault), work))
    finally:
        if store.changed:
            tell_workers(data_dir)


def tell_workers(data_dir: Path) -> None:
    """Wait until every worker of a running daemon knows what was changed: what a command says holds when it returns."""
    try:
        answers = ask(data_dir, "domains.refresh", timeout=_WORKERS_WITHIN)
    except NotRunningError:
        return
    except ControlError as error:
        warn(f"the running daemon was not told, and follows within a second: {error}")
        return
    # one that is gone reads everything when it is started again
    for answer in answers:
        if answer.error is not None:
            warn(f"worker {answer.slot} was not told, and follows within a second or says why not: {answer.error}")


async def _run(state: StateDB, site: Site, work: Callable[[Site], Awaitable[T]]) -> T:
    try:
        await state.open()
        try:
            return await work(site)
        finally:
            await state.close()
    except DomainError as error:
        raise CommandError(str(error), code=FAULT) from None
    except StateError as error:
        raise CommandError(str(error)) from None
    except GoneError as error:
        raise CommandError(f"{error} was removed meanwhile") from None


async def standing(site: Site, name: str) -> tuple[SenderDomain, list[DomainKey], list[Finding]]:
    """A domain, its keys, and its records as last checked. Raises DomainError, StateError."""
    everything = await site.store.everything()
    domain = find(everything, name)
    keys = [key for key in everything.keys if key.domain == domain.name]
    return domain, keys, standing_of(site.config, domain, keys)
