"""`scripts/bench bounces`: how many returned mails a second are understood on one core, and which is the slowest.

Counts CPU time of this process, so that other work on the machine matters little. Reading the files is not counted.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str]) -> int:
    """Measure and print. Raises SystemExit where there is nothing to read."""
    parser = argparse.ArgumentParser(prog="scripts/bench bounces", description=__doc__.partition("\n")[0])
    parser.add_argument("directory", type=Path, help="mails that came back, a file each")
    parser.add_argument("--rounds", type=int, default=20, help="each mail's best one counts (%(default)s)")
    args = parser.parse_args(argv)
    mails = {path: path.read_bytes() for path in sorted(args.directory.iterdir()) if path.is_file()}
    if not mails:
        parser.error(f"no files in {args.directory}")

    from relayd.core.bounce.explain import explain  # noqa: PLC0415 - what is measured

    best: dict[Path, float] = {}
    for _ in range(args.rounds):
        for path, content in mails.items():
            begun = time.process_time()
            explain(content)
            took = time.process_time() - begun
            best[path] = min(took, best.get(path, took))
    last = max(best, key=lambda path: best[path])
    octets = sum(map(len, mails.values())) / len(mails)
    print(f"{len(mails)} mails of {octets:.0f} octets on average")
    print(f"{len(mails) / sum(best.values()):.0f} a second (CPU time, each mail's best of {args.rounds} rounds)")
    print(f"slowest: {last.name}, {best[last] * 1000:.1f} ms")
    print(f"memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB at most")
    return 0
