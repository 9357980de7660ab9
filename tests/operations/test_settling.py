"""What a worker does with its memory once it has started: which regions go into large pages, and that nothing fails."""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path

import pytest

from relayd.workers.settling import regions

LARGE = 2 * 1024**2


def region(begin: int, end: int, resident: float, *, rights: str = "rw-p", inode: int = 0, name: str = "") -> str:
    """One entry of /proc/PID/smaps, as the kernel writes it; `resident`: what part of it is in use."""
    kib = int((end - begin) / 1024 * resident)
    head = f"{begin:08x}-{end:08x} {rights} 00000000 00:00 {inode}"
    return (
        f"{head:<73}{name}\nSize: {(end - begin) // 1024:>15} kB\nKernelPageSize:        4 kB\n"
        f"Rss: {kib:>16} kB\nPss: {kib:>16} kB\nVmFlags: rd wr mr mw me ac\n"
    )


def test_heaps_in_use_are_found_cut_to_large_pages() -> None:
    smaps = (
        region(0x400000, 0x6D2000, 1.0, rights="r-xp", inode=17, name="/usr/bin/python3.11")
        + region(0x946000, 0x1346000, 1.0, name="[heap]")
        + region(0x7F0000000000, 0x7F0000800000, 0.8)
        + region(0x7F0001000000, 0x7F0001200000, 0.9, name="[anon:cpython:pymalloc]")
    )
    assert list(regions(smaps, LARGE)) == [
        (0xA00000, 0x1200000),
        (0x7F0000000000, 0x7F0000800000),
        (0x7F0001000000, 0x7F0001200000),
    ]


def test_stacks_files_and_small_regions_are_left_alone() -> None:
    smaps = (
        region(0x7F0000000000, 0x7F0000800000, 0.02)  # the stack of a thread
        + region(0x7FFC00000000, 0x7FFC00400000, 1.0, name="[stack]")
        + region(0x7F0001000000, 0x7F0001400000, 1.0, inode=99, name="/var/lib/relayd/spool/0/x.db-shm")
        + region(0x7F0002000000, 0x7F0002400000, 1.0, rights="---p")
        + region(0x7F0003000000, 0x7F0003100000, 1.0)
        + region(0x7F0004001000, 0x7F0004300000, 1.0)  # no whole large page lies in it
    )
    assert list(regions(smaps, LARGE)) == []


@pytest.mark.skipif(sys.platform != "linux", reason="large pages on request are Linux's")
def test_a_process_goes_on_with_its_heap_in_large_pages_where_the_kernel_gives_them() -> None:
    """A heap of 30 MiB keeps its values; where pages can be collapsed at all (Linux 6.1), most of it lies in them."""
    code = (
        "from relayd.workers import settling\n"
        "values = [b'%600d' % n for n in range(50_000)]\n"
        "settling.settle()\n"
        "assert [int(value) for value in values] == list(range(50_000))\n"
        "print(open('/proc/self/smaps_rollup').read().split('AnonHugePages:')[1].split()[0])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    if _can_collapse():
        assert int(done.stdout) > 0


def _can_collapse() -> bool:
    """Whether the kernel gives large pages on request here and now."""
    if "[never]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text("ascii"):
        return False
    with mmap.mmap(-1, 40 * LARGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.write(b"x" * len(memory))
        try:
            memory.madvise(25)  # MADV_COLLAPSE
        except OSError:
            return False
    return True
