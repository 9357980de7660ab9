"""Two daemons never share a data directory, and the second says who holds it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from relayd.spool.lock import AlreadyRunningError, DataLock

HOLD = """
import sys, time
from pathlib import Path
from relayd.spool.lock import DataLock
with DataLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_second_is_refused_and_told_the_pid(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(AlreadyRunningError, match=f"in use by process {process.pid}") as caught:
            DataLock(tmp_path / "lock").acquire()
        assert caught.value.pid == process.pid
        # a lock dies with its holder, however that ends
        process.send_signal(signal.SIGKILL)
        process.wait()
    with DataLock(tmp_path / "lock"):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_a_lock_can_be_taken_again_after_release(tmp_path: Path) -> None:
    lock = DataLock(tmp_path / "lock")
    for _ in range(2):
        lock.acquire()
        with pytest.raises(AlreadyRunningError):
            DataLock(tmp_path / "lock").acquire()
        lock.release()
    lock.release()
    assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600


def test_a_place_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        DataLock(tmp_path / "none" / "lock").acquire()
