"""What a first start makes: the data directory, the secret, a self-signed certificate. Apart from app.py, so that a
supervisor need not load all that its workers are made of.
"""

from __future__ import annotations

import datetime
import time
from pathlib import Path

import structlog

from relayd.config.models import Config
from relayd.config.secret import resolve_secret
from relayd.listener.certificate import ensure_certificate
from relayd.spool import files, schema, state_schema


def prepare(config: Config) -> None:
    """Make what is missing. Called once, under the data directory's lock, before any worker runs.

    Raises StoreError where files of a newer version lie there, and nothing is made or changed then; OSError.
    """
    _refuse_newer(config.data_dir)
    for path in (config.data_dir, config.data_dir / "spool", config.data_dir / "run"):
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    resolve_secret(config)
    now = datetime.datetime.fromtimestamp(time.time(), datetime.UTC)
    if ensure_certificate(config.tls, config.data_dir, config.hostname, now):
        structlog.get_logger("relayd.daemon").info(
            "made a self-signed certificate; put your own there for apps that verify",
            certificate=str(config.data_dir / config.tls.certificate),
        )


def _refuse_newer(data_dir: Path) -> None:
    """Of all files before any of them is touched: what one worker migrates, another must not refuse."""
    spool = data_dir / "spool"
    for slot in files.slots_on_disk(spool):
        for path in files.segments_in(files.slot_directory(spool, slot)):
            files.refuse_newer(path, schema.VERSION)
    if (data_dir / "state.db").exists():
        files.refuse_newer(data_dir / "state.db", state_schema.VERSION)
