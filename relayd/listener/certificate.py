"""The certificate that our listeners show where nobody gave them one: self-signed, made at the first start.

Apps that verify need a real certificate at the configured paths; a self-signed one still keeps passwords off the wire.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from relayd.config.models import TLSFiles, draft_of
from relayd.listener.tls import certificate_paths

_YEARS = datetime.timedelta(days=3650)


def ensure_certificate(files: TLSFiles, data_dir: Path, hostname: str, now: datetime.datetime) -> bool:
    """Make a self-signed certificate where both files are absent; True when it was made.

    A crash in between leaves nothing, or a key whose certificate lies ready beside it: that one is put in place.
    Raises FileNotFoundError where only one of the two is there: nobody's key is ever replaced.
    """
    certificate, key = certificate_paths(files, data_dir)
    if certificate.exists() and key.exists():
        return False
    if key.exists() and draft_of(certificate).exists():
        draft_of(certificate).rename(certificate)
        return True
    for there, missing in ((certificate, key), (key, certificate)):
        if there.exists():
            raise FileNotFoundError(f"tls: {there} is there, but {missing} is not: give both files or neither")
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hostname[:64])])
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + _YEARS)
        .add_extension(x509.SubjectAlternativeName(_names(hostname)), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(private, hashes.SHA256())
    )
    for path in (certificate, key):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write(draft_of(key), pem, 0o600)
    _write(draft_of(certificate), signed.public_bytes(serialization.Encoding.PEM), 0o644)
    draft_of(key).rename(key)
    draft_of(certificate).rename(certificate)
    return True


def _names(hostname: str) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = [x509.DNSName(hostname)]
    names += [x509.IPAddress(ipaddress.ip_address(address)) for address in ("127.0.0.1", "::1")]
    return names + ([x509.DNSName("localhost")] if hostname != "localhost" else [])


def _write(path: Path, content: bytes, mode: int) -> None:
    path.unlink(missing_ok=True)  # left by a start that was cut short
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
