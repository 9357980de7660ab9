"""Keys and certificates of tracking hosts as octets: made, checked, locked, and opened for TLS.

Where they are kept is spool/certificates.py's, who shows them web/'s.
"""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import Callable, Iterator
from datetime import datetime

import structlog
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
from relayd.spool.certificates import Certificate
from relayd.spool.domains import Everything
from relayd.spool.vault import LockedError, Safe

_PURPOSE = b"relayd tracking certificates v1"
_MOST_CONTEXTS = 2000


class CertificateSafe(Safe):
    """Locks and opens keys of certificates and of accounts at CAs (spool/vault.py)."""

    def __init__(self, secret: bytes) -> None:
        super().__init__(secret, _PURPOSE, "certificate key")


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


class Contexts:
    """The TLS contexts of tracking hosts, made when a client first asks for one by name."""

    def __init__(self, make: Callable[[str, str], ssl.SSLContext], everything: Callable[[], Everything]) -> None:
        """`make` gives a context for the files of a chain and its key. `everything`: what the worker knows now."""
        self._make = make
        self._everything = everything
        self._safe: CertificateSafe | None = None
        self._seen: Everything | None = None
        self._known: dict[str, Certificate] = {}
        self._lost: tuple[Everything | None, list[str]] = (None, [])
        self._made: dict[str, tuple[bytes, ssl.SSLContext | None]] = {}
        self._log = structlog.get_logger("relayd.domains")

    def use(self, secret: bytes) -> None:
        """Know the secret."""
        self._safe = CertificateSafe(secret)

    def of(self, host: str) -> ssl.SSLContext | None:
        """The context of a host; None where there is no certificate that can be used."""
        everything = self._everything()
        if everything is not self._seen:
            self._seen = everything
            self._known = {each.host: each for each in everything.certificates if each.chain}
            self._made = {name: made for name, made in self._made.items() if name in self._known}
        certificate = self._known.get(host)
        if certificate is None:
            return None
        made = self._made.get(host)
        if made is None or made[0] != certificate.private:
            if len(self._made) >= _MOST_CONTEXTS:
                self._made.pop(next(iter(self._made)))
            made = self._made[host] = (certificate.private, self._open(certificate))
        return made[1]

    def unusable(self) -> list[str]:
        """Hosts whose key cannot be opened: `secret` was changed, or state.db was damaged."""
        everything = self._everything()
        if self._lost[0] is not everything:
            lost = [each.host for each in everything.certificates if each.chain and not self._opens(each)]
            self._lost = (everything, lost)
        return self._lost[1]

    def _opens(self, certificate: Certificate) -> bool:
        if self._safe is None:
            return True  # not known yet
        try:
            self._safe.open(certificate.private, certificate.host)
        except LockedError:
            return False
        return True

    def _open(self, certificate: Certificate) -> ssl.SSLContext | None:
        if self._safe is None:
            return None
        try:
            key = self._safe.open(certificate.private, certificate.host)
            with _unnamed(key) as key_path, _unnamed(certificate.chain.encode()) as chain_path:
                return self._make(chain_path, key_path)
        except (LockedError, OSError, ssl.SSLError) as error:
            self._log.error("certificate cannot be used", host=certificate.host, error=str(error))
            return None


@contextlib.contextmanager
def _unnamed(content: bytes) -> Iterator[str]:
    """The path of a file that is in memory only: OpenSSL takes keys by path, and this one must not touch the disk."""
    descriptor = os.memfd_create("relayd-certificate")
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
