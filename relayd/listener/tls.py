"""What our listeners show of the certificate files: a server context. Making one is certificate.py's."""

from __future__ import annotations

import ssl
from pathlib import Path

from relayd.config.models import TLSFiles


def certificate_paths(files: TLSFiles, data_dir: Path) -> tuple[Path, Path]:
    """Certificate and key; relative ones are below `data_dir`."""
    return data_dir / files.certificate, data_dir / files.key


def server_context(files: TLSFiles, data_dir: Path) -> ssl.SSLContext:
    """A context for our listeners: TLS 1.2 or newer. Raises OSError and ssl.SSLError for unusable files."""
    return context_of(*certificate_paths(files, data_dir))


def context_of(certificate: str | Path, key: str | Path) -> ssl.SSLContext:
    """The same for any two files."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # no renegotiation, no compression: nothing for which a client could make us work without working itself
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.load_cert_chain(certificate, key)
    return context
