"""DKIM keys for tests: made once a run, as config entries, as loaded keys, and as the DNS that a verifier asks."""

from __future__ import annotations

import base64
import functools
import tempfile
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from relayd.config.models import DKIMKey

Kind = Literal["rsa", "ed25519"]


@functools.cache
def private_key(kind: Kind) -> RSAPrivateKey | Ed25519PrivateKey:
    """The run's one key of this kind."""
    return generate_private_key(65537, 2048) if kind == "rsa" else Ed25519PrivateKey.generate()


@functools.cache
def key_file(kind: Kind) -> Path:
    """Its PEM file, readable by the owner only."""
    pem = private_key(kind).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with tempfile.NamedTemporaryFile("wb", suffix=".pem", delete=False) as file:
        file.write(pem)
    return Path(file.name)


def config(domain: str, kind: Kind, selector: str | None = None) -> DKIMKey:
    """A `dkim` entry; the selector is the kind unless named."""
    return DKIMKey(domain=domain, selector=selector or kind, key=key_file(kind))


def txt_record(kind: Kind) -> bytes:
    """What DNS says under SELECTOR._domainkey.DOMAIN (RFC 6376 3.6.1, RFC 8463 4)."""
    public = private_key(kind).public_key()
    if kind == "rsa":
        octets = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    else:
        octets = public.public_bytes(Encoding.Raw, PublicFormat.Raw)
    return b"v=DKIM1; k=%s; p=%s" % (kind.encode(), base64.b64encode(octets))
