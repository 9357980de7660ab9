"""Restarts under a service manager that keeps the listening sockets: no client is refused, no mail is lost."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from relayd.spool.audit import audit
from tests.support.daemon import PATIENCE, local, settings

LAUNCH = """
import os, sys
fds = [int(fd) for fd in sys.argv[1].split(",") if fd]
high = [os.dup(fd) for fd in fds]
while any(fd < 3 + len(fds) for fd in high):
    high = [os.dup(fd) for fd in high]
for place, fd in enumerate(high):
    os.dup2(fd, 3 + place, inheritable=True)
for fd in fds:
    if fd >= 3 + len(fds):
        os.close(fd)
os.environ |= {"LISTEN_FDS": str(len(fds)), "LISTEN_PID": str(os.getpid()), "LISTEN_FDNAMES": sys.argv[2]}
os.execv(sys.executable, [sys.executable, "-m", "relayd", "serve", "--config", sys.argv[3]])
"""


class Manager:
    """The part of systemd that counts here: it hears READY, and keeps what it is sent until the next start."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.store: dict[str, int] = {}
        self.ready = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(directory / "notify"))
        asyncio.get_running_loop().add_reader(self._socket, self._hear)
        self.process: asyncio.subprocess.Process | None = None

    def _hear(self) -> None:
        message, fds, _, _ = socket.recv_fds(self._socket, 4096, 8)
        said = dict(line.split("=", 1) for line in message.decode().splitlines())
        self.ready += "READY" in said
        if "FDSTOREREMOVE" in said and (fd := self.store.pop(said["FDNAME"], None)) is not None:
            os.close(fd)
        if "FDSTORE" in said:
            [self.store[said["FDNAME"]]] = fds

    async def start(self, config: Path) -> None:
        log = (self.directory / "daemon.log").open("ab")
        before = self.ready
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            LAUNCH,
            ",".join(map(str, self.store.values())),
            ":".join(self.store),
            str(config),
            pass_fds=tuple(self.store.values()),
            stdin=asyncio.subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
            env=os.environ | {"NOTIFY_SOCKET": str(self.directory / "notify")},
        )
        log.close()
        async with asyncio.timeout(PATIENCE):
            while self.ready == before:
                assert self.process.returncode is None, (self.directory / "daemon.log").read_text()
                await asyncio.sleep(0.02)

    async def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """SIGTERM goes to the main process, SIGKILL to all of the service's."""
        assert self.process is not None
        if how is signal.SIGKILL:
            os.killpg(self.process.pid, how)
        else:
            self.process.send_signal(how)
        async with asyncio.timeout(PATIENCE):
            await self.process.wait()

    async def close(self) -> None:
        if self.process is not None and self.process.returncode is None:
            await self.stop()
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        for fd in self.store.values():
            os.close(fd)


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


@pytest.mark.parametrize("workers", [1, 2])
async def test_no_client_is_refused_while_the_daemon_restarts(workers: int, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    listener = local(bind=[f"127.0.0.1:{port}"])
    config = tmp_path / "relayd.yaml"
    config.write_text(yaml.safe_dump(settings(listeners=[listener], workers=workers)))
    manager, end = Manager(tmp_path), asyncio.Event()
    promised: list[str] = []
    senders: list[asyncio.Task[None]] = []
    try:
        await manager.start(config)
        assert len(manager.store) == workers
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
