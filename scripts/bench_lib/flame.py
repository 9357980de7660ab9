"""`scripts/profile`: a flame graph of one worker under load, drawn by py-spy."""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from bench_lib import scene
from bench_lib.measure import trees
from bench_lib.relays import KEYS, Setup
from bench_lib.tools import Load, OwnSink, own_source


class Loading(threading.Thread):
    """Sends mail until it is told to end."""

    def __init__(self, port: int, load: Load) -> None:
        super().__init__(name="load", daemon=True)
        self._port, self._load = port, load
        self._end = threading.Event()

    def run(self) -> None:
        while not self._end.is_set():
            own_source(self._port, self._load)

    def stop(self) -> None:
        self._end.set()
        self.join()


def main(argv: Sequence[str]) -> int:
    """Load one worker, record it, and say where the picture is."""
    parser = argparse.ArgumentParser(prog="scripts/profile", description=__doc__)
    parser.add_argument("output", nargs="?", type=Path, default=Path("profile.svg"), help="the picture (profile.svg)")
    parser.add_argument("--seconds", type=int, default=10, help="how long it is watched (10)")
    parser.add_argument("--size", type=int, default=4096, help="octets of a mail (4096)")
    parser.add_argument("--recipients", type=int, default=1, help="recipients of each mail (1)")
    parser.add_argument("--new-connections", action="store_true", help="a new connection for each mail")
    parser.add_argument("--sign", nargs="*", choices=KEYS, default=[], help="keys that sign every mail")
    parser.add_argument("--all", action="store_true", help="time in which the interpreter waited, too")
    parser.add_argument("--py-spy", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--here", type=Path, required=True, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    output = args.here / args.output
    sink = OwnSink()
    try:
        setup = Setup(sink.port, 1, sign=args.sign, extra={"limits": {"recipients": args.recipients}})
        with scene.running(None, setup) as (relay, _):
            load = Load(1000, 20, args.size, args.recipients, reuse=not args.new_connections, timeout=120)
            own_source(relay.port, load)  # what happens once is done
            loading = Loading(relay.port, load)
            loading.start()
            command = [args.py_spy, "record", "--pid", str(trees(relay.pids)[-1]), "--duration", str(args.seconds)]
            command += ["--rate", "250", "--output", str(output), *([] if args.all else ["--gil"])]
            done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
            loading.stop()
    finally:
        sink.stop()
    if done.returncode == 0:
        sys.stdout.write(f"{output}\n")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
