"""A service manager that keeps listening sockets for the next start, as far as systemd does it: no more than that."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

from tests.support.daemon import PATIENCE

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
        log, mail_log = ((self.directory / name).open("ab") for name in ("daemon.log", "mail.log"))
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
            stdout=mail_log,
            stderr=log,
            start_new_session=True,
            env=os.environ | {"NOTIFY_SOCKET": str(self.directory / "notify")},
        )
        log.close()
        mail_log.close()
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
