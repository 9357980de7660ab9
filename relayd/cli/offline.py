"""An operator's act where no daemon runs: its spool opened under its lock, as its user, changed by its own code."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import structlog

from relayd.cli.common import CommandError, now_ms
from relayd.cli.place import without_secrets
from relayd.config.models import Config
from relayd.delivery.plan import policy_of
from relayd.delivery.steering import IdleQueue, Steered, Steering
from relayd.spool.lock import AlreadyRunningError, DataLock
from relayd.spool.sqlite import SqliteStore

Work = Callable[[Steering], Awaitable[Steered]]


def steer(path: Path, data_dir: Path, work: Work) -> dict[str, Any]:
    """Do an act to what waits. Raises CommandError, StoreError, OSError."""
    if not (data_dir / "spool").is_dir():
        raise CommandError(f"there is no spool in {data_dir}")
    config = without_secrets(path)
    become_owner(data_dir)
    lock = DataLock(data_dir / "lock")
    try:
        lock.acquire()
    except AlreadyRunningError as error:
        raise CommandError(f"{error}, but no daemon answers on its control socket") from None
    logging_as_it_was = structlog.get_config()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    try:
        return asyncio.run(_steer(config, data_dir, work))
    finally:
        structlog.configure(**logging_as_it_was)
        lock.release()


def become_owner(data_dir: Path) -> None:
    """As root, go on as the user whose data it is: files made by root would lock the daemon out."""
    owner = data_dir.stat()
    if os.geteuid() == 0 and owner.st_uid != 0:
        os.setgroups([])
        os.setresgid(owner.st_gid, owner.st_gid, owner.st_gid)
        os.setresuid(owner.st_uid, owner.st_uid, owner.st_uid)


async def _steer(config: Config, data_dir: Path, work: Work) -> dict[str, Any]:
    # one slot out of one: the mail of all workers is ours
    store = SqliteStore(data_dir / "spool", 0, 1, config.spool, now_ms)
    await store.open()
    try:
        steering = Steering(store, IdleQueue(), policy_of(config), now_ms, _owed)
        done = await work(steering)
    finally:
        await store.close()
    return asdict(done)


def _owed() -> None:
    """Reports that are owed now are made by the daemon when it starts."""
