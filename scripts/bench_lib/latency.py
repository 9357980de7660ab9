"""`scripts/bench latency`: how long mails wait at half of what goes through, to our 250 and to the upstream's."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench_lib import scene
from bench_lib.measure import fsync_rate, network
from bench_lib.relays import Setup
from bench_lib.tools import Load, OwnSink, own_source


def main(argv: Sequence[str]) -> int:
    """Measure the full rate, then the waits at half of it."""
    parser = scene.parser("latency", __doc__)
    parser.add_argument("--mails", type=int, default=6000, help="mails of each of the two runs (6000)")
    parser.add_argument("--size", type=int, default=4096, help="octets of a mail (4096)")
    parser.add_argument("--connections", type=int, default=20, help="connections at once (20)")
    parser.add_argument("--rate", type=float, help="mails a second; absent: half of what goes through")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.directory) as place:
        promised, taken = Path(place) / "promised", Path(place) / "taken"
        sink = OwnSink(times=taken)
        try:
            with scene.running(args.directory, Setup(sink.port, scene.workers(args))) as (relay, _):
                load = Load(args.mails, args.connections, args.size, 1, reuse=True, timeout=args.timeout)
                rate = args.rate
                if rate is None:
                    started = time.perf_counter()
                    own_source(relay.port, load)
                    _arrived(sink, args.mails, args.timeout)
                    rate = args.mails / (time.perf_counter() - started) / 2
                before = sink.count()
                sent = own_source(
                    relay.port,
                    Load(
                        args.mails,
                        args.connections,
                        args.size,
                        1,
                        reuse=True,
                        timeout=args.timeout,
                        rate=rate,
                        times=promised,
                    ),
                )
                lost = sent.accepted - (_arrived(sink, before + sent.accepted, args.timeout) - before)
        finally:
            sink.stop()
        onward = _onward(promised, taken)
        syncs = fsync_rate(Path(place))
    assert sent.p50 is not None and sent.p99 is not None
    scene.show(
        f"{args.mails} mails of {args.size} octets at {rate:,.0f}/s, {args.connections} connections, {network()}, "
        f"{syncs:,.0f} fdatasync/s",
        [
            ("final dot to our 250, p50 / p99", f"{sent.p50 * 1000:.1f} / {sent.p99 * 1000:.1f} ms"),
            ("our 250 to the upstream's, p50 / p99", f"{_at(onward, 0.5):.1f} / {_at(onward, 0.99):.1f} ms"),
            ("mean of a lone fdatasync", f"{1000 / syncs:.2f} ms"),
            ("refused, lost", f"{sent.refused}, {lost}"),
        ],
    )
    return 1 if sent.refused or lost else 0


def _arrived(sink: OwnSink, wanted: int, timeout: float) -> int:
    deadline = time.monotonic() + timeout
    while (count := sink.count()) < wanted and time.monotonic() < deadline:
        time.sleep(0.05)
    return count


def _onward(promised: Path, taken: Path) -> list[float]:
    """Milliseconds from our 250 to the upstream's, sorted. An upstream that was quicker than our 250 waited 0."""
    at = json.loads(promised.read_text())
    waits = [max(when - at[int(number)], 0.0) * 1000 for number, when in json.loads(taken.read_text()).items()]
    return sorted(waits)


def _at(waits: Sequence[float], part: float) -> float:
    return waits[int((len(waits) - 1) * part)]
