"""`relayd serve`: start, signals, reload, stop, for one process or several; what the service manager and operators see.

How workers are kept running is supervisor.py's; what one does is app.py's.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import structlog
import uvloop

from relayd import logs
from relayd.config.diff import changes
from relayd.config.load import ConfigError, examine
from relayd.config.models import Config
from relayd.control import ControlError, ControlServer, supervisor_socket
from relayd.sockets import BindError, Sockets, rebind, shares
from relayd.spool.lock import AlreadyRunningError, DataLock
from relayd.spool.store import StoreError
from relayd.systemd import Notifier, feed_watchdog, inherited
from relayd.workers import garbage
from relayd.workers.groundwork import prepare
from relayd.workers.supervisor import Supervisor, WorkerFailedError
from relayd.workers.welcome import command_line, welcome
from relayd.workers.worker import Application, Build

FAILED = 1
_START_PATIENCE = 300.0


class Staff(Protocol):
    """Whoever does the work: this process alone, or a supervisor's workers."""

    @property
    def addresses(self) -> dict[str, list[str]]:
        """Where each listener really listens."""

    def listening(self) -> dict[str, socket.socket]:
        """All listening sockets, by a name each."""

    async def start(self) -> None:
        """Raises what makes it impossible."""

    def abandon(self) -> None:
        """Give up starting as soon as that is possible."""

    async def reload(self, config: Config) -> None:
        """Raises BindError or WorkerFailedError with everything as it was."""

    async def stop(self) -> None:
        """Drain within `shutdown`."""

    def kill(self) -> None:
        """End at once."""

    def healthy(self) -> bool:
        """Worth feeding the watchdog."""

    async def status(self) -> dict[str, Any]:
        """Facts for `relayd status`."""


class Alone:
    """One process that does everything."""

    def __init__(
        self, config: Config, config_path: Path, build: Build, *, sockets: Sequence[socket.socket] = ()
    ) -> None:
        """Binds all sockets, save those that listen already: raises BindError."""
        self._config = config
        self._config_path = config_path
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
            app = self._build(self._config, config_path=self._config_path, slot=0, slots=1, sockets=self._sockets)
            await app.start()
            garbage.settle()
        except Exception as error:
            # as a worker would tell its supervisor
            self._log.exception("worker_not_started")
            raise WorkerFailedError(f"{type(error).__name__}: {error}") from error
        self._app = app

    def abandon(self) -> None:
        """What was begun is finished first: half an application cannot be stopped in order."""

    async def reload(self, config: Config) -> None:
        if self._app is None:
            raise WorkerFailedError("it has not started")
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


class Daemon:
    """What is the same for one process and several: signals, control socket, service manager."""

    def __init__(
        self, config: Config, config_path: Path, staff: Staff, notifier: Notifier, *, greet: bool = False
    ) -> None:
        self._config = config
        self._greet = greet
        self._config_path = config_path
        self._staff = staff
        self._notifier = notifier
        self._log = structlog.get_logger("relayd.daemon")
        self._stopping = asyncio.Event()
        self._started = False
        self._hang_ups = asyncio.Event()
        self._reloading = asyncio.Lock()
        self._control = ControlServer(
            supervisor_socket(config.data_dir),
            {"reload": self._reload_verb, "status": self._status_verb, "config.diff": self._diff_verb},
        )

    async def run(self) -> int:
        """Serve until told to stop; the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop_signal, number)
        loop.add_signal_handler(signal.SIGHUP, self._hang_ups.set)
        self._notifier.starting(_START_PATIENCE, "starting")
        tasks: list[asyncio.Task[None]] = []
        try:
            await self._staff.start()
            self._started = True
            await self._control.start()
            tasks = [
                asyncio.create_task(feed_watchdog(self._notifier, self._staff.healthy), name="feed the watchdog"),
                asyncio.create_task(self._reload_on_hang_up(), name="reload on SIGHUP"),
            ]
            if not self._stopping.is_set():
                self._ready()
            await self._stopping.wait()
        except (OSError, WorkerFailedError) as error:
            if self._stopping.is_set():
                return 0
            self._log.error("cannot_start", reason=str(error))
            return FAILED
        finally:
            await self._wind_down(tasks)
        return 0

    def _ready(self) -> None:
        addresses = self._staff.addresses
        self._log.info("ready", listening=addresses, data_dir=str(self._config.data_dir))
        if self._greet or logs.is_console(self._config.log):
            sys.stderr.write(welcome(self._config, addresses, command_line(self._config_path)))
            sys.stderr.flush()
        self._notifier.keep(self._staff.listening())
        self._notifier.ready(_standing(addresses))

    async def _wind_down(self, tasks: list[asyncio.Task[None]]) -> None:
        self._notifier.stopping(self._config.shutdown + 10)
        self._log.info("stopping", within=self._config.shutdown)
        feeder, others = tasks[:1], tasks[1:]
        await _cancel(others)
        await self._control.close()
        await self._staff.stop()
        # fed to the last: a drain that takes longer than the watchdog's limit is no hang
        await _cancel(feeder)
        self._log.info("stopped")
        self._notifier.close()

    def _stop_signal(self, number: signal.Signals) -> None:
        # Only a second Ctrl-C is impatience. SIGTERM comes twice from whoever sends it to a process and to its group.
        if self._stopping.is_set() and number is signal.SIGINT:
            self._log.warning("stopped_at_once")
            self._staff.kill()
        self._stopping.set()
        if not self._started:
            self._staff.abandon()

    # -- reload

    async def _reload_on_hang_up(self) -> None:
        while True:
            await self._hang_ups.wait()
            self._hang_ups.clear()
            with contextlib.suppress(ControlError):  # told in the log by reload
                await self.reload()

    async def reload(self) -> list[str]:
        """Read, check and apply the file; what changed. Raises ControlError, with everything as it was."""
        async with self._reloading:
            self._notifier.reloading()
            result = "running"
            try:
                done = await self._reload()
            except ControlError as error:
                result = f"running with the old configuration: {error}"
                self._log.error("not_reloaded", reason=str(error), faults=error.faults)
                raise
            else:
                result = _standing(self._staff.addresses)
                self._notifier.keep(self._staff.listening())
                self._log.info("reloaded", changes=done)
                return done
            finally:
                self._notifier.ready(result)

    async def _reload(self) -> list[str]:
        new = await self._examined(self._config_path, "the new configuration is faulty, nothing was changed")
        done = [str(change) for change in changes(self._config, new)]
        # these hold for the life of the daemon; `done` says that they need a restart
        new = new.model_copy(update={name: getattr(self._config, name) for name in ("data_dir", "workers")})
        try:
            await self._staff.reload(new)
        except (BindError, WorkerFailedError) as error:
            raise ControlError(f"nothing was changed: {error}") from error
        self._config = new
        logs.setup(new.log, secrets=logs.secrets_of(new))
        return done

    async def _examined(self, path: Path, complaint: str) -> Config:
        """A file's configuration, its warnings logged. Raises ControlError with its faults."""
        # reading key files and checking them takes tens of milliseconds: not on the loop that carries mail
        examined = await asyncio.to_thread(examine, path)
        if examined.config is None:
            raise ControlError(complaint, [fault.written(path) for fault in examined.faults])
        for fault in examined.warnings:
            self._log.warning("configuration", fault=fault.written(path))
        return examined.config

    async def _diff_verb(self, args: dict[str, Any]) -> list[str]:
        path = Path(str(args.get("file", "")))
        new = await self._examined(path, "the configuration is faulty")
        return [str(change) for change in changes(self._config, new)]

    async def _reload_verb(self, args: dict[str, Any]) -> list[str]:
        return await self.reload()

    async def _status_verb(self, args: dict[str, Any]) -> dict[str, Any]:
        return await self._staff.status()


def serve(config_path: Path, *, greet: bool = False) -> int:
    """Run the daemon in the foreground; the exit status. Raises ConfigError when the file is faulty.

    `greet`: say where it listens and how to send a first mail even where the log is no terminal.
    """
    config_path = config_path.absolute()
    examined = examine(config_path)
    config = examined.config
    if config is None:
        raise ConfigError(config_path, examined.faults)
    logs.setup(config.log, secrets=logs.secrets_of(config))
    for fault in examined.warnings:
        structlog.get_logger("relayd.daemon").warning("configuration", fault=fault.written(config_path))
    notifier, sockets = Notifier.from_environment(), inherited()
    # a reload that is asked for before we listen is satisfied by the start itself; by default it would end us
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    _raise_file_limit()
    try:
        config.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        with DataLock(config.data_dir / "lock") as lock:
            prepare(config)
            staff = _staff(config, config_path, lock, sockets)

            async def run() -> int:
                return await Daemon(config, config_path, staff, notifier, greet=greet).run()

            return uvloop.run(run())
    except (AlreadyRunningError, BindError, StoreError, WorkerFailedError, OSError) as error:
        structlog.get_logger("relayd.daemon").error("cannot_start", reason=str(error))
        return FAILED


def _staff(config: Config, config_path: Path, lock: DataLock, sockets: Sequence[socket.socket]) -> Staff:
    if config.worker_count == 1:
        from relayd.app import App  # noqa: PLC0415 - all of it stays out of a supervisor's memory

        return Alone(config, config_path, App, sockets=sockets)
    return Supervisor(config, config_path, inherit=(lock.fileno(),), sockets=sockets)


def _raise_file_limit() -> None:
    """Shells give a process 1,024 files; the hard limit is what the administrator allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _standing(addresses: dict[str, list[str]]) -> str:
    return "listening on " + ", ".join(address for each in addresses.values() for address in each)


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
