"""Keeps the workers running: starts them, hears their signs of life, restarts those that end, reloads and stops all.

Sockets stay open here, so that while a worker restarts its clients wait instead of being refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from relayd.events.shared import SupervisorMetrics, clear
from relayd.sockets import Sockets, bind, rebind, shares
from relayd.workers import interpreter
from relayd.workers.channel import FDS_LIMIT, Channel, pair, write_memory
from relayd.workers.orders import Orders

Clock = Callable[[], float]


class WorkerFailedError(Exception):
    """Workers did not start, or would not take a configuration; the text says why."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the supervisor waits for what, in seconds."""

    heartbeat: float = 30.0
    """Silence of a worker's event loop after which it is killed."""
    start: float = 300.0
    """From spawn to ready: recovery of a big spool is work."""
    reload: float = 60.0
    first_wait: float = 1.0
    """Before a worker that ended is started again; doubles with each time …"""
    longest_wait: float = 30.0
    """… up to this …"""
    health: float = 60.0
    """… until one has lived this long."""


@dataclass(eq=False, slots=True)
class _Slot:
    """One worker's place: its sockets outlive the processes that use them."""

    number: int
    sockets: Sockets
    state: str = "starting"
    process: asyncio.subprocess.Process | None = None
    channel: Channel | None = None
    heard: float | None = None
    """When its process last gave a sign of life; None before the first one."""
    since: float = 0.0
    restarts: int = 0
    reason: str | None = None
    """What is wrong with the process that it has, or had last."""
    last_fault: str | None = None
    """Why it had to be started again."""
    told: Orders | None = None
    """What its process was told to start with, or has taken since; None before that."""
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    answers: dict[int, asyncio.Future[dict[str, Any]]] = field(default_factory=dict)


class Supervisor:
    """Several workers, each with its own sockets on the same ports."""

    def __init__(
        self,
        orders: Orders,
        *,
        inherit: Sequence[int] = (),
        sockets: Sequence[socket.socket] = (),
        command: Sequence[str] = (),
        patience: Patience | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        """`inherit`: descriptors that every worker holds too (the lock of data_dir, so that it outlives us).
        `sockets`: listening already, from the run before; those that the configuration has no more are closed.

        Binds all sockets: raises BindError. Raises OSError when the metrics directory cannot be made.
        """
        self._orders = orders
        self._inherit = tuple(inherit)
        self._command = tuple(command) or interpreter.command("worker")
        self._patience = patience or Patience()
        self._clock = clock
        self._log = structlog.get_logger("relayd.supervisor")
        self._metrics_dir = orders.data_dir / "run" / "metrics"
        clear(self._metrics_dir)
        self._metrics = SupervisorMetrics(self._metrics_dir)
        self._slots = [_Slot(number, sockets) for number, sockets in enumerate(_bind_all(orders, sockets))]
        self._stopping = asyncio.Event()
        self._started = False
        self._questions = 0
        self._keepers: list[asyncio.Task[None]] = []

    @property
    def addresses(self) -> dict[str, list[str]]:
        """Where each listener really listens."""
        return self._slots[0].sockets.addresses()

    def listening(self) -> dict[str, socket.socket]:
        """All listening sockets, by a name each."""
        return {name: sock for s in self._slots for name, sock in s.sockets.named(f"worker{s.number}").items()}

    async def start(self) -> None:
        """Start every worker. Raises WorkerFailedError, all of them stopped again, when one does not become ready."""
        self._keepers = [asyncio.create_task(self._keep(s), name=f"keeper of worker {s.number}") for s in self._slots]
        ready = [asyncio.create_task(s.ready.wait(), name=f"worker {s.number} ready") for s in self._slots]
        waiting: set[asyncio.Task[Any]] = {*ready}
        try:
            while waiting:
                done, _ = await asyncio.wait({*waiting, *self._keepers}, return_when=asyncio.FIRST_COMPLETED)
                waiting -= done
                if any(keeper.done() for keeper in self._keepers):
                    reasons = "; ".join(f"worker {s.number}: {s.reason}" for s in self._slots if s.reason)
                    await self.stop()
                    raise WorkerFailedError(reasons or "a worker ended while it started")
            self._started = True
        finally:
            for task in ready:
                task.cancel()
            await asyncio.gather(*ready, return_exceptions=True)

    def healthy(self) -> bool:
        """No worker is silent for too long. One that is being restarted counts as cared for."""
        now = self._clock()
        return all(s.heard is None or now - s.heard <= self._patience.heartbeat for s in self._slots)

    async def status(self) -> dict[str, Any]:
        """Facts for `relayd status`, each worker's own among them."""
        workers = [await self._status_of(slot) for slot in self._slots]
        return {"listening": self.addresses, "workers": workers}

    # -- one worker's life

    async def _keep(self, slot: _Slot) -> None:
        wait = self._patience.first_wait
        while not self._stopping.is_set():
            began = self._clock()
            code = await self._live(slot)
            self._metrics.died(slot.number)
            if self._stopping.is_set():
                return
            slot.reason = slot.reason or _ended(code)
            if not self._started:
                return  # start() tells; a daemon that cannot start must say so, not try for ever
            if self._clock() - began >= self._patience.health:
                wait = self._patience.first_wait
            slot.state = "restarting"
            slot.restarts += 1
            slot.last_fault = slot.reason
            self._log.error("worker_ended", worker=slot.number, reason=slot.reason, restart_in=wait)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._stopping.wait()
            wait = min(wait * 2, self._patience.longest_wait)
            if not self._stopping.is_set():
                self._metrics.restarted()
        slot.state = "stopped"

    async def _live(self, slot: _Slot) -> int:
        """From spawn to exit of one process; its exit status."""
        ours, theirs = pair()
        gone = asyncio.Event()
        slot.state, slot.reason = "starting", None
        slot.heard, slot.since, slot.told = None, self._clock(), None
        slot.ready.clear()
        slot.channel = Channel(ours, lambda message, fds: self._hear(slot, message, fds), gone.set)
        try:
            slot.process = await asyncio.create_subprocess_exec(
                *self._command,
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(), *self._inherit),
                stdin=asyncio.subprocess.DEVNULL,
                env=os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(self._metrics_dir)},
            )
        except OSError as error:
            theirs.close()
            ours.close()
            slot.channel, slot.reason = None, f"cannot be started: {error.strerror}"
            return 1
        theirs.close()
        slot.channel.open()
        slot.told = self._orders
        watch = asyncio.create_task(self._watch(slot), name=f"watch over worker {slot.number}")
        try:
            try:
                self._tell(slot, "start", slot.told)
            except OSError as error:  # no descriptor or no memory left: it comes again later
                slot.reason = f"cannot be told what to do: {error.strerror}"
                _signal(slot, signal.SIGKILL)
            return await slot.process.wait()
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
            slot.channel.close()
            slot.process = slot.channel = slot.heard = None
            for answer in slot.answers.values():
                if not answer.done():
                    answer.set_exception(WorkerFailedError(f"worker {slot.number} ended"))

    def _tell(self, slot: _Slot, verb: str, orders: Orders, question: int = 0) -> bool:
        """Send configuration and sockets."""
        if slot.channel is None:
            return False
        plan, fds = slot.sockets.export()
        message = {
            "do": verb,
            "question": question,
            "slot": slot.number,
            "slots": len(self._slots),
            "sockets": plan,
        }
        fd = write_memory(orders.sealed)
        try:
            return slot.channel.send(message, [fd, *fds])
        finally:
            os.close(fd)

    def _hear(self, slot: _Slot, message: dict[str, Any], fds: list[int]) -> None:
        for fd in fds:
            os.close(fd)
        slot.heard = now = self._clock()
        match message.get("say"):
            case "ready":
                slot.state = "ready"
                slot.ready.set()
                self._log.info("worker_ready", worker=slot.number, seconds=round(now - slot.since, 2))
            case "failed":
                slot.reason = str(message.get("reason"))
            case "stopping":
                slot.state = "stopping"
            case "reloaded" | "status":
                answer = slot.answers.get(message.get("question", 0))
                if answer is not None and not answer.done():
                    answer.set_result(message)
                elif not message["question"] and message.get("error") is not None:
                    self._refused(slot, str(message["error"]))

    async def _watch(self, slot: _Slot) -> None:
        """Kill a worker whose event loop stands still, or that never becomes ready."""
        limit = self._patience.heartbeat
        while True:
            await asyncio.sleep(min(1.0, limit / 4))
            now = self._clock()
            if slot.heard is not None and now - slot.heard > limit:
                slot.reason = f"silent for {limit:g} s: killed"
            elif slot.state == "starting" and now - slot.since > self._patience.start:
                slot.reason = f"not ready after {self._patience.start:g} s: killed"
            else:
                continue
            self._log.error("worker_killed", worker=slot.number, reason=slot.reason)
            _signal(slot, signal.SIGKILL)
            return

    async def _ask(self, slot: _Slot, send: Callable[[int], bool], timeout: float) -> dict[str, Any]:
        """Send a question and wait for its answer. Raises WorkerFailedError."""
        question = self._questions = self._questions + 1
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        slot.answers[question] = answer
        try:
            if not send(question):
                raise WorkerFailedError(f"worker {slot.number} does not listen")
            async with asyncio.timeout(timeout):
                return await answer
        except TimeoutError:
            raise WorkerFailedError(f"worker {slot.number} did not answer within {timeout:g} s") from None
        finally:
            del slot.answers[question]

    async def _status_of(self, slot: _Slot) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "worker": slot.number,
            "pid": slot.process.pid if slot.process else None,
            "state": slot.state,
            "seconds": round(self._clock() - slot.since),
            "restarts": slot.restarts,
            "last_fault": slot.last_fault,
        }
        channel = slot.channel
        if slot.state == "ready" and channel is not None:
            with contextlib.suppress(WorkerFailedError):
                answer = await self._ask(slot, lambda n: channel.send({"do": "status", "question": n}), 5.0)
                facts |= answer.get("status") or {}
        return facts

    # -- all of them

    async def reload(self, orders: Orders) -> None:
        """Apply a checked configuration, one worker after the other.

        Raises BindError or WorkerFailedError with everything as it was, when sockets are missing or the first
        worker refuses; a later worker that refuses is restarted with the new configuration.
        """
        before = [slot.sockets for slot in self._slots]
        after = _rebind_all(orders, before)
        applied, skipped = False, list[_Slot]()
        for slot, sockets in zip(self._slots, after, strict=True):
            slot.sockets = sockets
            if slot.state != "ready":
                skipped.append(slot)
                continue
            fault = await self._reload_one(slot, orders)
            if fault is not None and not applied:
                self._undo(before, after)
                for other in skipped:
                    if other.told is not None:  # it may have been started with the new sockets meanwhile
                        self._tell(other, "reload", other.told)
                raise WorkerFailedError(fault)
            applied = True
            self._orders = slot.told = orders
            if fault is not None:
                self._refused(slot, fault)
        self._orders = orders
        for slot in self._slots:
            if slot.told not in (None, orders):
                # it was starting, with the configuration that held before: it takes this one next
                slot.told = orders
                self._tell(slot, "reload", orders)
        for old, new in zip(before, after, strict=True):
            kept = set(new)
            for sock in old:
                if sock not in kept:
                    sock.close()

    async def _reload_one(self, slot: _Slot, orders: Orders) -> str | None:
        try:
            answer = await self._ask(slot, lambda n: self._tell(slot, "reload", orders, n), self._patience.reload)
        except WorkerFailedError as failure:
            # silent, or gone: where it is still there, nobody knows what it holds by now
            _signal(slot, signal.SIGTERM)
            return str(failure)
        except OSError as error:
            return f"worker {slot.number} cannot be told: {error.strerror}"
        return None if answer.get("error") is None else str(answer["error"])

    def _refused(self, slot: _Slot, fault: str) -> None:
        """Others have the new configuration already: this one is started again with it."""
        self._log.error("worker_refused_reload", worker=slot.number, reason=fault)
        _signal(slot, signal.SIGTERM)

    def _undo(self, before: Sequence[Sockets], after: Sequence[Sockets]) -> None:
        for slot, old, new in zip(self._slots, before, after, strict=True):
            slot.sockets = old
            kept = set(old)
            for sock in new:
                if sock not in kept:
                    sock.close()

    async def stop(self) -> None:
        """Let every worker drain within `shutdown`, then kill what is left."""
        self._stopping.set()
        for slot in self._slots:
            # ours go first: a client that came now would wait on a socket that nobody accepts from
            slot.sockets.close()
            if slot.channel is not None and not slot.channel.send({"do": "stop"}):
                _signal(slot, signal.SIGTERM)
        if not self._keepers:
            return
        _, left = await asyncio.wait(self._keepers, timeout=self._orders.shutdown + 5)
        if left:
            self.kill()
            await asyncio.wait(left)

    def abandon(self) -> None:
        """Give up starting: `start` raises."""
        self._stopping.set()
        for slot in self._slots:
            _signal(slot, signal.SIGTERM)

    def kill(self) -> None:
        """End all workers at once: what they accepted is on disk."""
        for slot in self._slots:
            if slot.process is not None:
                self._log.error("worker_killed", worker=slot.number, reason="did not stop in time")
                _signal(slot, signal.SIGKILL)


def _bind_all(orders: Orders, inherited: Sequence[socket.socket]) -> list[Sockets]:
    count = orders.worker_count
    before: Sequence[Sockets | None] = shares(inherited, count) if inherited else [None] * count
    after = _rebind_all(orders, before)
    kept = {sock for sockets in after for sock in sockets}
    for sock in inherited:
        if sock not in kept:
            sock.close()
    return after


def _rebind_all(orders: Orders, before: Sequence[Sockets | None]) -> list[Sockets]:
    """One set per worker, all on the same ports. Raises BindError with nothing new left open."""
    after: list[Sockets] = []
    try:
        for old in before:
            first = after[0] if after else None
            new = bind(orders, reuse_port=True, like=first) if old is None else None
            after.append(new or rebind(orders, old, reuse_port=True, like=first))
    except BaseException:
        for old, opened in zip(before, after, strict=False):
            kept = set(old or ())
            for sock in opened:
                if sock not in kept:
                    sock.close()
        raise
    if len(list(after[0])) >= FDS_LIMIT:
        raise WorkerFailedError(f"more than {FDS_LIMIT - 1} addresses to listen on")
    return after


def _signal(slot: _Slot, number: signal.Signals) -> None:
    if slot.process is not None:
        with contextlib.suppress(ProcessLookupError):
            slot.process.send_signal(number)


def _ended(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    return f"ended with status {code}"
