"""A disk that is slow or broken for chosen processes: faulty_disk.c, compiled when needed and loaded in front of libc.

disk = FaultyDisk(tmp_path, daemon_folder)
daemon = Daemon(..., execute=True, env=disk.env)
disk.set(sync_seconds=1.0)          # every fsync below the folder takes a second
disk.set(sync_error=errno.EIO)      # every fsync fails
disk.set()                          # it is healed
"""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("faulty_disk.c")


def why_not() -> str | None:
    """What this machine lacks for it; None where it has all."""
    return None if shutil.which("cc") else "there is no C compiler"


class FaultyDisk:
    """Everything below `folder`, for processes that are started with `env`."""

    def __init__(self, place: Path, folder: Path) -> None:
        library, plan = place / "faulty_disk.so", place / "faulty_disk.plan"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"], check=True)
        plan.write_bytes(bytes(4096))
        with plan.open("r+b") as file:
            self._plan = mmap.mmap(file.fileno(), 4096)
        self.env = {
            "LD_PRELOAD": str(library),
            "FAULTY_DISK_PLAN": str(plan),
            "FAULTY_DISK_FOLDER": str(folder.resolve()) + "/",
        }

    def set(self, *, sync_seconds: float = 0.0, sync_error: int = 0, write_error: int = 0) -> None:
        """From now on; without anything the disk is a good one again."""
        self._plan[:12] = struct.pack("=iii", round(sync_seconds * 1000), sync_error, write_error)
