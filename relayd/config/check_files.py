"""Looks at the files that the configuration names: there, readable, private, and what they should be.

Keys among each other are judged by check.py.
"""

from __future__ import annotations

import datetime
import stat
from collections.abc import Iterator
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from relayd.config.fault import Fault, Loc, Positions, Severity, printable
from relayd.config.models import Config, SMTPUpstream, draft_of
from relayd.config.sources import reason

_WARNING = Severity.WARNING
_LARGEST = 1024**2
_PRIVATE = "Run chmod 600 on it, and take a new one if others may have read it"


def check_files(config: Config, positions: Positions) -> Iterator[Fault]:
    """Faults of key, certificate and CA files, and of files that !file brings secrets from."""
    files = _Files(positions)
    yield from files.secrets(config)
    yield from files.listener_certificate(config)
    for name, upstream in config.upstreams.items():
        if isinstance(upstream, SMTPUpstream) and upstream.ca_file is not None:
            yield from files.certificates(("upstreams", name, "ca_file"), upstream.ca_file)
    for index, mailbox in enumerate(config.bounces.mailboxes):
        if mailbox.ca_file is not None and positions.sound(("bounces", "mailboxes")):
            yield from files.certificates(("bounces", "mailboxes", index, "ca_file"), mailbox.ca_file)
    acme = config.tracking.acme
    if acme is not None and acme.ca_file is not None and positions.sound(("tracking",)):
        yield from files.certificates(("tracking", "acme", "ca_file"), acme.ca_file)
    for loc, key in positions.items("dkim", config.dkim):
        yield from files.dkim_key((*loc, "key"), key.key)


class _Files:
    def __init__(self, positions: Positions) -> None:
        self._at = positions

    def secrets(self, config: Config) -> Iterator[Fault]:
        """Files that others can read are no place for a secret."""
        locs: list[Loc] = [("secret",)]
        locs += [("upstreams", name, "password") for name in config.upstreams]
        locs += [(*loc, "password") for loc, _ in self._at.items("credentials", config.credentials)]
        locs += [("bounces", "mailboxes", index, "password") for index in range(len(config.bounces.mailboxes))]
        for loc in locs:
            source = self._at.source(loc)
            if source is not None and source.path is not None:
                yield from self._private(loc, source.path)
        made = config.data_dir / "secret"
        if config.secret is None and self._at.sound(("secret",)):
            yield from self._private(("secret",), made)

    def _private(self, loc: Loc, path: Path) -> Iterator[Fault]:
        try:
            mode = path.stat().st_mode
        except OSError:
            return  # whoever reads it says so
        if mode & (stat.S_IROTH | stat.S_IWOTH):
            what = "read" if mode & stat.S_IROTH else "written"
            yield self._at.fault(loc, f"{_name(path)} can be {what} by every user of this machine", _PRIVATE)

    def _read(self, loc: Loc, path: Path) -> bytes | Fault:
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                return self._at.fault(loc, f"{_name(path)} is not a plain file", "Name a PEM file")
            with path.open("rb") as file:
                return file.read(_LARGEST)
        except FileNotFoundError:
            return self._at.fault(loc, f"{_name(path)} is not there", "Create it, or correct the path")
        except PermissionError:
            remedy = "Give it to the user that relayd runs as (chown), with mode 0600"
            return self._at.fault(loc, f"{_name(path)} may not be read by this user", remedy)
        except (OSError, ValueError) as error:
            why = reason(error) if isinstance(error, OSError) else "its name has a NUL"
            return self._at.fault(loc, f"{_name(path)} cannot be read: {why}", "Check the path")

    def _key(self, loc: Loc, path: Path, remedy: str) -> PrivateKeyTypes | Fault:
        raw = self._read(loc, path)
        if isinstance(raw, Fault):
            return raw
        try:
            # checking that RSA numbers fit each other takes 40 ms a key
            return load_pem_private_key(raw, None, unsafe_skip_rsa_key_validation=True)
        except TypeError:
            return self._at.fault(
                loc, f"{_name(path)} is encrypted with a pass phrase", "Store it without one (openssl pkey)"
            )
        except (ValueError, UnsupportedAlgorithm):
            return self._at.fault(loc, f"{_name(path)} holds no private key in PEM", remedy)

    def dkim_key(self, loc: Loc, path: Path) -> Iterator[Fault]:
        """RSA or Ed25519 (RFC 6376, 8463), of a length that verifiers take (RFC 8301 3.2)."""
        if not self._at.sound(loc):
            return
        remedy = "Make one with openssl genpkey -algorithm rsa -pkeyopt rsa_keygen_bits:2048, or -algorithm ed25519"
        key = self._key(loc, path, remedy)
        if isinstance(key, Fault):
            yield key
            return
        if isinstance(key, RSAPrivateKey):
            if key.key_size < 1024:
                yield self._at.fault(loc, f"the RSA key has only {key.key_size} bits; receivers ignore it", remedy)
            elif not 2048 <= key.key_size <= 4096:
                problem = f"the RSA key has {key.key_size} bits; not all receivers take it for good"
                yield self._at.fault(loc, problem, "Use 2048 bits", _WARNING)
        elif not isinstance(key, Ed25519PrivateKey):
            yield self._at.fault(loc, f"{_name(path)} is neither an RSA nor an Ed25519 key", remedy)
        yield from self._private(loc, path)

    def listener_certificate(self, config: Config) -> Iterator[Fault]:
        """Both files or neither: then a self-signed certificate is made."""
        certificate, key = config.certificate_path, config.key_path
        if not all(self._at.sound(loc) for loc in (("tls", "certificate"), ("tls", "key"), ("data_dir",))):
            return
        if _absent(certificate) and _absent(key):
            if self._at.place(("tls",)) != self._at.place(()):
                problem = f"{_name(certificate)} is not there; a self-signed certificate is made"
                remedy = "Put your certificate and key there, unless this is meant"
                yield self._at.fault(("tls", "certificate"), problem, remedy, _WARNING)
            return
        if _absent(certificate) and not _absent(draft_of(certificate)):
            return  # a first start was cut short between the two; the next one finishes it
        private = self._key(("tls", "key"), key, "Put the certificate's private key there")
        chain = self._chain(("tls", "certificate"), certificate)
        yield from (fault for fault in (private, chain) if isinstance(fault, Fault))
        yield from self._private(("tls", "key"), key)
        if isinstance(chain, Fault) or isinstance(private, Fault):
            return
        form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if chain[0].public_key().public_bytes(*form) != private.public_key().public_bytes(*form):
            problem = f"{_name(key)} is not the key of the first certificate in {_name(certificate)}"
            yield self._at.fault(("tls", "key"), problem, "Put the certificate that belongs to the key first")
        if chain[0].not_valid_after_utc < datetime.datetime.now(datetime.UTC):
            problem = f"the certificate expired on {chain[0].not_valid_after_utc:%Y-%m-%d}"
            yield self._at.fault(("tls", "certificate"), problem, "Renew it", _WARNING)

    def certificates(self, loc: Loc, path: Path) -> Iterator[Fault]:
        """One certificate at least."""
        if self._at.sound(loc):
            chain = self._chain(loc, path)
            if isinstance(chain, Fault):
                yield chain

    def _chain(self, loc: Loc, path: Path) -> list[x509.Certificate] | Fault:
        raw = self._read(loc, path)
        if isinstance(raw, Fault):
            return raw
        try:
            return x509.load_pem_x509_certificates(raw)
        except ValueError:
            return self._at.fault(loc, f"{_name(path)} holds no certificate in PEM", "Put a PEM file there")


def _absent(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        return False
    return False


def _name(path: Path) -> str:
    return printable(str(path), 200)
