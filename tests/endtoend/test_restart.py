"""Restarts under a service manager that keeps the listening sockets: no client is refused, no mail is lost."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from pathlib import Path

import yaml

from relayd.spool.audit import audit
from tests.support.daemon import PATIENCE, local, settings
from tests.support.ports import free_port
from tests.support.service_manager import Manager


async def read(reader: asyncio.StreamReader) -> bytes:
    line = await reader.readline()
    while line[3:4] == b"-":
        line = await reader.readline()
    return line


async def one_mail(port: int) -> str:
    """A mail on a connection of its own; its id once it was promised, "" where the daemon said to come again."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)  # a refused connection fails the test
    try:
        for command in (b"", b"EHLO x.example", b"MAIL FROM:<a@example.com>", b"RCPT TO:<b@example.org>", b"DATA"):
            writer.write(command + b"\r\n" if command else b"")
            if not (await read(reader)).startswith((b"2", b"3")):
                return ""
        writer.write(b"Subject: restart\r\n\r\nhello\r\n.\r\n")
        reply = (await read(reader)).decode()
        return reply.split()[-1] if reply.startswith("250") else ""
    except ConnectionError:
        return ""  # dropped, not refused: killed in the middle, and the app sends again
    finally:
        writer.close()


async def sending(port: int, promised: list[str], end: asyncio.Event) -> None:
    while not end.is_set():
        number = await one_mail(port)
        if number:
            promised.append(number)
        await asyncio.sleep(0.01)


async def more(promised: Sequence[str], count: int) -> None:
    """Wait for so many promises more."""
    wanted = len(promised) + count
    async with asyncio.timeout(PATIENCE):
        while len(promised) < wanted:  # noqa: ASYNC110 - what grows is a plain list
            await asyncio.sleep(0.02)


async def test_no_client_is_refused_while_the_daemon_restarts(tmp_path: Path) -> None:
    """Two workers, then one; the trial `restart` does it with any number, again and again."""
    port = free_port()
    listener = local(bind=[f"127.0.0.1:{port}"])
    config = tmp_path / "relayd.yaml"
    config.write_text(yaml.safe_dump(settings(listeners=[listener], workers=2)))
    manager, end = Manager(tmp_path), asyncio.Event()
    promised: list[str] = []
    senders: list[asyncio.Task[None]] = []
    try:
        await manager.start(config)
        assert len(manager.store) == 2
        senders = [asyncio.create_task(sending(port, promised, end), name=f"sender {n}") for n in range(4)]
        await more(promised, 5)
        for how in (signal.SIGTERM, signal.SIGKILL):
            await manager.stop(how)
            await manager.start(config)
            await more(promised, 5)
        end.set()
        await asyncio.gather(*senders)
        # one process less: what it would accept from goes, and everybody is still served
        config.write_text(yaml.safe_dump(settings(listeners=[listener], workers=1)))
        await manager.stop()
        await manager.start(config)
        assert len(manager.store) == 1
        async with asyncio.timeout(PATIENCE):
            assert all([await one_mail(port) for _ in range(8)])
    finally:
        for sender in senders:
            sender.cancel()
        await asyncio.gather(*senders, return_exceptions=True)
        await manager.close()
    report = audit(tmp_path / "data" / "spool")
    assert report.clean
    assert report.messages >= len(promised)
