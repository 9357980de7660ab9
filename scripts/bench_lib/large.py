"""`scripts/bench large`: big mails at once, and what other sessions and the memory feel of them."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence

from bench_lib import scene
from bench_lib.measure import MemoryWatch, pss, trees
from bench_lib.relays import Setup
from bench_lib.tools import Load, OwnSink, own_source

MIB = 1024**2


class Probe(threading.Thread):
    """A session that says NOOP again and again, and notes how long each answer takes."""

    def __init__(self, port: int) -> None:
        super().__init__(name="probe", daemon=True)
        self.waits: list[float] = []
        self._port = port
        self._end = threading.Event()

    def run(self) -> None:
        while not self._end.is_set():
            with socket.create_connection(("127.0.0.1", self._port), timeout=60) as client:
                client.recv(512)
                for command in (b"EHLO probe.example", *[b"NOOP"] * 40):
                    began = time.perf_counter()
                    client.sendall(command + b"\r\n")
                    client.recv(4096)
                    self.waits.append(time.perf_counter() - began)
                    if self._end.wait(0.01):
                        break

    def stop(self) -> None:
        self._end.set()
        self.join()


def main(argv: Sequence[str]) -> int:
    """Send them, one each on as many connections, while a probe asks."""
    parser = scene.parser("large", __doc__)
    parser.add_argument("--mails", type=int, default=20, help="mails at once (20)")
    parser.add_argument("--size", type=int, default=50, help="MiB of a mail (50)")
    parser.add_argument("--sign", action="store_true", help="sign each with RSA-2048")
    args = parser.parse_args(argv)
    size = args.size * MIB
    limits = {"message_size": size + MIB, "memory": 4 * size * args.mails}
    sink = OwnSink()
    setup = Setup(sink.port, scene.workers(args), sign=["rsa"] if args.sign else [], extra={"limits": limits})
    try:
        with scene.running(args.directory, setup) as (relay, _):
            rest = pss(trees(relay.pids))
            watch, probe = MemoryWatch(relay.pids), Probe(relay.port)
            watch.start()
            probe.start()
            began = time.perf_counter()
            sent = own_source(relay.port, Load(args.mails, args.mails, size, 1, reuse=True, timeout=args.timeout))
            while sink.count() < sent.accepted and time.perf_counter() - began < args.timeout:
                time.sleep(0.1)
            took = time.perf_counter() - began
            arrived = sink.count()
            probe.stop()
            watch.stop()
    finally:
        sink.stop()
    waits = sorted(probe.waits)
    scene.show(
        f"{args.mails} mails of {args.size} MiB at once",
        [
            ("through, all of them", f"{took:.1f} s"),
            ("accepted, refused, arrived", f"{sent.accepted}, {sent.refused}, {arrived}"),
            (
                "a NOOP of another session, p50 / p99 / longest",
                f"{waits[len(waits) // 2] * 1000:.1f} / {waits[int(len(waits) * 0.99)] * 1000:.1f} / "
                f"{waits[-1] * 1000:.1f} ms of {len(waits)}",
            ),
            ("memory above rest (PSS)", f"{(watch.peak - rest) / MIB:,.0f} MiB"),
            ("that is, times the mails' own size", f"{(watch.peak - rest) / (size * args.mails):.1f}"),
        ],
    )
    return 1 if sent.refused or arrived < sent.accepted else 0
