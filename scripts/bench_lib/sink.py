"""A sink: takes every mail, keeps nothing but the count, which VRFY tells. Prints its port once it listens.

With --times every VRFY writes down when each numbered mail was taken. --port and --certificate: for TLS, and for an
upstream that comes back at the same place.
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

from bench_lib.dialogue import NUMBER

END = b"\r\n.\r\n"


class Sink(asyncio.Protocol):
    """One connection. Offers PIPELINING, so that a relay can show what it does with it."""

    count = 0
    times: Path | None = None
    taken: dict[int, float] = {}  # noqa: RUF012 - one sink, one process

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.content = False
        self.seen = 0
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        transport.write(b"220 sink.example ESMTP\r\n")

    def data_received(self, data: bytes) -> None:
        buffer = self.buffer
        buffer += data
        replies = []
        while True:
            if self.content:
                end = buffer.find(END, max(self.seen - 4, 0))
                if end < 0 and not buffer.startswith(b".\r\n"):
                    self.seen = len(buffer)
                    break
                if Sink.times is not None:
                    self._note(end)
                del buffer[: end + len(END) if end >= 0 else 3]
                self.content, self.seen = False, 0
                Sink.count += 1
                replies.append(b"250 2.0.0 taken\r\n")
                continue
            end = buffer.find(b"\n")
            if end < 0:
                break
            verb = bytes(buffer[:4]).upper()
            del buffer[: end + 1]
            replies.append(self._reply(verb))
        if replies:
            self.transport.write(b"".join(replies))

    def _note(self, end: int) -> None:
        start = self.buffer.find(NUMBER, 0, end)
        if start >= 0:
            number = int(self.buffer[start + len(NUMBER) : self.buffer.index(b"\r", start)])
            Sink.taken[number] = time.perf_counter()

    def _reply(self, verb: bytes) -> bytes:
        match verb:
            case b"MAIL" | b"RCPT" | b"RSET" | b"NOOP":
                return b"250 2.0.0 ok\r\n"
            case b"DATA":
                self.content = True
                return b"354 go on\r\n"
            case b"EHLO":
                return b"250-sink.example\r\n250-PIPELINING\r\n250-SIZE 104857600\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n"
            case b"VRFY":
                if Sink.times is not None:
                    Sink.times.write_text(json.dumps(Sink.taken))
                return b"252 %d\r\n" % Sink.count
            case b"QUIT":
                self.transport.write(b"221 2.0.0 bye\r\n")
                self.transport.close()
                return b""
            case _:
                return b"250 2.0.0 ok\r\n"


async def main(args: argparse.Namespace) -> None:
    """Serve until killed."""
    Sink.times = args.times
    context = None
    if args.certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(args.certificate, args.key)
    server = await asyncio.get_running_loop().create_server(Sink, "127.0.0.1", args.port, backlog=1024, ssl=context)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--certificate", type=Path)
    parser.add_argument("--key", type=Path)
    parser.add_argument("--times", type=Path, help="write down when each numbered mail was taken, at every VRFY")
    uvloop.run(main(parser.parse_args()))
