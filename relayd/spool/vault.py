"""Encryption at rest: what is kept in state.db and must not be read there is locked with a key derived from `secret`.

DKIM keys (domains/keys.py) and OAuth2 tokens (spool/tokens.py) use it; where they are kept is their own business.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from relayd.spool.cipher import Cipher


class LockedError(Exception):
    """Something kept cannot be opened: another `secret` than the one it was locked with, or damage."""


class Safe:
    """Locks and opens octets of one purpose. Each is bound to its name: one cannot be put in another's place."""

    def __init__(self, secret: bytes, purpose: bytes, what: str) -> None:
        """`what` is the word for its content in messages, like "key"."""
        self._secret = secret
        self._purpose = purpose
        self._what = what

    @functools.cached_property
    def _cipher(self) -> Cipher:
        from relayd.spool.cipher import Cipher  # noqa: PLC0415 - 7 MiB that a worker without kept keys does without

        return Cipher(self._secret, self._purpose)

    def lock(self, plain: bytes, name: str) -> bytes:
        """Encrypt."""
        return self._cipher.lock(plain, name.encode())

    def open(self, locked: bytes, name: str) -> bytes:
        """Decrypt. Raises LockedError."""
        try:
            return self._cipher.open(locked, name.encode())
        except ValueError:
            raise LockedError(
                f"the {self._what} {name} cannot be opened: was `secret` changed? It must be the one that the"
                f" {self._what} was made with"
            ) from None
