"""Python's collector of reference cycles, set for a process that makes thousands of values a second and few cycles.

What it costs and saves is measured in docs/performance.md; everything else about memory is left to the interpreter.
"""

from __future__ import annotations

import gc

YOUNG = 20_000
"""Containers made, less those freed, until the young ones are looked through: Python's own 700 are two dozen mails."""
OLDER = 20


def settle() -> None:
    """Call once everything is loaded: what lives as long as the process is not looked through again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, OLDER, OLDER)
