"""The process that looks at a changed configuration file for the daemon, and ends: see examination.py."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Sequence
from pathlib import Path

from relayd.config.diff import changes
from relayd.config.load import examine
from relayd.version import installed
from relayd.workers.orders import Report
from relayd.workers.sealing import seal, unseal


def main(argv: Sequence[str]) -> int:
    """`argv`: the file's path. The sealed configuration that holds comes in; our version and a Report go out."""
    sealed = sys.stdin.buffer.read()
    # first of all, on a line of its own: a daemon that runs since before an upgrade reads nothing else of ours
    sys.stdout.buffer.write(installed().encode() + b"\n")
    sys.stdout.buffer.flush()
    sys.stdout.buffer.write(pickle.dumps(look(Path(argv[0]), sealed)))
    sys.stdout.buffer.flush()
    return 0


def look(path: Path, sealed: bytes) -> Report:
    """Read and check a file, beside the configuration that holds."""
    old, examined = unseal(sealed), examine(path)
    new = examined.config
    found = () if new is None else tuple(map(str, changes(old, new)))
    if new is not None:
        # these hold for the life of the daemon; `found` says that they need a restart
        new = new.model_copy(update={name: getattr(old, name) for name in ("data_dir", "workers")})
    return Report(
        None if new is None else seal(new),
        tuple(fault.written(path) for fault in examined.faults),
        tuple(fault.written(path) for fault in examined.warnings),
        found,
    )
