"""DKIM keys that we make: their names and algorithms, and the lock on them, derived from `secret`.

Making and opening them is keymaking.py's, where they are kept spool/domains.py's, how they sign delivery/dkim.py's.
"""

from __future__ import annotations

from relayd.spool.vault import LockedError, Safe

ALGORITHMS = ("rsa", "ed25519")
_PURPOSE = b"relayd dkim keys v1"

KeyLockedError = LockedError
"""A kept key cannot be opened: another `secret` than the one it was locked with, or damage."""


class Vault(Safe):
    """Locks and opens private keys (spool/vault.py)."""

    def __init__(self, secret: bytes) -> None:
        super().__init__(secret, _PURPOSE, "key")


def name_of(domain: str, selector: str) -> str:
    """Where the public key stands in DNS."""
    return f"{selector}._domainkey.{domain}"
