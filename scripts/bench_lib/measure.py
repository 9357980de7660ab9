"""What a relay costs: CPU time and memory of a whole process tree, and the fsync rate of the disk beside it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


def tree(root: int) -> list[int]:
    """The process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            fields = _stat(int(entry.name))
            if fields:
                children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, queue = [], [root]
    while queue:
        pid = queue.pop()
        found.append(pid)
        queue += children.get(pid, [])
    return found


def trees(pids: Sequence[int]) -> list[int]:
    """All processes below these."""
    return [process for pid in pids for process in tree(pid)]


def cpu_seconds(pids: list[int]) -> float:
    """User and system time of the processes, with that of children they have waited for."""
    total = 0
    for pid in pids:
        fields = _stat(pid)
        if fields:
            total += sum(map(int, fields[11:15]))
    return total / TICK


def pss(pids: list[int]) -> int:
    """Octets of memory, shared pages counted in parts."""
    total = 0
    for pid in pids:
        try:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return total


class MemoryWatch(threading.Thread):
    """Looks at the relay's memory every half second."""

    def __init__(self, pids: Sequence[int]) -> None:
        super().__init__(name="memory watch", daemon=True)
        self.peak = 0
        self._pids = pids
        self._end = threading.Event()

    def run(self) -> None:
        while not self._end.wait(0.5):
            self.look()

    def look(self) -> None:
        self.peak = max(self.peak, pss(trees(self._pids)))

    def stop(self) -> None:
        self._end.set()
        self.join()
        self.look()


def network() -> str:
    """What the loopback is like: a namespace of its own without delayed ACKs (scripts/bench makes one), or not."""
    own = os.environ.get("BENCH_NAMESPACE")
    return "own network namespace, delayed ACKs off" if own else "the machine's loopback, delayed ACKs on"


def fsync_rate(directory: Path, seconds: float = 1.0) -> float:
    """4 KiB appends, each followed by fdatasync, per second: what durability costs on this disk."""
    path = directory / "fsync"
    block = os.urandom(4096)
    count = 0
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    try:
        started = time.perf_counter()
        while (took := time.perf_counter() - started) < seconds:
            os.write(fd, block)
            os.fdatasync(fd)
            count += 1
    finally:
        os.close(fd)
        path.unlink()
    return count / took


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name: state, ppid, …"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
