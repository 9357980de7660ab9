"""`scripts/bench`: which measurement it is to be. Without a name: throughput."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from bench_lib import backlog, bounces, fanout, large, latency, throughput

MEASUREMENTS = {
    "throughput": throughput,
    "latency": latency,
    "backlog": backlog,
    "large": large,
    "recipients": fanout,
    "bounces": bounces,
}


def main(argv: Sequence[str]) -> int:
    """Run one. Its options: scripts/bench NAME --help."""
    if argv == ["--list"]:
        for name, module in MEASUREMENTS.items():
            sys.stdout.write(f"{name:12} {(module.__doc__ or '').partition(': ')[2].splitlines()[0]}\n")
        return 0
    module, rest = (MEASUREMENTS[argv[0]], argv[1:]) if argv and argv[0] in MEASUREMENTS else (throughput, argv)
    # whoever asks politely is answered like a Ctrl-C: what was started is stopped
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return module.main(rest)
    except KeyboardInterrupt:
        return 130
    except RuntimeError as error:
        sys.stderr.write(f"bench: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
