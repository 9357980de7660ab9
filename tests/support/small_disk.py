"""A small file system of our own: to fill, to make read-only, and to lose power at any moment. Needs root and mount.

It is ext4 in a file, mounted by a loop device. `cut_power` stops it at once by the ioctl that file-system developers
use for that (EXT4_IOC_SHUTDOWN without flushing the journal): what no fsync or journal commit has written is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.daemon import Daemon

_SHUTDOWN = 0x8004587D
"""_IOR('X', 125, __u32)"""
_NO_LOG_FLUSH = 2
_PATIENCE = 30.0


def why_not() -> str | None:
    """What this machine lacks for it; None where it has all."""
    if os.geteuid() != 0:
        return "mounting a file system needs root"
    missing = [name for name in ("mount", "umount", "mkfs.ext4") if shutil.which(name) is None]
    if missing:
        return f"there is no {missing[0]}"
    return None if Path("/dev/loop-control").exists() else "there are no loop devices"


class SmallDisk:
    """The file system; `path` is where it is mounted."""

    def __init__(self, place: Path, mebibytes: int) -> None:
        self.path = place / "disk"
        self._image = place / "disk.img"
        self.path.mkdir()
        with self._image.open("wb") as file:
            file.truncate(mebibytes * 1024**2)
        _run("mkfs.ext4", "-q", "-m", "0", str(self._image))
        self.mount()

    def mount(self) -> None:
        """Mount it; after a cut of power this replays the journal, as a machine does when it comes up."""
        _run("mount", "-o", "loop,errors=remount-ro", str(self._image), str(self.path))

    def unmount(self) -> None:
        """Wait until nobody uses it any more, and take it away."""
        deadline = time.monotonic() + _PATIENCE
        while subprocess.run(["umount", str(self.path)], capture_output=True, check=False).returncode:
            if time.monotonic() > deadline:
                raise AssertionError(f"{self.path} is busy")
            time.sleep(0.02)

    def cut_power(self) -> None:
        """From now on nothing reaches the disk, and what had not is lost. `unmount` and `mount` bring it up again."""
        handle = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(handle, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(handle)

    def become_read_only(self) -> None:
        """As after an error that the kernel finds (errors=remount-ro): only `unmount` and `mount` make it good again.

        An ordinary remount is refused while a file is open for writing.
        """
        device = self.path.stat().st_dev
        name = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve().name
        Path(f"/sys/fs/ext4/{name}/trigger_fs_error").write_text("1")

    def fill(self) -> Path:
        """Leave no room at all; the file that takes it."""
        ballast = self.path / "ballast"
        with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as file:
            for size in (1024**2, 4096, 512, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(b"x" * size)
        return ballast


async def machine_dies(daemon: Daemon, disk: SmallDisk) -> None:
    """The machine that a daemon and its disk belong to loses its power, and comes up again without the daemon."""
    assert daemon.process is not None
    # at one moment: nothing more is said by anyone, nothing more is written
    daemon.process.signal_group(signal.SIGSTOP)
    disk.cut_power()
    daemon.process.signal_group(signal.SIGKILL)
    await daemon.process.wait()
    await asyncio.to_thread(disk.unmount)
    disk.mount()


@contextlib.contextmanager
def small_disk(place: Path, mebibytes: int = 64) -> Iterator[SmallDisk]:
    """One that is gone at the end, whatever still uses it."""
    disk = SmallDisk(place, mebibytes)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk.path)], capture_output=True, check=False)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
