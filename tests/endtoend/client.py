"""A small SMTP client that remembers what it was promised."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Self

Reply = tuple[int, str]
GONE: Reply = (0, "the daemon closed the connection")


class Client:
    """One connection. A connection that is gone answers GONE instead of raising."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def __aenter__(self) -> Self:
        try:
            await self.connect()
        except BaseException:
            # cancelled while it waits: a transport that nobody closes fails whatever test runs when it is collected
            if hasattr(self, "writer"):
                self.writer.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def connect(self) -> Reply:
        """Connect and say EHLO; the last reply."""
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        greeting = await self.reply()
        return await self.say("EHLO client.test") if greeting[0] == 220 else greeting

    async def close(self) -> None:
        """Close without QUIT."""
        self.writer.close()

    async def reply(self) -> Reply:
        """The next reply, its lines joined by LF."""
        lines = []
        try:
            while True:
                line = (await self.reader.readline()).decode()
                if not line.endswith("\r\n"):
                    return GONE
                lines.append(line[4:-2])
                if line[3:4] != "-":
                    return int(line[:3]), "\n".join(lines)
        except ConnectionError:
            return GONE

    async def say(self, command: str) -> Reply:
        """Send one line; its reply."""
        self.writer.write(command.encode() + b"\r\n")
        return await self.reply()

    async def send(self, sender: str, recipients: Sequence[str], content: bytes) -> Reply:
        """One whole mail; the reply after the final dot, or the first one that is no success."""
        for command in (f"MAIL FROM:<{sender}>", *(f"RCPT TO:<{each}>" for each in recipients), "DATA"):
            answer = await self.say(command)
            if answer[0] not in (250, 354):
                return answer
        self.writer.write(content.replace(b"\r\n.", b"\r\n..") + b".\r\n")
        return await self.reply()


def mail(subject: str = "hello", sender: str = "app@example.com", *, size: int = 0) -> bytes:
    """A small mail, padded to about `size` octets."""
    head = (
        f"From: App <{sender}>\r\nTo: someone@example.org\r\nSubject: {subject}\r\n"
        f"Date: Sun, 22 Nov 2026 01:00:00 +0000\r\nMessage-ID: <{subject}@example.com>\r\n\r\n"
    ).encode()
    line = b"Thank you for your order, it is on its way to you by now.\r\n"
    return head + line * max(1, (size - len(head)) // len(line))


def subject_of(content: bytes) -> str:
    """The subject of a mail made by `mail`."""
    return content.partition(b"Subject: ")[2].partition(b"\r\n")[0].decode()


def id_of(answer: Reply) -> str:
    """The id in "OK queued as ID"."""
    assert answer[0] == 250, answer
    return answer[1].rpartition(" ")[2]


async def send_one(port: int, sender: str, *recipients: str, content: bytes | None = None) -> str:
    """Hand over one mail in a connection of its own; its id."""
    async with Client(port) as client:
        answer = await client.send(sender, recipients, content or mail())
        await client.say("QUIT")
    return id_of(answer)
