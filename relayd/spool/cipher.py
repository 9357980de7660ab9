"""AES-256-GCM under a key derived from `secret` (HKDF, RFC 5869), in OpenSSL. What is locked with it is vault.py's."""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_NONCE = 12


class Cipher:
    """One derived key."""

    def __init__(self, secret: bytes, purpose: bytes) -> None:
        self._aead = AESGCM(HKDF(algorithm=SHA256(), length=32, salt=None, info=purpose).derive(secret))

    def lock(self, plain: bytes, name: bytes) -> bytes:
        """Encrypt, bound to a name; a random nonce goes in front."""
        nonce = os.urandom(_NONCE)
        return nonce + self._aead.encrypt(nonce, plain, name)

    def open(self, locked: bytes, name: bytes) -> bytes:
        """Decrypt. Raises ValueError where it was locked otherwise, or changed."""
        try:
            return self._aead.decrypt(locked[:_NONCE], locked[_NONCE:], name)
        except InvalidTag:
            raise ValueError("locked with another key, or damaged") from None
