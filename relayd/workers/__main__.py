"""`python -m relayd.workers ROLE …`: the processes that run for long, and the one that reads a changed file for them.

Each loads what it needs and nothing else: what is loaded here is memory for as long as the daemon runs.
"""

# ruff: noqa: PLC0415 - imported by the one role that needs it
from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, cast


def main(argv: Sequence[str]) -> int:
    """Do what the first argument says; the exit status."""
    role, *arguments = argv
    # structlog loads rich and Pygments for tracebacks in colour: 4 MiB in every process, for what a daemon's log never
    # shows
    sys.modules["rich"] = cast(Any, None)
    match role:
        case "daemon":
            from relayd.workers.daemon import take_over

            return take_over(arguments)
        case "worker":
            from relayd.app import App
            from relayd.workers.worker import main as work

            return work(arguments, lambda: App)
        case "examine":
            from relayd.workers.examiner import main as examine

            return examine(arguments)
    sys.stderr.write("python -m relayd.workers: started by `relayd serve`\n")
    return 2


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:] or [""]))
    except KeyboardInterrupt:
        sys.exit(130)  # Ctrl-C while we load: once we run, it is a signal that is handled
