"""What several measurements share: a relayd in a directory that vanishes, and a table of what was seen."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench_lib.relays import Relayd, Setup


def parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """The options that all of them have."""
    made = argparse.ArgumentParser(prog=f"scripts/bench {name}", description=doc)
    made.add_argument("--workers", default="auto", help="workers of relayd (auto)")
    made.add_argument("--directory", type=Path, help="where the spool is made: the disk that is measured")
    made.add_argument("--timeout", type=float, default=1800.0, help="seconds after which it is given up (1800)")
    return made


def workers(args: argparse.Namespace) -> int | str:
    """The option as the configuration wants it."""
    return args.workers if args.workers == "auto" else int(args.workers)


@contextmanager
def running(directory: Path | None, setup: Setup) -> Iterator[tuple[Relayd, Path]]:
    """relayd at work below a fresh directory. Raises RuntimeError when it does not start."""
    with tempfile.TemporaryDirectory(prefix="relayd-bench-", dir=directory) as made:
        relay = Relayd(Path(made), setup)
        try:
            yield relay, Path(made)
        finally:
            relay.stop()


def show(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """A table of two columns in Markdown."""
    sys.stdout.write(f"{title}\n\n| what | measured |\n|---|---|\n")
    sys.stdout.writelines(f"| {what} | {figure} |\n" for what, figure in rows)
