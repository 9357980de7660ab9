"""`scripts/bench recipients`: one mail to a great many recipients, with one return path for all or one for each."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from bench_lib import scene
from bench_lib.measure import cpu_seconds, trees
from bench_lib.relays import Setup
from bench_lib.tools import Load, OwnSink, own_source


def main(argv: Sequence[str]) -> int:
    """Send a few such mails and count what arrives."""
    parser = scene.parser("recipients", __doc__)
    parser.add_argument("--mails", type=int, default=5, help="mails (5)")
    parser.add_argument("--recipients", type=int, default=1000, help="recipients of each (1000)")
    parser.add_argument("--size", type=int, default=10240, help="octets of a mail (10240)")
    parser.add_argument("--verp", action="store_true", help="a return path, and so a transaction, for each recipient")
    parser.add_argument("--sign", nargs="*", default=["rsa"], help="keys that sign (rsa)")
    args = parser.parse_args(argv)
    sink = OwnSink()
    try:
        setup = Setup(sink.port, scene.workers(args), sign=args.sign, extra=_extra(args.recipients, verp=args.verp))
        with scene.running(args.directory, setup) as (relay, directory):
            before = cpu_seconds(trees(relay.pids))
            began = time.perf_counter()
            load = Load(args.mails, 1, args.size, args.recipients, reuse=True, timeout=args.timeout)
            sent = own_source(relay.port, load)
            took, arrived = _await(sink, args, began)
            cpu = cpu_seconds(trees(relay.pids)) - before
            octets = sum(path.stat().st_size for path in (directory / "data" / "spool").rglob("*") if path.is_file())
    finally:
        sink.stop()
    total = args.mails * args.recipients
    scene.show(
        f"{args.mails} mails of {args.size} octets to {args.recipients} recipients each, "
        f"{'a return path for each' if args.verp else 'one return path'}, signed: {' '.join(args.sign) or 'no'}",
        [
            ("accepted, refused", f"{sent.accepted}, {sent.refused}"),
            ("transactions with the upstream", f"{arrived:,}"),
            ("recipients/s", f"{total / took:,.0f}"),
            ("CPU for 1,000 recipients", f"{cpu / total * 1000:.2f} s"),
            ("octets in the spool for each recipient", f"{octets / total:,.0f}"),
        ],
    )
    return 1 if sent.refused else 0


def _extra(recipients: int, *, verp: bool) -> dict[str, object]:
    extra: dict[str, object] = {"limits": {"recipients": recipients}}
    if verp:
        extra["bounces"] = {"domain": "bounce.bench.example"}
        extra["upstreams"] = {"sink": {"return_path": "verp"}}
    return extra


def _await(sink: OwnSink, args: argparse.Namespace, began: float) -> tuple[float, int]:
    """Until nothing more arrives for a while."""
    count, at = 0, time.perf_counter()
    while time.perf_counter() - at < 3:
        time.sleep(0.02)
        now = sink.count()
        if now != count:
            count, at = now, time.perf_counter()
    return at - began, count
