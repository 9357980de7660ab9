"""The access tokens of one worker: fetched ahead of time, once for all workers, kept encrypted in state.db.

What to ask for is grants.py's; who logs in with a token is client.py's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import structlog

from relayd.core.units import Millis
from relayd.delivery.oauth.exchange import Exchange
from relayd.delivery.oauth.grants import Grant, Issued, TokenError, answer_of, form_of
from relayd.spool.state import StateError
from relayd.spool.tokens import StoredToken, TokenStore
from relayd.spool.vault import LockedError

_SPARE: Millis = 60_000
"""A token is not used in its last minute."""
_AHEAD: Millis = 600_000
"""A token in use is renewed so long ahead of its end; short-lived ones after three quarters of their life."""
_LEASE: Millis = 60_000
_PATIENCE = 45.0
"""Seconds to wait for another worker that is fetching the same token."""
_LOOK = 0.1


class TokenKeeper:
    """Hands out tokens. `owner` names this process among those that share the store."""

    def __init__(self, store: TokenStore, exchange: Exchange, owner: str, clock: Callable[[], Millis]) -> None:
        self._store = store
        self._exchange = exchange
        self._owner = owner
        self._clock = clock
        self._tokens: dict[tuple[str, str], StoredToken] = {}
        self._locks: dict[tuple[str, str], asyncio.Lock] = {}
        self._rejected: dict[tuple[str, str], str] = {}
        self._used: dict[tuple[str, str], Grant] = {}
        self._log = structlog.get_logger("relayd.oauth")

    async def token(self, grant: Grant) -> str:
        """An access token that is good for a while. Raises TokenError."""
        key = (grant.upstream, grant.account)
        self._used[key] = grant
        kept = self._tokens.get(key)
        if kept is not None and self._good(grant, kept, _SPARE):
            return kept.access
        return (await self._fetch(grant, spare=_SPARE)).access

    def rejected(self, grant: Grant, access: str) -> None:
        """The upstream did not take this token: the next one asked for is another."""
        key = (grant.upstream, grant.account)
        self._rejected[key] = access
        self._tokens.pop(key, None)

    async def renew(self) -> None:
        """Renew what is in use and ends soon. Troubles are logged; the old token stays until its end."""
        for key, grant in list(self._used.items()):
            kept = self._tokens.get(key)
            if kept is None or self._good(grant, kept, _ahead(kept)):
                continue
            try:
                await self._fetch(grant, spare=_ahead(kept))
            except TokenError as error:
                self._log.warning("token not renewed", upstream=key[0], account=key[1], reason=str(error))

    def forget(self, grants: Iterable[Grant]) -> None:
        """Keep up only these from now on."""
        wanted = {(grant.upstream, grant.account): grant for grant in grants}
        self._used = {key: wanted[key] for key in self._used if key in wanted}
        self._tokens = {key: token for key, token in self._tokens.items() if key in wanted}

    async def standing(self, grant: Grant) -> StoredToken | None:
        """What is kept of this login now, whoever fetched it. None also where it cannot be read."""
        try:
            kept = await self._store.get(grant.upstream, grant.account)
        except (StateError, LockedError):
            return None
        return kept if kept is not None and kept.origin == grant.origin else None

    def _good(self, grant: Grant, kept: StoredToken, spare: Millis) -> bool:
        key = (grant.upstream, grant.account)
        return (
            bool(kept.access)
            and kept.origin == grant.origin
            and kept.access != self._rejected.get(key)
            and self._clock() < kept.until - spare
        )

    async def _fetch(self, grant: Grant, *, spare: Millis) -> StoredToken:
        lock = self._locks.setdefault((grant.upstream, grant.account), asyncio.Lock())
        try:
            async with lock:
                return await self._shared(grant, spare)
        except (StateError, LockedError) as error:
            raise TokenError(f"the tokens of {grant.title} cannot be kept: {error}", refused=False) from error

    async def _shared(self, grant: Grant, spare: Millis) -> StoredToken:
        """From the store, or from the server by whichever worker holds the lease."""
        upstream, account = grant.upstream, grant.account
        patience = asyncio.get_running_loop().time() + _PATIENCE
        while True:
            kept = await self._store.get(upstream, account)
            if kept is not None and self._good(grant, kept, spare):
                self._tokens[upstream, account] = kept
                return kept
            if await self._store.claim(upstream, account, self._owner, self._clock(), _LEASE):
                break
            if asyncio.get_running_loop().time() > patience:
                raise TokenError(f"another worker has been asking for {grant.title} for long", refused=False)
            await asyncio.sleep(_LOOK)
        try:
            # whoever had the lease before us may have just finished
            kept = await self._store.get(upstream, account)
            if kept is None or not self._good(grant, kept, spare):
                kept = await self._ask(grant, kept)
            self._tokens[upstream, account] = kept
            return kept
        finally:
            await self._store.release(upstream, account, self._owner)

    async def _ask(self, grant: Grant, kept: StoredToken | None) -> StoredToken:
        before = kept if kept is not None and kept.origin == grant.origin else StoredToken()
        url, form = form_of(grant, before.refresh, self._clock() / 1000)
        issued = answer_of(grant, *await self._exchange.post(grant.title, url, form))
        token = stored(grant, issued, self._clock(), before)
        await self._store.put(grant.upstream, grant.account, token)
        self._rejected.pop((grant.upstream, grant.account), None)
        return token


def stored(grant: Grant, issued: Issued, now: Millis, before: StoredToken | None = None) -> StoredToken:
    """What is kept of an answer: a rotated refresh token replaces the old one, otherwise that stays."""
    before = before or StoredToken()
    token = replace(
        before, access=issued.access, until=now + round(issued.life * 1000), origin=grant.origin, stored_at=now
    )
    if issued.refresh:
        life = issued.refresh_life
        until = None if life is None else now + round(life * 1000)
        token = replace(token, refresh=issued.refresh, refresh_until=until)
    return token


def _ahead(kept: StoredToken) -> Millis:
    return min(_AHEAD, max((kept.until - kept.stored_at) // 4, 0))


@dataclass(frozen=True, slots=True)
class Bearer:
    """One account's tokens, as the client asks for them."""

    grant: Grant
    keeper: TokenKeeper
    mechanism: str | None = None
    """XOAUTH2 or OAUTHBEARER; None: what is offered."""

    async def token(self) -> str:
        """An access token. Raises TokenError."""
        return await self.keeper.token(self.grant)

    def rejected(self, access: str) -> None:
        """The upstream did not take it."""
        self.keeper.rejected(self.grant, access)
