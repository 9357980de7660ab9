"""Keys of certificates and of accounts at CAs, requests for certificates, and the look at what a CA has sent.

Locking and opening them is issued.py's.
"""

from __future__ import annotations

from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from relayd.core.units import Millis
from relayd.domains.certificates import CAError
from relayd.spool.vault import LockedError


def fresh_key() -> ec.EllipticCurvePrivateKey:
    """A key for a certificate or an account."""
    return ec.generate_private_key(ec.SECP256R1())


def written(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as PEM."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def read_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """What `written` wrote. Raises LockedError."""
    key = load_pem_private_key(pem, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise LockedError("a kept key is of an unknown kind")
    return key


def request_for(host: str, key: ec.EllipticCurvePrivateKey) -> bytes:
    """The certificate signing request of one host, as PEM."""
    names = x509.SubjectAlternativeName([x509.DNSName(host)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(names, critical=False)
    return builder.sign(key, SHA256()).public_bytes(Encoding.PEM)


def lives(chain: str, host: str, key: ec.EllipticCurvePrivateKey) -> tuple[Millis, Millis]:
    """From when to when a certificate holds that a CA has sent. Raises CAError unless it is for our key and host."""
    try:
        first = x509.load_pem_x509_certificates(chain.encode("ascii", "replace"))[0]
        names = first.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        ours = names.get_values_for_type(x509.DNSName)
    except (ValueError, x509.ExtensionNotFound) as error:
        raise CAError("what the CA sent is no certificate") from error
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if first.public_key().public_bytes(*form) != key.public_key().public_bytes(*form) or host not in ours:
        raise CAError("the CA sent a certificate for another key or name")
    return _millis(first.not_valid_before_utc), _millis(first.not_valid_after_utc)


def _millis(when: datetime) -> Millis:
    return round(when.timestamp() * 1000)
