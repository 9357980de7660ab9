"""Encryption at rest: what is kept in state.db and must not be read there is locked with a key derived from `secret`.

DKIM keys (domains/keys.py) and OAuth2 tokens (spool/tokens.py) use it; where they are kept is their own business.
"""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_NONCE = 12


class LockedError(Exception):
    """Something kept cannot be opened: another `secret` than the one it was locked with, or damage."""


class Safe:
    """Locks and opens octets of one purpose. Each is bound to its name: one cannot be put in another's place."""

    def __init__(self, secret: bytes, purpose: bytes, what: str) -> None:
        """`what` is the word for its content in messages, like "key"."""
        derived = HKDF(algorithm=SHA256(), length=32, salt=None, info=purpose).derive(secret)
        self._cipher = AESGCM(derived)
        self._what = what

    def lock(self, plain: bytes, name: str) -> bytes:
        """Encrypt (AES-256-GCM, random nonce in front)."""
        nonce = os.urandom(_NONCE)
        return nonce + self._cipher.encrypt(nonce, plain, name.encode())

    def open(self, locked: bytes, name: str) -> bytes:
        """Decrypt. Raises LockedError."""
        try:
            return self._cipher.decrypt(locked[:_NONCE], locked[_NONCE:], name.encode())
        except (InvalidTag, ValueError):
            raise LockedError(
                f"the {self._what} {name} cannot be opened: was `secret` changed? It must be the one that the"
                f" {self._what} was made with"
            ) from None
