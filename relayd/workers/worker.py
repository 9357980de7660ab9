"""One worker process under a supervisor: gets configuration and sockets over the channel, runs the App, answers.

Which workers there are, and what becomes of one that fails, is supervisor.py's.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import structlog
import uvloop

from relayd import logs
from relayd.config.models import Config
from relayd.config.secret import secrets_of
from relayd.sockets import Sockets
from relayd.workers import settling
from relayd.workers.channel import Channel, read_memory
from relayd.workers.sealing import unseal

BEAT = 1.0
"""Seconds between signs of life, sent from the event loop."""


class Application(Protocol):
    """What a worker runs: app.py's App, or a stand-in of the tests."""

    async def start(self) -> None:
        """Open everything and begin to serve. Raises what makes that impossible."""

    async def reload(self, config: Config, sockets: Sockets) -> None:
        """Apply a checked configuration. Raises before anything is changed.

        `sockets` holds those that stay, as the same objects, and new ones; what it lacks is to be closed.
        """

    async def drain_and_stop(self) -> None:
        """Take no more, finish what is under way within `shutdown`, close."""

    def status(self) -> dict[str, Any]:
        """Facts for `relayd status`."""


class Build(Protocol):
    """Makes the application."""

    def __call__(self, config: Config, *, slot: int, slots: int, sockets: Sockets) -> Application: ...


class Worker:
    """The conversation with the supervisor, around one application."""

    def __init__(self, sock: socket.socket, build: Build) -> None:
        self._channel = Channel(sock, self._receive, self._orphaned)
        self._build = build
        self._inbox: asyncio.Queue[tuple[dict[str, Any], list[int]]] = asyncio.Queue()
        self._app: Application | None = None
        self._config: Config | None = None
        self._sockets: Sockets | None = None
        self._log = structlog.get_logger("relayd.worker")

    async def run(self) -> int:
        """Serve until told to stop; the exit status."""
        loop = asyncio.get_running_loop()
        # Ctrl-C and a terminal's hang-up reach the whole process group: what to do about them the supervisor says
        for ignored in (signal.SIGINT, signal.SIGHUP):
            signal.signal(ignored, signal.SIG_IGN)
        loop.add_signal_handler(signal.SIGTERM, self._receive, {"do": "stop"}, [])
        self._channel.open()
        beat = asyncio.create_task(self._beat(), name="heartbeat")
        try:
            return await self._converse()
        finally:
            beat.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await beat
            self._channel.close()

    async def _converse(self) -> int:
        while True:
            message, fds = await self._inbox.get()
            match message["do"]:
                case "start":
                    if not await self._start(message, fds):
                        return 1
                case "reload":
                    await self._reload(message, fds)
                case "status":
                    status = self._app.status() if self._app is not None else {}
                    self._channel.send({"say": "status", "question": message["question"], "status": status})
                case "stop":
                    return await self._stop()

    async def _start(self, message: dict[str, Any], fds: list[int]) -> bool:
        slot = int(message["slot"])
        self._sockets = Sockets.adopt(message["sockets"], fds[1:])
        try:
            self._config = config = unseal(read_memory(fds[0]))
            logs.setup(config.log, secrets=secrets_of(config), slot=slot)
            self._app = self._build(config, slot=slot, slots=int(message["slots"]), sockets=self._sockets)
            await self._app.start()
            settling.settle()
        except Exception as error:  # noqa: BLE001 - whatever it is, the supervisor must hear of it
            self._log.exception("worker_not_started")
            self._channel.send({"say": "failed", "reason": f"{type(error).__name__}: {error}"[:1000]})
            return False
        self._channel.send({"say": "ready"})
        return True

    async def _reload(self, message: dict[str, Any], fds: list[int]) -> None:
        config, sockets = unseal(read_memory(fds[0])), Sockets.adopt(message["sockets"], fds[1:])
        if self._app is None or self._sockets is None:
            sockets.close()
            return
        sockets = self._sockets.keep(sockets)
        try:
            await self._app.reload(config, sockets)
        except Exception as error:  # noqa: BLE001 - the old configuration goes on, and the operator is told
            self._log.exception("reload_failed")
            text = f"{type(error).__name__}: {error}"[:1000]
            self._channel.send({"say": "reloaded", "question": message["question"], "error": text})
            return
        self._config, self._sockets = config, sockets
        slot = int(message["slot"])
        logs.setup(config.log, secrets=secrets_of(config), slot=slot)
        self._channel.send({"say": "reloaded", "question": message["question"], "error": None})

    async def _stop(self) -> int:
        self._channel.send({"say": "stopping"})
        if self._app is None or self._config is None:
            return 0
        try:
            # the application keeps to `shutdown` itself; this is for one that hangs
            async with asyncio.timeout(self._config.shutdown + 2):
                await self._app.drain_and_stop()
        except TimeoutError:
            self._log.error("stopping_took_too_long", seconds=self._config.shutdown)
            return 1
        except Exception:  # noqa: BLE001 - what was accepted is on disk, and the next start recovers it
            self._log.exception("stopping_failed")
            return 1
        return 0

    async def _beat(self) -> None:
        while True:
            self._channel.send({"say": "alive"})
            await asyncio.sleep(BEAT)

    def _receive(self, message: dict[str, Any], fds: list[int]) -> None:
        self._inbox.put_nowait((message, fds))

    def _orphaned(self) -> None:
        # the supervisor was killed: what is accepted is safe on disk, and a successor waits for our lock
        self._log.error("supervisor_gone")
        self._receive({"do": "stop"}, [])


def main(argv: Sequence[str], build: Callable[[], Build]) -> int:
    """The process; `argv`: the inherited descriptor of the supervisor's line.

    `build` gives what makes the application; it is called once logging is possible.
    """
    line = socket.socket(fileno=int(argv[0]))

    async def work() -> int:
        return await Worker(line, build()).run()

    return uvloop.run(work())
