"""Certificates of tracking hosts opened for TLS, when a client first asks for one, and the lock on their keys.

Where they are kept is spool/certificates.py's, how they are made keypair.py's, who shows them web/'s.
"""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import Callable, Iterator

import structlog

from relayd.spool.certificates import Certificate
from relayd.spool.domains import Everything
from relayd.spool.vault import LockedError, Safe

_PURPOSE = b"relayd tracking certificates v1"
_MOST_CONTEXTS = 2000


class CertificateSafe(Safe):
    """Locks and opens keys of certificates and of accounts at CAs (spool/vault.py)."""

    def __init__(self, secret: bytes) -> None:
        super().__init__(secret, _PURPOSE, "certificate key")


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
