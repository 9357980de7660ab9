"""What a first start makes: the data directory, the secret, a self-signed certificate. Apart from app.py, so that a
supervisor need not load all that its workers are made of.
"""

from __future__ import annotations

import datetime
import time

import structlog

from relayd.config.models import Config
from relayd.config.secret import resolve_secret
from relayd.listener.certificate import ensure_certificate


def prepare(config: Config) -> None:
    """Make what is missing. Called once, under the data directory's lock, before any worker runs. Raises OSError."""
    for path in (config.data_dir, config.data_dir / "spool", config.data_dir / "run"):
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    resolve_secret(config)
    now = datetime.datetime.fromtimestamp(time.time(), datetime.UTC)
    if ensure_certificate(config.tls, config.data_dir, config.hostname, now):
        structlog.get_logger("relayd.daemon").info(
            "made a self-signed certificate; put your own there for apps that verify",
            certificate=str(config.data_dir / config.tls.certificate),
        )
