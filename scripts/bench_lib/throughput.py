"""`scripts/bench`: mails a second of relayd and its peers, cases in turns, and a table in Markdown."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench_lib.measure import MemoryWatch, cpu_seconds, fsync_rate, network, trees
from bench_lib.other import SCRIPTED, given, parse_command, scripted, why_not_scripted
from bench_lib.postfix import Postfix, why_not
from bench_lib.relays import KEYS, Relay, Relayd, Setup, certificate
from bench_lib.tools import Load, OwnSink, PostfixSink, Sink, has_postfix_tools, own_source, postfix_source


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


_POSTFIX = ("postfix", "postfix-opendkim")
PEERS = (*_POSTFIX, *SCRIPTED)


def start(case: str, directory: Path, setup: Setup) -> Relay:
    """The relay that a case measures. Raises RuntimeError when it does not start."""
    if case in _POSTFIX:
        return Postfix(directory, setup, dkim=case == "postfix-opendkim")
    if case in SCRIPTED:
        return scripted(case, directory, setup)
    if "=" in case:
        return given(case, directory, setup)
    return Relayd(directory, replace(setup, sign=[] if case == "none" else case.split("+")))


def run_case(args: argparse.Namespace, case: str) -> Result:
    """Start everything, send, wait until all has arrived or nothing more does, stop everything."""
    client_tls, upstream_tls = "client" in args.tls, "upstream" in args.tls
    load = Load(
        args.mails, args.connections, args.size, args.recipients, not args.new_connections, args.timeout, client_tls
    )
    with tempfile.TemporaryDirectory(prefix="relayd-bench-", dir=args.directory) as directory:
        tls = certificate(Path(directory)) if args.tls else None
        sink: Sink = PostfixSink() if args.tool == "postfix" else OwnSink(tls=tls if upstream_tls else None)
        setup = Setup(
            sink.port, args.workers, tls=tls, client_tls=client_tls, upstream_tls=upstream_tls, extra=args.config
        )
        try:
            relay = start(case, Path(directory), setup)
            try:
                return _measure(relay, sink, load, args)
            finally:
                relay.stop()
        finally:
            sink.stop()


def _measure(relay: Relay, sink: Sink, load: Load, args: argparse.Namespace) -> Result:
    source = postfix_source if args.tool == "postfix" else own_source
    first = 0
    if args.warm_up:  # what a relay does once (processes, connections, caches) is not what a mail costs
        first = source(relay.port, replace(load, mails=args.warm_up)).accepted
        first = _await_arrival(sink, first, args.timeout)[0]
    watch = MemoryWatch(relay.pids)
    watch.start()
    before = cpu_seconds(trees(relay.pids))
    started = time.perf_counter()
    sent = source(relay.port, load)
    arrived, ended = _await_arrival(sink, first + sent.accepted, args.timeout)
    arrived -= first
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


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__, epilog="Others: scripts/bench --list")
    parser.add_argument("--mails", type=int, default=5000, help="mails of one run (5000)")
    parser.add_argument("--warm-up", type=int, default=500, help="mails that go first, unmeasured (500)")
    parser.add_argument("--size", type=int, default=4096, help="octets of a mail (4096)")
    parser.add_argument("--connections", type=int, default=20, help="connections at once (20)")
    parser.add_argument("--recipients", type=int, default=1, help="recipients of each mail (1)")
    parser.add_argument("--new-connections", action="store_true", help="a new connection for each mail")
    parser.add_argument("--workers", default="auto", help="workers of relayd (auto)")
    parser.add_argument("--runs", type=int, default=1, help="runs of each case, taken in turns; medians are shown (1)")
    parser.add_argument(
        "--tool",
        choices=["own", "postfix"],
        help="load generator and sink; without it smtp-source and smtp-sink, which take least of the cores, where they"
        " are installed and no TLS is asked for, else our own",
    )
    parser.add_argument(
        "--tls", nargs="+", choices=["client", "upstream"], default=[], help="TLS from the first octet on these sides"
    )
    parser.add_argument("--directory", type=Path, help="where spools are made: the disk that is measured")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds after which a run is given up (300)")
    parser.add_argument("--config", type=json.loads, default={}, help="more of relayd's configuration, as JSON")
    cases = ["none", *KEYS, "rsa+ed25519"]
    parser.add_argument("--sign", nargs="*", choices=cases, default=["none", "rsa", "ed25519"], help="cases to run")
    parser.add_argument(
        "--peer",
        nargs="+",
        default=[],
        metavar="PEER",
        help=f"other relays, measured in the same turns: {', '.join(PEERS)}, or NAME=PORT=COMMAND for any other; in"
        " its command {sink} is the port of the upstream, {directory} a directory for its queue",
    )
    args = parser.parse_args(argv)
    if args.directory:  # relays change theirs
        args.directory = args.directory.absolute()
    for peer in args.peer:
        _check_peer(parser, args, peer)
    if args.tls and args.tool == "postfix":
        parser.error("smtp-source and smtp-sink speak no TLS: --tool own")
    args.tool = args.tool or ("postfix" if has_postfix_tools() and not args.tls else "own")
    args.workers = int(args.workers) if args.workers != "auto" else "auto"
    if args.mails * args.size > 8 * 1024**3:
        parser.error("more than 8 GiB of mail: this is a benchmark, not a stress test")
    return args


def _check_peer(parser: argparse.ArgumentParser, args: argparse.Namespace, peer: str) -> None:
    if peer in PEERS:
        reason = why_not_scripted(peer) if peer in SCRIPTED else why_not(dkim=peer == "postfix-opendkim")
        if reason:
            parser.error(f"{peer}: {reason}")
        if peer in SCRIPTED and args.tls:
            parser.error(f"{peer}: not set up for TLS")
    else:
        try:
            parse_command(peer)
        except ValueError as error:
            parser.error(f"{peer}: neither one of {', '.join(PEERS)} nor NAME=PORT=COMMAND ({error})")


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
    tls = f", TLS with {' and '.join(args.tls)}" if args.tls else ""
    out = [
        f"{args.mails} mails of {args.size} octets, {args.connections} connections ({connections}){tls}, "
        f"generator and sink {'of Postfix' if args.tool == 'postfix' else 'our own'}, "
        f"{args.runs} run(s) after {args.warm_up} unmeasured mails, {args.workers} workers, "
        f"Python {platform.python_version()}, {network()}, {rate:,.0f} fdatasync/s",
        "",
        "| relay | accepted/s | delivered/s | CPU s / 1,000 mails | PSS MiB | ms to 250: p50 / p99 | faults |",
        "|---|---|---|---|---|---|---|",
        *(_row(_title(case), results[case]) for case in cases),
    ]
    sys.stdout.write("\n".join(out) + "\n")
    return 1 if any(r.lost or r.refused for each in results.values() for r in each) else 0


def _title(case: str) -> str:
    if case in PEERS:
        return case
    return case.partition("=")[0] if "=" in case else f"relayd, {'unsigned' if case == 'none' else case}"
