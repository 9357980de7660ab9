"""Private keys in OpenSSL: read from files, and ways to sign with them. Loaded where there are keys, and only there.

What is signed is dkim.py's and oauth/grants.py's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key

MIN_RSA_BITS = 1024

PrivateKey = RSAPrivateKey | Ed25519PrivateKey
Sign = Callable[[bytes], bytes]


class KeyFileError(Exception):
    """A key that cannot be used; the text says why."""


def dkim_private(path: Path) -> PrivateKey:
    """A key for DKIM. Raises KeyFileError, which names the file."""
    try:
        private = load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror or 'cannot be read'}") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyFileError(f"{path}: not an unencrypted private key in PEM form") from error
    if isinstance(private, RSAPrivateKey) and private.key_size < MIN_RSA_BITS:
        raise KeyFileError(f"{path}: an RSA key of {private.key_size} bits; {MIN_RSA_BITS} are the least (RFC 8301)")
    if not isinstance(private, RSAPrivateKey | Ed25519PrivateKey):
        raise KeyFileError(f"{path}: DKIM knows RSA and Ed25519 keys only")
    return private


def dkim_way(private: PrivateKey) -> tuple[str, Sign]:
    """DKIM's name for the algorithm, and how to sign by it."""
    if isinstance(private, Ed25519PrivateKey):
        # RFC 8463 3: Ed25519 signs the hash, not the octets themselves
        return "ed25519-sha256", lambda data: private.sign(hashlib.sha256(data).digest())
    return "rsa-sha256", _rsa_sha256(private)


def rs256(pem: bytes) -> Sign:
    """How to sign a JWT with an RSA key (RFC 7518 3.3). Raises KeyFileError."""
    try:
        private = load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyFileError("not an unencrypted private key in PEM form") from error
    if not isinstance(private, RSAPrivateKey):
        raise KeyFileError("not an RSA key")
    return _rsa_sha256(private)


def _rsa_sha256(private: RSAPrivateKey) -> Sign:
    padding, digest = PKCS1v15(), SHA256()
    return lambda data: private.sign(data, padding, digest)
