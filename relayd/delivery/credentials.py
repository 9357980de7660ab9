"""One worker's watch over logins by token: renewed ahead of time, and how long each still lives told to whoever asks.

Tokens themselves are oauth/keeper.py's.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable

import structlog

from relayd.config.models import Config, OAuth, SMTPUpstream
from relayd.core.units import Millis, format_duration
from relayd.delivery.oauth.exchange import Exchange
from relayd.delivery.oauth.grants import Grant
from relayd.delivery.oauth.keeper import TokenKeeper
from relayd.delivery.plan import grants_of, logins_of
from relayd.spool.state import StateDB
from relayd.spool.tokens import StoredToken, TokenStore

WARN_AHEAD: Millis = 14 * 86_400_000
"""A secret that a person has to renew is warned of so long ahead."""
_AGAIN: Millis = 86_400_000

Tell = Callable[[str, str, float], None]
"""Takes upstream, account ("" for the only one) and the seconds that its login still lives."""


def expiry(oauth: OAuth, kept: StoredToken | None) -> Millis | None:
    """When the login ends unless somebody acts: of secret and refresh token the first; else the access token's end."""
    ends: list[Millis] = []
    if oauth.client_secret_expires is not None:
        end = datetime.datetime.combine(oauth.client_secret_expires, datetime.time.min, datetime.UTC)
        ends.append(round(end.timestamp() * 1000))
    if kept is not None and kept.refresh_until is not None and oauth.flow == "refresh-token":
        ends.append(kept.refresh_until)
    if ends:
        return min(ends)
    return None if kept is None else kept.until


class CredentialWatch:
    """`owner` names this process among the workers; `tell` is called for each login at every tick."""

    def __init__(self, state: StateDB, config: Config, owner: str, tell: Tell, clock: Callable[[], Millis]) -> None:
        self._state = state
        self._owner = owner
        self._tell = tell
        self._clock = clock
        self._config = config
        self._exchange = Exchange()
        self._warned: dict[tuple[str, str], Millis] = {}
        self._log = structlog.get_logger("relayd.oauth")
        self.keeper: TokenKeeper | None = None
        """Known once `use` has been called."""

    def use(self, secret: bytes) -> TokenKeeper:
        """Make the keeper, with the secret that locks what it keeps."""
        self.keeper = TokenKeeper(TokenStore(self._state, secret), self._exchange, self._owner, self._clock)
        return self.keeper

    def apply(self, config: Config) -> None:
        """Take over a changed configuration."""
        self._config = config
        if self.keeper is not None:
            self.keeper.forget(grants_of(config).values())

    async def tick(self) -> None:
        """Renew what ends soon, and say how long each login lives."""
        grants = grants_of(self._config)
        keeper = self.keeper
        if not grants or keeper is None:
            return
        await keeper.renew()
        logins = logins_of(self._config)
        for lane, grant in grants.items():
            upstream = logins[lane][1]
            if not isinstance(upstream, SMTPUpstream) or upstream.oauth is None:
                continue
            end = expiry(upstream.oauth, await keeper.standing(grant))
            if end is None:
                continue
            left = end - self._clock()
            self._tell(grant.upstream, grant.account, max(left, 0) / 1000)
            if left < WARN_AHEAD and upstream.oauth.client_secret_expires is not None:
                await self._warn(grant, left, "make a new client secret and set client_secret")
            elif left < WARN_AHEAD and end != (await keeper.standing(grant) or StoredToken()).until:
                await self._warn(grant, left, f"run {grant.command}")

    async def _warn(self, grant: Grant, left: Millis, what: str) -> None:
        """Once a day, by one of the workers."""
        key, now = (grant.upstream, grant.account), self._clock()
        if now - self._warned.get(key, -_AGAIN) < _AGAIN:
            return
        self._warned[key] = now
        if not await self._state.claim(f"warn {key[0]}/{key[1]}", self._owner, now, _AGAIN):
            return
        shown = format_duration(max(left, 0) // 3_600_000 * 3600)
        self._log.warning("login ends soon", upstream=key[0], account=key[1], left=shown, remedy=what)

    async def stop(self) -> None:
        """Let go of the connections to token servers."""
        await self._exchange.close()
