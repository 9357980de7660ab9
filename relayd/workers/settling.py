"""What a worker does with its memory once everything is loaded: the collector leaves it alone, large pages hold it.

What both cost and save is measured in docs/performance.md; everything else about memory is left to the interpreter.
"""

from __future__ import annotations

import ctypes
import gc
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

YOUNG = 20_000
"""Containers made, less those freed, until the young ones are looked through: Python's own 700 are two dozen mails."""
OLDER = 20
FILLED = 0.75
"""How much of a region has to be in use already: large pages fill what is left, and nobody asked for that memory."""

_MADV_COLLAPSE = 25
"""Linux 6.1 and later, <linux/mman.h>; older ones know no such advice and change nothing."""
_LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")
_REGION = re.compile(
    r"^([0-9a-f]+)-([0-9a-f]+) rw-p \S+ \S+ 0 +(?:\[(?:heap|anon:[^\]\n]*)\])?\n(?:.*\n)*?Rss: +(\d+) kB$", re.MULTILINE
)


def settle() -> None:
    """Call once everything is loaded."""
    # what lives as long as the process is not looked through again and again
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, OLDER, OLDER)
    if sys.platform == "linux":
        with suppress(OSError, ValueError):  # no such files in a sandbox: pages stay small
            _collapse()


def _collapse() -> None:
    """Put the interpreter's heap into large pages (2 MiB instead of 4 KiB).

    An interpreter's values lie all over its heap, and each small page that the processor has not in mind costs a walk
    through the page tables; on a virtual machine that is a walk within a walk.
    """
    if "[never]" in (_LARGE_PAGES / "enabled").read_text("ascii"):  # collapsing would not ask
        return
    size = int((_LARGE_PAGES / "hpage_pmd_size").read_text("ascii"))
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for begin, end in regions(Path("/proc/self/smaps").read_text("ascii", errors="replace"), size):
        madvise(begin, end - begin, _MADV_COLLAPSE)  # an advice: where it is not taken, nothing is lost


def regions(smaps: str, size: int) -> Iterator[tuple[int, int]]:
    """Begin and end of the heaps in a `/proc/PID/smaps` (proc(5)) that are well filled, cut to multiples of `size`.

    Stacks of threads are not: they are large, and nearly empty.
    """
    for begin_text, end_text, resident in _REGION.findall(smaps):
        begin, end = int(begin_text, 16), int(end_text, 16)
        if int(resident) * 1024 < FILLED * (end - begin):
            continue
        begin, end = -(-begin // size) * size, end // size * size
        if begin < end:
            yield begin, end
