"""Watches that the disk of the data directory keeps its reserve of space and inodes (`spool.min_free`).

Looks once a second, off the loop; admission and metrics read the last figures.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Protocol

import structlog

from relayd.config.models import Config

INTERVAL = 1.0
"""Seconds between looks."""


class FileSystem(Protocol):
    """The fields of os.statvfs that count."""

    @property
    def f_frsize(self) -> int: ...
    @property
    def f_blocks(self) -> int: ...
    @property
    def f_bavail(self) -> int: ...
    @property
    def f_files(self) -> int: ...
    @property
    def f_favail(self) -> int: ...


class DiskWatch:
    """Free space and inodes of one file system."""

    def __init__(self, path: Path, min_free: float) -> None:
        self._path = path
        self.min_free = min_free
        """Share, 0 to 1."""
        self.low = False
        """Less than the reserve is free, or the file system does not answer: take no new mail."""
        self.free_octets = 0
        self.free_inodes = 0
        """0 also on file systems that don't count them."""
        self.free_ratio = 1.0
        self.free_inode_ratio = 1.0
        self._task: asyncio.Task[None] | None = None
        self._unreadable = False

    def apply(self, config: Config) -> None:
        """Take over a changed reserve; it counts from the next look."""
        self.min_free = config.spool.min_free

    async def start(self) -> None:
        """Look once, then keep looking."""
        await self.refresh()
        self._task = asyncio.create_task(self._watch(), name="disk watch")

    async def stop(self) -> None:
        """Look no more."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def refresh(self) -> None:
        """Look now."""
        log = structlog.get_logger("relayd.intake")
        problem = ""
        try:
            # in a thread: a disk that hangs must not take the loop with it
            status = await asyncio.to_thread(os.statvfs, self._path)
        except OSError as error:
            problem = str(error)
        if problem:
            if not self._unreadable:
                log.error("disk unreadable", path=str(self._path), problem=problem)
            self.low = self._unreadable = True
            return
        self._unreadable = False
        was_low = self.low
        self.read(status)
        if self.low != was_low:
            report = log.warning if self.low else log.info
            report(
                "disk low" if self.low else "disk has room again",
                path=str(self._path),
                free_octets=self.free_octets,
                free_inodes=self.free_inodes,
                min_free=self.min_free,
            )

    def read(self, status: FileSystem) -> None:
        """Judge figures."""
        self.free_octets = status.f_bavail * status.f_frsize
        self.free_inodes = status.f_favail
        self.free_ratio = status.f_bavail / status.f_blocks if status.f_blocks else 0.0
        self.free_inode_ratio = status.f_favail / status.f_files if status.f_files else 1.0
        # file systems without an inode table (btrfs) say 0 of 0
        self.low = status.f_bavail < status.f_blocks * self.min_free or (
            status.f_files > 0 and status.f_favail < status.f_files * self.min_free
        )

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL)
            await self.refresh()
