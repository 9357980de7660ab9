"""A slow or broken disk, or another time of day, for chosen processes: faults.c, loaded in front of libc.

faults = Faults(tmp_path, daemon_folder)
daemon = Daemon(..., execute=True, env=faults.env)
faults.set(sync_seconds=1.0)        # every fsync below the folder takes a second
faults.set(sync_error=errno.EIO)    # every fsync fails
faults.set(clock=-3600)             # somebody has put the clock back by an hour
faults.set()                        # all is well again
"""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("faults.c")


def why_not() -> str | None:
    """What this machine lacks for it; None where it has all."""
    return None if shutil.which("cc") else "there is no C compiler"


class Faults:
    """For processes that are started with `env`; disk faults are those of files below `folder`."""

    def __init__(self, place: Path, folder: Path) -> None:
        library, plan = place / "faults.so", place / "faults.plan"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"], check=True)
        plan.write_bytes(bytes(4096))
        with plan.open("r+b") as file:
            self._plan = mmap.mmap(file.fileno(), 4096)
        self.env = {
            "LD_PRELOAD": str(library),
            "FAULTS_PLAN": str(plan),
            "FAULTS_FOLDER": str(folder.resolve()) + "/",
        }

    def set(self, *, sync_seconds: float = 0.0, sync_error: int = 0, write_error: int = 0, clock: int = 0) -> None:
        """From now on; without anything all is well. `clock`: seconds by which the time of day is wrong."""
        self._plan[:16] = struct.pack("=iiii", round(sync_seconds * 1000), sync_error, write_error, clock)
