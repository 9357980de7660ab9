"""Each worker's event loop on a core of its own, the other threads anywhere."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from relayd.workers.affinity import core_of

CORES = sorted(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("slot", "slots", "cores", "own"),
    [
        (0, 2, {4, 7}, 4),
        (1, 2, {4, 7}, 7),
        (0, 1, {4}, None),
        (0, 1, {4, 7}, None),
        (2, 3, {4, 7}, None),
        (1, 2, {1, 2, 3}, None),
    ],
)
def test_a_worker_has_a_core_where_there_are_as_many_as_workers(
    slot: int, slots: int, cores: set[int], own: int | None
) -> None:
    assert core_of(slot, slots, cores) == own


SCRIPT = """
import os, sys, threading
from concurrent.futures import ThreadPoolExecutor
from relayd.workers.affinity import Affinity
stop = threading.Event()
older = threading.Thread(target=stop.wait)
older.start()
affinity = Affinity(int(sys.argv[1]) - 1, int(sys.argv[1]))
affinity.settle()
affinity.free_others()
with ThreadPoolExecutor(1) as pool:
    pool.submit(int).result()
    affinity.free_others()
    young = pool.submit(os.sched_getaffinity, 0).result()
for found in (os.sched_getaffinity(0), os.sched_getaffinity(older.native_id), young):
    print(*sorted(found))
stop.set()
"""


def in_a_process(slots: int) -> list[list[int]]:
    """Where the loop's thread, an older and a younger one may run: in a process of its own, for it stays so."""
    told = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(slots)], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    return [[int(core) for core in line.split()] for line in told.splitlines()]


@pytest.mark.skipif(len(CORES) < 2, reason="one core alone is nobody's own")
def test_the_loop_stays_and_other_threads_do_not() -> None:
    assert in_a_process(len(CORES)) == [CORES[-1:], CORES, CORES]


def test_with_another_number_of_workers_than_cores_all_goes_anywhere() -> None:
    assert in_a_process(len(CORES) + 1) == [CORES, CORES, CORES]
