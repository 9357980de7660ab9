"""Trial: mails that hide another one behind what careless servers take for the end of a message.

A whole daemon between a hostile client and an upstream whose connections are read again by careless servers of many
kinds (CVE-2023-51764, -51765, -51766): each of them must find the mails that were accepted, and no other.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from tests.support.daemon import PATIENCE, Daemon, local, smtp_upstream
from tests.support.fake_upstream import FakeUpstream
from tests.torture.trial import Context, Figures, Trial

MAILS = 40
"""In one round."""
SIZE = 4096
"""Octets that the listeners take."""
KNOWN = (
    b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r.\r\n", b"\r\n.\r", b"\n\r.\n\r", b"\r\n.\r\r\n",
    b"\r\n\0.\r\n", b"\r\n.\0\r\n", b"\r\n\0.\0\r\n", b"\r\n.\r\0\n", b"\n\0.\n",
    b"\r\n. \r\n", b"\r\n .\r\n", b"\r\n..\r\n", b"\r\n...\r\n", b"\r\n\r\n",
)  # fmt: skip
"""Ends that are none. What follows a real one are the client's own commands: there is nothing to smuggle."""
_ATOMS = (b"\r", b"\n", b"\r\n", b".", b".", b"\0", b" ", b"x", b"\t")

_BARE = re.compile(rb"\r(?!\n)|(?<!\r)\n")
_MIXED = rb"(?:\r\n|\r|\n)\.(?:\r\n|\r|\n)"


@dataclass(frozen=True, slots=True)
class Careless:
    """A server that reads what goes over the wire in its own way."""

    end: re.Pattern[bytes]
    heard: Callable[[bytes], bytes] = bytes

    def senders(self, octets: bytes) -> list[str]:
        """Of all mails that it believes to get over a connection."""
        stream, found, position = self.heard(octets), [], 0
        while (stop := stream.find(b"\n", position)) >= 0:
            line, position = stream[position:stop].strip().upper(), stop + 1
            if line.startswith(b"MAIL FROM:<"):
                found.append(line[11:].partition(b">")[0].decode("utf-8", "replace").lower())
            elif line == b"DATA":
                end = self.end.search(stream, max(0, position - 2))
                if end is None:
                    break
                position = end.end()
        return found


READERS = {
    "by the book": Careless(re.compile(rb"\r\n\.\r\n")),
    "LF ends a line": Careless(re.compile(rb"\n\.\r?\n")),
    "CR or LF ends a line": Careless(re.compile(_MIXED)),
    "NUL is dropped": Careless(re.compile(_MIXED), lambda octets: octets.replace(b"\0", b"")),
    "CR is dropped": Careless(re.compile(rb"\n\.\n"), lambda octets: octets.replace(b"\r", b"")),
    "space at the end is dropped": Careless(re.compile(rb"\r?\n\.[ \t\0]*\r?\n")),
}


class Hostile:
    """The client. `promised`: senders of mails that were answered 250."""

    def __init__(self, context: Context, daemon: Daemon) -> None:
        self.context = context
        self.rng = context.rng
        self.daemon = daemon
        self.promised: list[str] = []
        self.answers: Counter[str] = Counter()
        self._numbers = itertools.count()

    def false_end(self) -> bytes:
        """One that is known, or one that is made up."""
        found = self.rng.choice(KNOWN)
        while self.rng.random() < 0.7 or b"\r\n.\r\n" in found:
            found = b"".join(self.rng.choice(_ATOMS) for _ in range(self.rng.randrange(2, 8)))
        return found

    async def one(self, end: bytes, listener: str, *, chunks: bool, oversize: bool) -> None:
        """Send a mail with another one hidden behind a false end."""
        number = next(self._numbers)
        sender = f"real-{number}@example.com"
        hidden = b"MAIL FROM:<evil@example.com>\r\nRCPT TO:<victim@example.net>\r\nDATA\r\nSubject: evil\r\n\r\nx\r\n"
        padding = b"x" * 70 + b"\r\n"
        content = b"Subject: real\r\n\r\n" + padding * (SIZE // 60 if oversize else 1) + b"body" + end + hidden
        reader, writer = await asyncio.open_connection("127.0.0.1", self.daemon.port_of(listener))
        try:
            async with asyncio.timeout(PATIENCE):
                await self._dialogue(reader, writer, sender, content, chunks=chunks)
        except ConnectionError:
            self.answers["closed"] += 1
        finally:
            writer.close()

    async def _dialogue(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sender: str, content: bytes, *, chunks: bool
    ) -> None:
        await _reply(reader)
        for command in (b"EHLO x", f"MAIL FROM:<{sender}>".encode(), b"RCPT TO:<person@example.net>"):
            writer.write(command + b"\r\n")
            await _reply(reader)
        if chunks:
            octets, replies = self._in_chunks(content)
        else:
            writer.write(b"DATA\r\n")
            await _reply(reader)
            octets, replies = content + b"\r\n.\r\n", 1
        for piece in self._pieces(octets):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        for _ in range(replies):
            answer = await _reply(reader)
        self.answers[answer[:3]] += 1
        if answer.startswith("250"):
            self.promised.append(sender)

    def _in_chunks(self, content: bytes) -> tuple[bytes, int]:
        """As BDAT (RFC 3030) in up to four chunks; and the replies to wait for."""
        edges = sorted({0, len(content), *(self.rng.randrange(len(content)) for _ in range(self.rng.randrange(4)))})
        parts, replies = [], len(edges) - 1
        for begin, end in itertools.pairwise(edges):
            last = b" LAST" if end == len(content) else b""
            parts.append(b"BDAT %d%b\r\n%b" % (end - begin, last, content[begin:end]))
        return b"".join(parts), replies

    def _pieces(self, octets: bytes) -> list[bytes]:
        """As packets: cut anywhere, most of all near a dot."""
        dots = [found.start() for found in re.finditer(rb"\.", octets)]
        near = [place + self.rng.randrange(-3, 4) for place in dots if self.rng.random() < 0.7]
        cuts = near + [self.rng.randrange(len(octets)) for _ in range(self.rng.randrange(4))]
        edges = sorted({0, len(octets), *(min(max(cut, 0), len(octets)) for cut in cuts)})
        return [octets[begin:end] for begin, end in itertools.pairwise(edges)]


async def _reply(reader: asyncio.StreamReader) -> str:
    while line := await reader.readline():
        if line[3:4] != b"-":
            return line.decode()
    raise ConnectionResetError


def _judge(context: Context, upstream: FakeUpstream, promised: list[str]) -> None:
    """What went over the wire, as every kind of server reads it."""
    for octets in map(bytes, upstream.heard):
        bare = _BARE.search(octets)
        context.promise(not bare, f"a bare newline reached the upstream: {bare and octets[bare.start() - 20 :][:60]!r}")
    for name, reader in READERS.items():
        found = [sender for octets in upstream.heard for sender in reader.senders(bytes(octets))]
        context.promise(
            sorted(found) == sorted(promised), f"where {name}: {set(found) ^ set(promised)}, {len(found)} mails"
        )


async def _rounds(context: Context) -> Figures:
    async with FakeUpstream() as upstream:
        listeners = [
            local(name, bare_newlines=name, message_size=f"{SIZE // 1024}KiB") for name in ("refuse", "normalise")
        ]
        section = {"acme": smtp_upstream(upstream)}
        async with Daemon(context.directory, {"listeners": listeners, "upstreams": section}) as daemon:
            client = Hostile(context, daemon)
            ways = [
                (end, listener, chunks, oversize)
                for end in KNOWN
                for listener in ("refuse", "normalise")
                for chunks in (False, True)
                for oversize in (False, True)
            ]
            for number in context.rounds():
                batch = ways[number * MAILS : (number + 1) * MAILS]
                while len(batch) < MAILS:
                    chance = context.rng.random
                    listener = context.rng.choice(("refuse", "normalise"))
                    batch.append((client.false_end(), listener, chance() < 0.4, chance() < 0.1))
                for end, listener, chunks, oversize in batch:
                    await client.one(end, listener, chunks=chunks, oversize=oversize)
            await daemon.until(lambda: len(upstream.accepted) >= len(client.promised), "all mail arrives")
            _judge(context, upstream, client.promised)
            assert await daemon.stop() == 0
            context.promise(daemon.audit().clean, "the audit is not clean")
            figures = {f"answered {code}": count for code, count in sorted(client.answers.items())}
            return {"mails sent": client.answers.total(), "mails that arrived": len(upstream.accepted)} | figures


TRIAL = Trial("smuggling", 1, "A message ends where RFC 5321 says, for us and for whoever reads it next.", _rounds)
