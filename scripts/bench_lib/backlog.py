"""`scripts/bench backlog`: a great many mails while the upstream is down, a restart with them, and the way out."""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Sequence

from bench_lib import scene
from bench_lib.measure import MemoryWatch, fsync_rate
from bench_lib.relays import Relayd, Setup, free_port
from bench_lib.tools import Load, OwnSink, own_source

PARTS = 10


def main(argv: Sequence[str]) -> int:
    """Fill, start again, drain; beside it the rates of an empty queue."""
    parser = scene.parser("backlog", __doc__)
    parser.add_argument("--mails", type=int, default=100_000, help="mails that pile up (100000)")
    parser.add_argument("--size", type=int, default=4096, help="octets of a mail (4096)")
    parser.add_argument("--connections", type=int, default=20, help="connections at once (20)")
    args = parser.parse_args(argv)
    port = free_port()
    part = Load(args.mails // PARTS, args.connections, args.size, 1, reuse=True, timeout=args.timeout)
    with scene.running(args.directory, Setup(port, scene.workers(args))) as (relay, directory):
        need = args.mails * (args.size + 2048) * 2
        if shutil.disk_usage(directory).free < need:
            parser.error(f"the disk has no {need >> 30} GiB free for this")
        fill = _fill(relay, part)
        relay.stop()
        started = relay.start()
        drained, peak = _drain(relay, port, args)
        fresh = _fresh(relay, port, args)
        syncs = fsync_rate(directory)
    total = part.mails * PARTS
    rates, memory = fill
    scene.show(
        f"{total:,} mails of {args.size} octets while the upstream is down, {syncs:,.0f} fdatasync/s",
        [
            ("accepted/s: first tenth, slowest, last", f"{rates[0]:,.0f}, {min(rates):,.0f}, {rates[-1]:,.0f}"),
            ("slowest tenth against the first", f"{min(rates) / rates[0]:.0%}"),
            ("PSS while filling, draining", f"{memory >> 20}, {peak >> 20} MiB"),
            ("start with this queue", f"{started:.1f} s"),
            ("drained/s", f"{drained:,.0f}"),
            ("delivered/s with an empty queue, right after", f"{fresh:,.0f}"),
            ("draining against that", f"{drained / fresh:.0%}"),
        ],
    )
    return 0


def _fill(relay: Relayd, part: Load) -> tuple[list[float], int]:
    watch = MemoryWatch(relay.pids)
    watch.start()
    rates = []
    for _ in range(PARTS):
        sent = own_source(relay.port, part)
        if sent.refused:
            raise RuntimeError(f"{sent.refused} mails were refused")
        rates.append(sent.accepted / sent.seconds)
    watch.stop()
    return rates, watch.peak


def _drain(relay: Relayd, port: int, args: argparse.Namespace) -> tuple[float, int]:
    """Mails a second from the first one that comes, and the memory meanwhile."""
    mails, timeout = args.mails // PARTS * PARTS, args.timeout
    watch = MemoryWatch(relay.pids)
    watch.start()
    sink = OwnSink(port=port)
    try:
        deadline = time.monotonic() + timeout
        while (first := sink.count()) == 0 and time.monotonic() < deadline:
            time.sleep(0.05)
        began = time.perf_counter()
        while (count := sink.count()) < mails and time.monotonic() < deadline:
            time.sleep(0.1)
        took = time.perf_counter() - began
    finally:
        sink.stop()
    watch.stop()
    if count < mails:
        raise RuntimeError(f"only {count:,} of {mails:,} arrived")
    return (mails - first) / took, watch.peak


def _fresh(relay: Relayd, port: int, args: argparse.Namespace) -> float:
    """Delivered mails a second of the same relay, its queue empty, after the same upstream was away for a moment."""
    mails = min(6000, args.mails)
    sink = OwnSink(port=port)
    try:
        load = Load(mails, args.connections, args.size, 1, reuse=True, timeout=args.timeout)
        own_source(relay.port, Load(1, 1, load.size, 1, reuse=True, timeout=load.timeout))
        while sink.count() < 1:
            time.sleep(0.05)
        began = time.perf_counter()
        own_source(relay.port, load)
        while sink.count() < mails + 1:
            time.sleep(0.02)
        return mails / (time.perf_counter() - began)
    finally:
        sink.stop()
