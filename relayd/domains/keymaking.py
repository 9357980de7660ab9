"""DKIM keys made, and opened again for signing, in OpenSSL: what a worker without kept keys need not load.

Their names, and the lock on them, are keys.py's.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
)

from relayd.core.units import Millis
from relayd.domains.keys import KeyLockedError, Vault, name_of
from relayd.spool.domains import DomainKey, KeyState

RSA_BITS = 2048
PrivateKey = rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


def make(domain: str, selector: str, algorithm: str, state: KeyState, *, now: Millis, vault: Vault) -> DomainKey:
    """A fresh key. RSA takes a good part of a second."""
    private: PrivateKey
    if algorithm == "rsa":
        private = rsa.generate_private_key(public_exponent=65537, key_size=RSA_BITS)
        public = private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    else:
        private = ed25519.Ed25519PrivateKey.generate()
        # RFC 8463 4: p= has the bare key, not the structure around it
        public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    plain = private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    locked = vault.lock(plain, name_of(domain, selector))
    return DomainKey(domain, selector, algorithm, state, public, locked, now)


def opened(key: DomainKey, vault: Vault) -> PrivateKey:
    """The private key, ready to sign. Raises KeyLockedError."""
    name = name_of(key.domain, key.selector)
    # it comes from our own lock, which proves that nobody changed it: no need to check its primes for 40 ms
    private = load_der_private_key(vault.open(key.private, name), None, unsafe_skip_rsa_key_validation=True)
    if not isinstance(private, rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey):
        raise KeyLockedError(f"the key {name} is of an unknown kind")
    return private
