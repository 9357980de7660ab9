"""OAuth2 tokens of upstream accounts in state.db, shared by all workers, encrypted with a key derived from `secret`.

How tokens are got is delivery/oauth/'s.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import orjson

from relayd.core.units import Millis
from relayd.spool.state import StateDB
from relayd.spool.vault import LockedError, Safe

_PURPOSE = b"relayd oauth tokens v1"


@dataclass(frozen=True, slots=True)
class StoredToken:
    """What is kept of one account's login."""

    access: str = field(default="", repr=False)
    until: Millis = 0
    """When the access token ends."""
    refresh: str = field(default="", repr=False)
    refresh_until: Millis | None = None
    """When the refresh token ends, where the provider says so."""
    origin: str = ""
    """What the token was got with, as a digest: a changed configuration makes it worthless."""
    stored_at: Millis = 0
    logged_in: bool = False
    """The refresh token is from `relayd upstream login`."""


class TokenStore:
    """The part of state.db that is about tokens. Its verbs raise StateError, LockedError."""

    def __init__(self, state: StateDB, secret: bytes) -> None:
        self._state = state
        self._safe = Safe(secret, _PURPOSE, "token")

    async def get(self, upstream: str, account: str) -> StoredToken | None:
        """What is kept of this account; None: nothing."""
        row = await self._state.read(
            lambda db: db.execute(
                "SELECT facts FROM oauth_token WHERE upstream = ? AND account = ?", (upstream, account)
            ).fetchone()
        )
        if row is None:
            return None
        name = _name(upstream, account)
        try:
            return StoredToken(**orjson.loads(self._safe.open(row[0], name)))
        except (orjson.JSONDecodeError, TypeError):
            raise LockedError(f"the token {name} is damaged") from None

    async def put(self, upstream: str, account: str, token: StoredToken) -> None:
        """Keep it, durably: a rotated refresh token is good only once."""
        locked = self._safe.lock(orjson.dumps(asdict(token)), _name(upstream, account))
        await self._state.write(
            lambda db: db.execute("REPLACE INTO oauth_token VALUES (?, ?, ?)", (upstream, account, locked))
        )

    async def claim(self, upstream: str, account: str, owner: str, now: Millis, ttl: Millis) -> bool:
        """The right to fetch a token: one worker at a time has it."""
        return await self._state.claim(f"oauth {_name(upstream, account)}", owner, now, ttl)

    async def release(self, upstream: str, account: str, owner: str) -> None:
        """Give the right up."""
        await self._state.release(f"oauth {_name(upstream, account)}", owner)


def _name(upstream: str, account: str) -> str:
    return f"{upstream}/{account}"
