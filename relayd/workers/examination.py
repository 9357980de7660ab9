"""A look at a changed configuration file, in a process of its own: reading and checking a file takes tens of MiB of
libraries and tens of milliseconds, neither of which whoever carries mail, or keeps those who do, should spend.

What that process does is examiner.py's, what is done with the result daemon.py's.
"""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import sys
from pathlib import Path

from relayd.workers.orders import Orders, Report

PATIENCE = 60.0
"""Seconds for one look: a file may be on a network disk that has gone."""


class ExaminationError(Exception):
    """There was no look at the file; the text says why."""


async def examine(path: Path, orders: Orders) -> Report:
    """Look at a file beside `orders`, which hold now. Raises ExaminationError."""
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "relayd.workers", "examine", str(path)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
    except OSError as error:
        raise ExaminationError(f"no process could be started to read the file: {error.strerror}") from error
    try:
        async with asyncio.timeout(PATIENCE):
            answer, _ = await process.communicate(orders.sealed)
    except TimeoutError:
        raise ExaminationError(f"reading the file took longer than {PATIENCE:g} s") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    version, _, pickled = answer.partition(b"\n")
    if version and version != orders.version.encode():
        raise ExaminationError(
            f"relayd {version.decode()} is installed and {orders.version} still runs: restart it to finish the upgrade"
        )
    if process.returncode:
        raise ExaminationError(f"the process that read the file ended with status {process.returncode}")
    report = pickle.loads(pickled)  # noqa: S301 - written by our own child into a pipe that nobody else has
    if not isinstance(report, Report):
        raise TypeError("no report")
    return report
