"""A load generator: C connections, one mail after the other on each, no pipelining, as smtp-source does it.

Prints one JSON line: seconds, accepted, refused, and the waits from the final dot to 250. With --times every mail has a
number, and the file tells when each was promised.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import ssl
import sys
import time
from pathlib import Path

import uvloop

from bench_lib.dialogue import NUMBER, final_lines

SENDER = "app@bench.example"


def message(size: int) -> bytes:
    """A mail of about `size` octets, dot-stuffed and with its final dot."""
    head = (
        f"From: Bench <{SENDER}>\r\nTo: you@example.org\r\nSubject: a mail of the benchmark\r\n"
        "Date: Sat, 22 Nov 2025 00:00:00 +0000\r\nMessage-ID: <1@bench.example>\r\n"
        "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=us-ascii\r\n\r\n"
    )
    line = "The quick brown fox jumps over the lazy dog, and again it does so.\r\n"
    body = line * (max(size - len(head), len(line)) // len(line))
    return (head + body + ".\r\n").encode()


class Run:
    """What all connections share."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.left: int = args.count
        self.reuse: bool = not args.new_connections
        self.target: tuple[str, int] = (args.host, args.port)
        recipients = b"".join(b"RCPT TO:<you%d@example.org>\r\n" % n for n in range(args.recipients))
        self.recipients = recipients.splitlines(keepends=True)
        self.content = message(args.size)
        self.numbered: bool = args.times is not None
        self.pace: float = 1 / args.rate if args.rate else 0.0
        self.turn = 0.0
        self.promised: list[float] = [0.0] * args.count if self.numbered else []
        self.tls: ssl.SSLContext | None = None
        if args.tls:
            # whom it talks to is no question here
            self.tls = ssl._create_unverified_context()
        self.accepted = self.refused = 0
        self.waits: list[float] = []
        self.open = 0
        self.done = asyncio.get_running_loop().create_future()

    def wait(self) -> float:
        """Seconds until the next mail may go, at the rate asked for; 0 without one."""
        if not self.pace:
            return 0.0
        now = time.perf_counter()
        self.turn = max(self.turn + self.pace, now)
        return self.turn - now

    def finished(self) -> None:
        """A connection has nothing more to do."""
        self.open -= 1
        if self.open == 0 and not self.done.done():
            self.done.set_result(None)


class Client(asyncio.Protocol):
    """One connection: a command, its reply, the next command."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.buffer = bytearray()
        self.transport: asyncio.Transport
        self.step = self._greeted
        self.rcpt = 0
        self.sent_at = 0.0
        self.number = 0
        self.quitting = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        for line in final_lines(self.buffer):
            self.step(line)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.quitting:
            self.run.refused += 1
            again(self.run)
        elif not self.run.reuse and self.run.left > 0:
            again(self.run)
        else:
            self.run.finished()

    def _greeted(self, line: bytes) -> None:
        self.transport.write(b"EHLO bench.example\r\n")
        self.step = self._next

    def _next(self, line: bytes) -> None:
        if self.run.left <= 0:
            self._quit()
            return
        self.run.left -= 1
        self.number = self.run.left
        self.rcpt = 0
        self.step = self._sender_taken
        wait = self.run.wait()
        if wait:
            asyncio.get_running_loop().call_later(wait, self._mail)
        else:
            self._mail()

    def _mail(self) -> None:
        self.transport.write(b"MAIL FROM:<" + SENDER.encode() + b">\r\n")

    def _sender_taken(self, line: bytes) -> None:
        if line[:1] != b"2":
            self._refused(line)
        elif self.rcpt < len(self.run.recipients):
            self.transport.write(self.run.recipients[self.rcpt])
            self.rcpt += 1
        else:
            self.transport.write(b"DATA\r\n")
            self.step = self._content

    def _content(self, line: bytes) -> None:
        if line[:1] != b"3":
            self._refused(line)
            return
        self.sent_at = time.perf_counter()
        number = NUMBER + b"%d\r\n" % self.number if self.run.numbered else b""
        self.transport.write(number + self.run.content)
        self.step = self._kept

    def _kept(self, line: bytes) -> None:
        now = time.perf_counter()
        self.run.waits.append(now - self.sent_at)
        if line[:1] == b"2":
            self.run.accepted += 1
            if self.run.numbered:
                self.run.promised[self.number] = now
        else:
            self.run.refused += 1
        if self.run.reuse:
            self._next(line)
        else:
            self._quit()

    def _refused(self, line: bytes) -> None:
        self.run.refused += 1
        if self.run.refused < 5:
            sys.stderr.write(f"refused: {line.decode('ascii', 'replace')}\n")
        self.transport.write(b"RSET\r\n")
        self.step = self._next

    def _quit(self) -> None:
        self.quitting = True
        self.transport.write(b"QUIT\r\n")
        self.step = lambda line: self.transport.close()


def again(run: Run) -> None:
    """Open the next connection in the place of one that ended."""
    task = asyncio.ensure_future(connect(run))
    task.add_done_callback(lambda done: done.exception())


async def connect(run: Run) -> None:
    """One connection; a refused one counts and ends."""
    try:
        await asyncio.get_running_loop().create_connection(lambda: Client(run), *run.target, ssl=run.tls)
    except OSError as error:
        sys.stderr.write(f"cannot connect: {error}\n")
        run.refused += 1
        run.left -= 1
        run.finished()


async def main(args: argparse.Namespace) -> None:
    """Send, then print what came of it."""
    run = Run(args)
    run.open = args.connections
    started = time.perf_counter()
    await asyncio.gather(*(connect(run) for _ in range(args.connections)))
    async with asyncio.timeout(args.timeout):
        await run.done
    seconds = time.perf_counter() - started
    waits = sorted(run.waits) or [0.0]
    result = {
        "seconds": seconds,
        "accepted": run.accepted,
        "refused": run.refused,
        "p50": waits[len(waits) // 2],
        "p99": waits[int(len(waits) * 0.99)],
    }
    if run.numbered:
        args.times.write_text(json.dumps(run.promised))
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--connections", type=int, default=20)
    parser.add_argument("--recipients", type=int, default=1)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--new-connections", action="store_true", help="a new connection for each mail")
    parser.add_argument("--timeout", type=float, default=300.0)
    parser.add_argument("--rate", type=float, help="mails a second; absent: as many as go through")
    parser.add_argument("--tls", action="store_true", help="TLS from the first octet, certificate not verified")
    parser.add_argument("--times", type=Path, help="number the mails, and write down when each was promised")
    uvloop.run(main(parser.parse_args()))
