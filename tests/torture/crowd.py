"""Clients that a relay does not like, in a process of their own: idle, slow by the octet, or without end.

`python -m tests.torture.crowd PORT KIND=COUNT …` attacks until its standard input closes; then it prints what it had.
What the relay makes of it is greedy.py's to judge. Strangers come from 127.1.0.0/16, who may send from 127.2.0.0/16.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress

MAIL = b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.org>\r\n"
PER_ADDRESS = 40
"""Connections of one address, so that the limit for each is not what stops them."""
DRIP = 1.0
"""Seconds between two octets."""

Octets = Callable[[], Iterator[bytes]]


def _endless(piece: bytes) -> Octets:
    return lambda: itertools.repeat(piece)


def _huge() -> Iterator[bytes]:
    """A mail of 40 MiB, again and again."""
    line = b"x" * 98 + b"\r\n"
    while True:
        yield from itertools.repeat(line * 655, 640)
        yield b".\r\n" + MAIL + b"DATA\r\n"


# kind → what is said first, whether each octet of what follows waits for its second, what follows
KINDS: dict[str, tuple[bytes, bool, Octets]] = {
    "idle": (b"", False, lambda: iter(())),
    "handshake": (
        b"EHLO x\r\n|STARTTLS\r\n",
        True,
        lambda: iter([b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 999]),
    ),
    "command": (b"", True, lambda: iter([b"EHLO " + b"x" * 200])),
    "login": (b"EHLO x\r\n|AUTH LOGIN\r\n", True, lambda: iter([b"QUJD" * 200])),
    "data": (b"EHLO x\r\n|" + MAIL + b"DATA\r\n", True, _endless(b"Subject: x\r\n")),
    "chunk": (b"EHLO x\r\n|" + MAIL + b"BDAT 100000\r\n", True, _endless(b"Subject: x\r\n")),
    "noop": (b"EHLO x\r\n|", False, _endless(b"NOOP\r\n" * 1000)),
    "rset": (b"EHLO x\r\n|", False, _endless(b"RSET\r\n" * 1000)),
    "rcpt": (
        b"EHLO x\r\n|MAIL FROM:<a@example.com>\r\n",
        False,
        lambda: itertools.chain.from_iterable(
            (b"RCPT TO:<r%d-%s@example.org>\r\n" % (number, b"x" * 40),) for number in range(100_000)
        ),
    ),
    "header": (b"EHLO x\r\n|" + MAIL + b"DATA\r\n", False, _endless(b"X-Endless: header\r\n" * 1000)),
    "line": (b"EHLO x\r\n|" + MAIL + b"DATA\r\n", False, _endless(b"x" * 16384)),
    "bdat": (b"EHLO x\r\n|" + MAIL, False, _endless(b"BDAT 16384\r\n" + b"x" * 16384)),
    "huge": (b"EHLO x\r\n|" + MAIL + b"DATA\r\n", False, _huge),
}
STRANGERS = ("idle", "handshake", "command", "login")
"""Kinds that need no permission."""


def address(kind: str, number: int) -> str:
    """Where one of them comes from; each kind from addresses of its own."""
    place = number // PER_ADDRESS
    return f"127.{1 if kind in STRANGERS else 2}.{list(KINDS).index(kind) * 16 + place // 250}.{place % 250 + 1}"


async def _pieces(octets: Iterator[bytes], slow: bool) -> AsyncIterator[bytes]:
    for piece in octets:
        if not slow:
            yield piece
            continue
        for octet in piece:
            yield bytes([octet])
            await asyncio.sleep(DRIP)


async def attack(port: int, kind: str, number: int, counts: Counter[str]) -> None:
    """One connection, and another one whenever it ends."""
    first, slow, octets = KINDS[kind]
    while True:
        with suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address(kind, number), 0))
            counts[f"{kind} connections"] += 1
            drain = asyncio.create_task(_read(reader, kind, counts), name=f"read {kind}")
            try:
                for turn in first.split(b"|"):
                    writer.write(turn)
                    await asyncio.sleep(0.05)
                async for piece in _pieces(octets(), slow):
                    writer.write(piece)
                    await writer.drain()
                    counts[f"{kind} octets"] += len(piece)
                    if drain.done():
                        break
                await drain
            finally:
                drain.cancel()
                writer.transport.abort()
        await asyncio.sleep(0.5)


async def _read(reader: asyncio.StreamReader, kind: str, counts: Counter[str]) -> None:
    with suppress(OSError):
        while line := await reader.readline():
            if line.startswith((b"421", b"452", b"552", b"554")):
                counts[f"{kind} {line[:9].decode('latin-1')}"] += 1


async def main(port: int, wanted: dict[str, int]) -> Counter[str]:
    """Attack until standard input is closed."""
    counts: Counter[str] = Counter()
    tasks = [
        asyncio.create_task(attack(port, kind, number, counts), name=f"{kind} {number}")
        for kind, count in wanted.items()
        for number in range(count)
    ]
    await asyncio.to_thread(sys.stdin.read)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return counts


if __name__ == "__main__":
    pairs = (each.partition("=") for each in sys.argv[2:])
    found = asyncio.run(main(int(sys.argv[1]), {kind: int(count) for kind, _, count in pairs}))
    sys.stdout.write(json.dumps(found) + "\n")
