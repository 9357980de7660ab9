"""`scripts/bench`: run the cases one after the other and print a table in Markdown."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench_lib.measure import cpu_seconds, fsync_rate, pss, tree
from bench_lib.postfix import Postfix, why_not
from bench_lib.relays import KEYS, Relay, Relayd
from bench_lib.tools import Load, OwnSink, PostfixSink, Sink, own_source, postfix_source


@dataclass(frozen=True, slots=True)
class Result:
    """One run."""

    accepted: float
    """Mails a second, from the first connection to the last 250."""
    delivered: float
    """Mails a second, from the first connection to the last mail in the sink."""
    cpu: float
    """Seconds of CPU for 1,000 mails, all processes of the relay."""
    memory: int
    """Highest PSS seen, octets."""
    p50: float | None
    p99: float | None
    refused: int
    lost: int


class MemoryWatch(threading.Thread):
    """Looks at the relay's memory every half second."""

    def __init__(self, pids: Sequence[int]) -> None:
        super().__init__(name="memory watch", daemon=True)
        self.peak = 0
        self._pids = pids
        self._end = threading.Event()

    def run(self) -> None:
        while not self._end.wait(0.5):
            self.look()

    def look(self) -> None:
        self.peak = max(self.peak, pss(trees(self._pids)))

    def stop(self) -> None:
        self._end.set()
        self.join()
        self.look()


PEERS = ("postfix", "postfix-opendkim")


def trees(pids: Sequence[int]) -> list[int]:
    """All processes below these."""
    return [process for pid in pids for process in tree(pid)]


def start(case: str, directory: Path, sink: int, workers: int | str) -> Relay:
    """The relay that a case measures. Raises RuntimeError when it does not start."""
    if case in PEERS:
        return Postfix(directory, sink, dkim=case == "postfix-opendkim")
    return Relayd(directory, sink, workers=workers, sign=[] if case == "none" else case.split("+"))


def run_case(args: argparse.Namespace, case: str) -> Result:
    """Start everything, send, wait until all has arrived or nothing more does, stop everything."""
    load = Load(args.mails, args.connections, args.size, args.recipients, not args.new_connections, args.timeout)
    with tempfile.TemporaryDirectory(prefix="relayd-bench-", dir=args.directory) as directory:
        sink: Sink = PostfixSink() if args.tool == "postfix" else OwnSink()
        try:
            relay = start(case, Path(directory), sink.port, args.workers)
            try:
                return _measure(relay, sink, load, args)
            finally:
                relay.stop()
        finally:
            sink.stop()


def _measure(relay: Relayd, sink: Sink, load: Load, args: argparse.Namespace) -> Result:
    source = postfix_source if args.tool == "postfix" else own_source
    watch = MemoryWatch(relay.pids)
    watch.start()
    before = cpu_seconds(trees(relay.pids))
    started = time.perf_counter()
    sent = source(relay.port, load)
    arrived, ended = _await_arrival(sink, sent.accepted, args.timeout)
    cpu = cpu_seconds(trees(relay.pids)) - before
    watch.stop()
    return Result(
        accepted=sent.accepted / sent.seconds,
        delivered=arrived / (ended - started),
        cpu=cpu / max(sent.accepted, 1) * 1000,
        memory=watch.peak,
        p50=sent.p50,
        p99=sent.p99,
        refused=sent.refused,
        lost=sent.accepted - arrived,
    )


def _await_arrival(sink: Sink, wanted: int, timeout: float) -> tuple[int, float]:
    """How many arrived, and when the last did: until all are there, or none has come for ten seconds."""
    deadline = time.perf_counter() + timeout
    count, at = sink.count(), time.perf_counter()
    while count < wanted and time.perf_counter() < deadline:
        time.sleep(0.02)
        now = sink.count()
        if now != count:
            count, at = now, time.perf_counter()
        elif time.perf_counter() - at > 10:
            break
    return count, at


def _row(name: str, results: Sequence[Result]) -> str:
    def median(values: Sequence[float], form: str = ",.0f") -> str:
        spread = f" ±{(max(values) - min(values)) / 2:{form}}" if len(values) > 1 else ""
        return f"{statistics.median(values):{form}}{spread}"

    waits = [(r.p50 * 1000, r.p99 * 1000) for r in results if r.p50 is not None and r.p99 is not None]
    latency = (
        f"{statistics.median(w[0] for w in waits):.1f} / {statistics.median(w[1] for w in waits):.1f}" if waits else "–"
    )
    faults = ", ".join(
        f"{sum(getattr(r, name) for r in results)} {name}"
        for name in ("refused", "lost")
        if any(getattr(r, name) for r in results)
    )
    cells = [
        name,
        median([r.accepted for r in results]),
        median([r.delivered for r in results]),
        median([r.cpu for r in results], ".2f"),
        median([r.memory / 1024**2 for r in results]),
        latency,
        faults or "none",
    ]
    return "| " + " | ".join(cells) + " |"


def _signed(case: str) -> str:
    return "unsigned" if case == "none" else case


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measure relayd on this machine's loopback.")
    parser.add_argument("--mails", type=int, default=5000, help="mails of one run (5000)")
    parser.add_argument("--size", type=int, default=4096, help="octets of a mail (4096)")
    parser.add_argument("--connections", type=int, default=20, help="connections at once (20)")
    parser.add_argument("--recipients", type=int, default=1, help="recipients of each mail (1)")
    parser.add_argument("--new-connections", action="store_true", help="a new connection for each mail")
    parser.add_argument("--workers", default="auto", help="workers of relayd (auto)")
    parser.add_argument("--runs", type=int, default=1, help="runs of each case, taken in turns; medians are shown (1)")
    parser.add_argument("--tool", choices=["own", "postfix"], default="own", help="load generator and sink")
    parser.add_argument("--directory", type=Path, help="where spools are made: the disk that is measured")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds after which a run is given up (300)")
    cases = ["none", *KEYS, "rsa+ed25519"]
    parser.add_argument("--sign", nargs="+", choices=cases, default=["none", "rsa", "ed25519"], help="cases to run")
    parser.add_argument("--peer", nargs="+", choices=PEERS, default=[], help="other relays, measured in the same turns")
    args = parser.parse_args(argv)
    for peer in args.peer:
        if reason := why_not(dkim=peer == "postfix-opendkim"):
            parser.error(f"{peer}: {reason}")
    args.workers = int(args.workers) if args.workers != "auto" else "auto"
    if args.mails * args.size > 8 * 1024**3:
        parser.error("more than 8 GiB of mail: this is a benchmark, not a stress test")
    return args


def main(argv: Sequence[str]) -> int:
    args = parse(argv)
    cases = [*args.sign, *args.peer]
    results: dict[str, list[Result]] = {case: [] for case in cases}
    for _ in range(args.runs):
        for case in cases:
            results[case].append(run_case(args, case))
    with tempfile.TemporaryDirectory(dir=args.directory) as directory:
        rate = fsync_rate(Path(directory))
    connections = "a new connection each" if args.new_connections else "reused"
    out = [
        f"{args.mails} mails of {args.size} octets, {args.connections} connections ({connections}), "
        f"{args.runs} run(s), {args.workers} workers, {rate:,.0f} fdatasync/s",
        "",
        "| relay | accepted/s | delivered/s | CPU s / 1,000 mails | PSS MiB | ms to 250: p50 / p99 | faults |",
        "|---|---|---|---|---|---|---|",
        *(_row(case if case in PEERS else f"relayd, {_signed(case)}", results[case]) for case in cases),
    ]
    sys.stdout.write("\n".join(out) + "\n")
    return 1 if any(r.lost or r.refused for each in results.values() for r in each) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
