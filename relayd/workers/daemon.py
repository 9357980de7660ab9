"""The daemon: signals, reload, stop, for one process or several; what the service manager and operators see.

How it is started is start.py's, how workers are kept running supervisor.py's, what one does app.py's.
"""

from __future__ import annotations

import asyncio
import pickle
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import structlog
import uvloop

from relayd import logs
from relayd.control import ControlError, ControlServer, supervisor_socket
from relayd.sockets import BindError
from relayd.spool.lock import DataLock
from relayd.systemd import Notifier, feed_watchdog, inherited
from relayd.workers.channel import read_memory
from relayd.workers.examination import ExaminationError, examine
from relayd.workers.orders import Handover, Orders, Report
from relayd.workers.scheduling import interrupt_nobody
from relayd.workers.supervisor import Supervisor, WorkerFailedError

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

    async def reload(self, orders: Orders) -> None:
        """Raises BindError or WorkerFailedError with everything as it was."""

    async def stop(self) -> None:
        """Drain within `shutdown`."""

    def kill(self) -> None:
        """End at once."""

    def healthy(self) -> bool:
        """Worth feeding the watchdog."""

    async def status(self) -> dict[str, Any]:
        """Facts for `relayd status`."""


class Daemon:
    """What is the same for one process and several: signals, control socket, service manager."""

    def __init__(
        self,
        orders: Orders,
        config_path: Path,
        staff: Staff,
        notifier: Notifier,
        *,
        greet: bool = False,
        program: str | None = None,
    ) -> None:
        """`greet`: say where it listens even where the log is no terminal. `program`: how relayd was called."""
        self._orders = orders
        self._greet = greet
        self._program = program
        self._config_path = config_path
        self._staff = staff
        self._notifier = notifier
        self._log = structlog.get_logger("relayd.daemon")
        self._stopping = asyncio.Event()
        self._started = False
        self._hang_ups = asyncio.Event()
        self._reloading = asyncio.Lock()
        self._control = ControlServer(
            supervisor_socket(orders.data_dir),
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
        self._log.info("ready", listening=addresses, data_dir=str(self._orders.data_dir))
        if self._greet or logs.is_console(self._orders.log):
            # what it takes to read a configuration is loaded for people only, who are not there where memory is short
            from relayd.workers.sealing import unseal  # noqa: PLC0415
            from relayd.workers.welcome import command_line, welcome  # noqa: PLC0415

            command = command_line(self._config_path, self._program)
            sys.stderr.write(welcome(unseal(self._orders.sealed), addresses, command))
            sys.stderr.flush()
        self._notifier.keep(self._staff.listening())
        self._notifier.ready(_standing(addresses))

    async def _wind_down(self, tasks: list[asyncio.Task[None]]) -> None:
        self._notifier.stopping(self._orders.shutdown + 10)
        self._log.info("stopping", within=self._orders.shutdown)
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
            try:
                await self.reload()
            except ControlError:
                pass  # told in the log by reload
            except Exception:  # noqa: BLE001 - the next SIGHUP must find somebody who listens
                self._log.exception("not_reloaded")

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
        report = await self._examined(self._config_path)
        new = report.orders
        if new is None:
            raise ControlError("the new configuration is faulty, nothing was changed", list(report.faults))
        try:
            await self._staff.reload(new)
        except (BindError, WorkerFailedError) as error:
            raise ControlError(f"nothing was changed: {error}") from error
        self._orders = new
        logs.setup(new.log, secrets=new.log.secrets)
        return list(report.changes)

    async def _examined(self, path: Path) -> Report:
        """A look at a file, its warnings logged. Raises ControlError where none is possible."""
        try:
            report = await examine(path, self._orders)
        except ExaminationError as error:
            raise ControlError(f"nothing was changed: {error}") from error
        if report.orders is not None:
            for fault in report.warnings:
                self._log.warning("configuration", fault=fault)
        return report

    async def _diff_verb(self, args: dict[str, Any]) -> list[str]:
        report = await self._examined(Path(str(args.get("file", ""))))
        if report.orders is None:
            raise ControlError("the configuration is faulty", list(report.faults))
        return list(report.changes)

    async def _reload_verb(self, args: dict[str, Any]) -> list[str]:
        return await self.reload()

    async def _status_verb(self, args: dict[str, Any]) -> dict[str, Any]:
        return await self._staff.status()


def run(
    staff: Callable[[Sequence[socket.socket]], Staff],
    orders: Orders,
    config_path: Path,
    *,
    greet: bool = False,
    program: str | None = None,
) -> int:
    """Serve until told to stop; the exit status. `staff` gets the sockets that listen already."""
    interrupt_nobody()
    notifier, sockets = Notifier.from_environment(), inherited()

    async def work() -> int:
        return await Daemon(orders, config_path, hired, notifier, greet=greet, program=program).run()

    try:
        hired = staff(sockets)
        return uvloop.run(work())
    except (BindError, WorkerFailedError, OSError) as error:
        structlog.get_logger("relayd.daemon").error("cannot_start", reason=str(error))
        return FAILED


def take_over(argv: Sequence[str]) -> int:
    """The supervisor's process, which `relayd serve` has become (start.py); the exit status.

    `argv`: a descriptor to read the handover from, and the configuration's path for those who look at processes.
    """
    handover = pickle.loads(read_memory(int(argv[0])))  # noqa: S301 - written by this very process before it became us
    if not isinstance(handover, Handover):
        raise TypeError("no handover")
    orders = handover.orders
    logs.setup(orders.log, secrets=orders.log.secrets)
    with DataLock.adopt(orders.data_dir / "lock", handover.lock) as lock:

        def staff(sockets: Sequence[socket.socket]) -> Staff:
            return Supervisor(orders, inherit=(lock.fileno(),), sockets=sockets)

        try:
            return run(staff, orders, handover.config_path, greet=handover.greet, program=handover.program)
        except Exception:  # noqa: BLE001 - nobody sits before a daemon: its log has to tell where it broke
            structlog.get_logger("relayd.daemon").exception("crashed")
            return FAILED


def _standing(addresses: dict[str, list[str]]) -> str:
    return "listening on " + ", ".join(address for each in addresses.values() for address in each)


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
