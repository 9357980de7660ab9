"""A worker whose application answers each connection with facts about itself: for tests of the supervisor.

Its configuration steers it by `hostname`: "refuse.*" makes reload fail, "broken.*" makes start fail,
"wedge.*" makes a reload block the event loop for good, "slow.*" makes draining outlast any patience.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import Any

from relayd.config.models import Config
from relayd.sockets import Sockets
from relayd.workers.worker import main


class DummyApp:
    """Accepts on every socket; a client gets one line: slot, pid, hostname. Draining waits for what it says then."""

    def __init__(self, config: Config, *, slot: int, slots: int, sockets: Sockets) -> None:
        self.config = config
        self.slot = slot
        self.slots = slots
        self.sockets = sockets
        self.servers: dict[Any, asyncio.Server] = {}
        self.clients: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        if self.config.hostname.startswith("broken"):
            raise OSError("the dummy is broken, as asked")
        await self._serve(self.sockets)

    async def _serve(self, sockets: Sockets) -> None:
        for sock in sockets:
            if sock not in self.servers:
                self.servers[sock] = await asyncio.start_server(self._client, sock=sock)
        for gone in set(self.servers) - set(sockets):
            self.servers.pop(gone).close()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.clients.add(task)
        try:
            writer.write(f"{self.slot} {os.getpid()} {self.config.hostname}\n".encode())
            await writer.drain()
            if await reader.readline():
                writer.write(b"bye\n")
                await writer.drain()
            writer.close()
        except ConnectionError:
            return
        finally:
            self.clients.discard(task)

    async def reload(self, config: Config, sockets: Sockets) -> None:
        if config.hostname.startswith("refuse"):
            raise ValueError("the dummy refuses, as asked")
        if config.hostname.startswith("wedge"):
            time.sleep(1e6)  # noqa: ASYNC251 - blocking the loop is the point
        await self._serve(sockets)
        self.config = config

    async def drain_and_stop(self) -> None:
        for server in self.servers.values():
            server.close()
        if self.config.hostname.startswith("slow"):
            await asyncio.Event().wait()
        await asyncio.gather(*self.clients, return_exceptions=True)

    def status(self) -> dict[str, Any]:
        return {"clients": len(self.clients), "hostname": self.config.hostname, "slots": self.slots}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], lambda: DummyApp))
