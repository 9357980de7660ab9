"""One process that does everything, without a supervisor: `workers: 1`. What is the same for several is daemon.py's."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Sequence
from typing import Any

import structlog

from relayd.config.models import Config
from relayd.sockets import Sockets, rebind, shares
from relayd.workers import settling
from relayd.workers.orders import Orders
from relayd.workers.sealing import unseal
from relayd.workers.supervisor import WorkerFailedError
from relayd.workers.worker import Application, Build


class Alone:
    """One process that does everything."""

    def __init__(self, config: Config, build: Build, *, sockets: Sequence[socket.socket] = ()) -> None:
        """Binds all sockets, save those that listen already: raises BindError."""
        self._config = config
        self._build = build
        [before] = shares(sockets, 1)
        self._sockets = rebind(config, before)
        _close_all_but(before, self._sockets)
        self._app: Application | None = None
        self._since = time.monotonic()
        self._stop: asyncio.Task[None] | None = None
        self._log = structlog.get_logger("relayd.daemon")

    @property
    def addresses(self) -> dict[str, list[str]]:
        return self._sockets.addresses()

    def listening(self) -> dict[str, socket.socket]:
        return self._sockets.named("worker0")

    async def start(self) -> None:
        try:
            app = self._build(self._config, slot=0, slots=1, sockets=self._sockets)
            await app.start()
            settling.settle()
        except Exception as error:
            # as a worker would tell its supervisor
            self._log.exception("worker_not_started")
            raise WorkerFailedError(f"{type(error).__name__}: {error}") from error
        self._app = app

    def abandon(self) -> None:
        """What was begun is finished first: half an application cannot be stopped in order."""

    async def reload(self, orders: Orders) -> None:
        if self._app is None:
            raise WorkerFailedError("it has not started")
        try:
            config = unseal(orders.sealed)
        except Exception as error:
            raise WorkerFailedError(f"the configuration cannot be taken over: {type(error).__name__}") from error
        new = rebind(config, self._sockets)
        try:
            await self._app.reload(config, new)
        except Exception as error:
            _close_all_but(new, self._sockets)
            self._log.exception("reload_failed")
            raise WorkerFailedError(f"{type(error).__name__}: {error}") from error
        old, self._sockets, self._config = self._sockets, new, config
        _close_all_but(old, new)

    async def stop(self) -> None:
        if self._app is None:
            return
        self._stop = asyncio.create_task(self._app.drain_and_stop(), name="drain and stop")
        # the application keeps to `shutdown` itself; this is for one that hangs, and for a second Ctrl-C
        _, left = await asyncio.wait({self._stop}, timeout=self._config.shutdown + 2)
        if left:
            self._log.error("stopping_took_too_long", seconds=self._config.shutdown)
            self.kill()
        try:
            await self._stop
        except asyncio.CancelledError:
            self._log.warning("not_drained")
        except Exception:  # noqa: BLE001 - what was accepted is on disk; the rest of the stopping goes on
            self._log.exception("stopping_failed")

    def kill(self) -> None:
        if self._stop is not None:
            self._stop.cancel()

    def healthy(self) -> bool:
        return True  # whoever asks does so from the very event loop

    async def status(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"worker": 0, "state": "ready", "seconds": round(time.monotonic() - self._since)}
        if self._app is not None:
            facts |= self._app.status()
        return {"listening": self.addresses, "workers": [facts]}


def _close_all_but(sockets: Sockets, kept: Sockets) -> None:
    keep = set(kept)
    for sock in sockets:
        if sock not in keep:
            sock.close()
