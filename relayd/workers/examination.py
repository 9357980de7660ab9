"""A look at a changed configuration file, in a process of its own: reading and checking a file takes tens of MiB of
libraries and tens of milliseconds, neither of which whoever carries mail, or keeps those who do, should spend.

What that process does is examiner.py's, what is done with the result daemon.py's.
"""

from __future__ import annotations

import asyncio
import contextlib
import pickle
from pathlib import Path

from relayd.workers.interpreter import command
from relayd.workers.orders import Orders, Report

PATIENCE = 60.0
"""Seconds for one look: a file may be on a network disk that has gone."""
AFTER_KILL = 2.0


class ExaminationError(Exception):
    """There was no look at the file; the text says why."""


async def examine(path: Path, orders: Orders) -> Report:
    """Look at a file beside `orders`, which hold now. Raises ExaminationError."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command("examine", str(path)),
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
            # not for ever: who waits for a disk that has gone cannot be killed either
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AFTER_KILL):
                    await process.wait()
    version, _, pickled = answer.partition(b"\n")
    if version and version != orders.version.encode():
        raise ExaminationError(
            f"relayd {version.decode()} is installed and {orders.version} still runs: restart it to finish the upgrade"
        )
    if process.returncode:
        raise ExaminationError(f"the process that read the file ended with status {process.returncode}")
    try:
        report = pickle.loads(pickled)  # noqa: S301 - written by our own child into a pipe that nobody else has
    except Exception as error:
        raise ExaminationError(f"the process that read the file told nothing: {type(error).__name__}") from error
    if not isinstance(report, Report):
        raise ExaminationError("the process that read the file told something else")
    return report
