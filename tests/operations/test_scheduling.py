"""The scheduling policy: ours by default, and somebody's choice stays."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="these policies are Linux's")

ENTER = """
import os, sys, threading
before = int(sys.argv[1])
try:
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    os.sched_setscheduler(0, before, os.sched_param(0))
except OSError:
    sys.exit(77)  # not allowed here
from relayd.workers.scheduling import interrupt_nobody
"""


def run(before: int, script: str) -> list[int]:
    """The numbers that `script` prints in a process that begins with the policy `before`; skips where it may not."""
    done = subprocess.run(
        [sys.executable, "-c", ENTER + script, str(before)], check=False, capture_output=True, text=True, timeout=60
    )
    if done.returncode == 77:
        pytest.skip("policies cannot be changed here")
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


def test_threads_and_processes_that_begin_later_interrupt_nobody_either() -> None:
    script = """
interrupt_nobody()
print(os.sched_getscheduler(0), flush=True)
thread = threading.Thread(target=lambda: print(os.sched_getscheduler(0), flush=True))
thread.start()
thread.join()
os.execv(sys.executable, [sys.executable, "-c", "import os; print(os.sched_getscheduler(0))"])
"""
    assert run(os.SCHED_OTHER, script) == [os.SCHED_BATCH] * 3


def test_a_policy_that_somebody_chose_stays() -> None:
    assert run(os.SCHED_IDLE, "interrupt_nobody(); print(os.sched_getscheduler(0))") == [os.SCHED_IDLE]


def test_a_system_that_forbids_it_is_no_trouble() -> None:
    script = """
def forbidden(*_: object) -> None:
    raise PermissionError(1, "Operation not permitted")
os.sched_setscheduler = forbidden
interrupt_nobody()
print(os.sched_getscheduler(0))
"""
    assert run(os.SCHED_OTHER, script) == [os.SCHED_OTHER]
