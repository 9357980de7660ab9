"""A sink: takes every mail, keeps nothing but the count, which VRFY tells. Prints its port once it listens."""

from __future__ import annotations

import asyncio
import sys

import uvloop

END = b"\r\n.\r\n"


class Sink(asyncio.Protocol):
    """One connection. Offers PIPELINING, so that a relay can show what it does with it."""

    count = 0

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
                return b"252 %d\r\n" % Sink.count
            case b"QUIT":
                self.transport.write(b"221 2.0.0 bye\r\n")
                self.transport.close()
                return b""
            case _:
                return b"250 2.0.0 ok\r\n"


async def main() -> None:
    """Serve until killed."""
    server = await asyncio.get_running_loop().create_server(Sink, "127.0.0.1", 0, backlog=1024)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
