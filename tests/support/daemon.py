"""The real daemon in a process of its own: started, watched by its logs, steered, stopped and killed.

    daemon = Daemon(tmp_path, {"upstreams": {"acme": smtp_upstream(fake)}, "routes": [{"upstream": "acme"}]})
    async with daemon:
        ... speak SMTP to daemon.port ...
        event = await daemon.wait_for_event("delivered", recipient="a@example.org")
        assert (await daemon.cli("queue", "list", "--json")).json == []

Use the fixture `make_daemon` (tests/endtoend/conftest.py), or `async with`, so that nothing is left running. What
the daemon's configuration lacks is filled in by `settings`. Nothing here waits for luck: every wait has a condition.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson
import yaml

from relayd.control import call
from relayd.spool.audit import AuditReport, audit
from tests.support import canaries, forking
from tests.support.fake_upstream import FakeUpstream, ca_file

PATIENCE = 100.0
"""Seconds after which a condition that does not come true fails the test."""
Event = dict[str, Any]
Condition = Callable[[], Any]


@dataclass(frozen=True)
class Tagged:
    """A value that the configuration fetches: Tagged("!env", "NAME"), Tagged("!file", "path")."""

    tag: str
    name: str


@dataclass(frozen=True)
class Secret:
    """A value for which the daemon gets a private file and writes `!file` in the configuration."""

    value: str


class _Dumper(yaml.SafeDumper):
    """Writes Tagged values with their tag."""


_Dumper.add_representer(Tagged, lambda dumper, value: dumper.represent_scalar(value.tag, value.name))


def settings(**sections: Any) -> dict[str, Any]:
    """A whole configuration: one local listener, one worker, the sandbox, JSON logs; `sections` replace these."""
    base: dict[str, Any] = {
        "hostname": "relay.test",
        "data_dir": "data",
        "workers": 1,
        "listeners": [local()],
        "upstreams": {"sandbox": {"type": "sandbox"}},
        "routes": [{"upstream": next(iter(sections.get("upstreams", {"sandbox": None})))}],
        "retry": {"schedule": "1s*"},
        "spool": {"min_free": "0%"},
        "log": {"format": "json", "level": "info"},
        "shutdown": "15s",
    }
    return base | sections


def local(name: str = "local", **others: Any) -> dict[str, Any]:
    """A listener on a free port that takes mail from this machine without TLS or login."""
    return {
        "name": name,
        "bind": ["127.0.0.1:0"],
        "tls": "none",
        "access": "network",
        "networks": ["127.0.0.0/8"],
    } | others


def smtp_upstream(fake: FakeUpstream, **others: Any) -> dict[str, Any]:
    """The upstream section that fits a fake one; `timeouts` and `limits` are merged, everything else replaces."""
    secure = fake.implicit or fake.starttls
    section: dict[str, Any] = {
        "host": "localhost" if secure else "127.0.0.1",
        "port": fake.port,
        "tls": "required" if secure else "none",
        "timeouts": dict.fromkeys(("connect", "tls", "greeting", "command", "data", "dot"), "20s"),
    }
    if secure:
        section |= {"implicit_tls": fake.implicit, "ca_file": str(ca_file())}
    if fake.users:
        username, password = next(iter(fake.users.items()))
        section |= {"username": username, "password": Secret(password)}
    section["timeouts"] |= others.pop("timeouts", {})
    return section | others


@dataclass
class Finished:
    """What a command printed, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as JSON."""
        return orjson.loads(self.out)


@dataclass
class _Lines:
    """A file of JSON lines that grows."""

    path: Path
    read: int = 0
    found: list[Event] = field(default_factory=list)

    def all(self) -> list[Event]:
        if self.path.exists():
            with self.path.open("rb") as file:
                file.seek(self.read)
                data = file.read()
            whole = data.rfind(b"\n") + 1  # kill -9 may tear the last line
            self.read += whole
            self.found += [_parsed(line) for line in data[:whole].splitlines() if line.strip()]
        return self.found


def _parsed(line: bytes) -> Event:
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError:
        found = None
    return found if isinstance(found, dict) else {"event": "not JSON", "line": line.decode("utf-8", "replace")}


class Daemon:
    """One daemon with its directory. Every start writes new log files; `events` and `log` are those of the last."""

    def __init__(
        self,
        directory: Path,
        config: Mapping[str, Any] | None = None,
        *,
        execute: bool = False,
        env: Mapping[str, str] | None = None,
        constants: Mapping[str, Any] | None = None,
    ) -> None:
        """`config` goes through `settings`. `execute`: run `python -m relayd` itself instead of a quick fork.

        `constants`: "module:NAME" → value, to shorten waits that the configuration does not know (forks only).
        """
        self.directory = directory
        self.path = directory / "relayd.yaml"
        self.config = settings(**(config or {}))
        self.data_dir = directory / self.config["data_dir"]
        self.env = dict(env or {})
        self.constants = dict(constants or {})
        self.execute = execute
        self.plan: dict[str, Any] = {}
        """More for crashing.install at the next start."""
        self.starts = 0
        self.process: forking.Process | None = None
        self._mail_log = self._log = _Lines(directory / "none")
        self._secrets = 0
        self._addresses: dict[str, list[str]] = {}
        self._commands = 0

    # -- life

    async def __aenter__(self) -> Self:
        if self.process is None:
            await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._tell()
        await self.kill9()
        if kind is None:
            self.check_secrets()

    def write_config(self, config: Mapping[str, Any] | None = None) -> None:
        """Write the configuration (through `settings`); a running daemon learns of it by `reload` or SIGHUP."""
        if config is not None:
            self.config = settings(**config)
        self.write_text(self.yaml(self.config))

    def yaml(self, config: Mapping[str, Any]) -> str:
        """The text of a configuration, with files for its secrets."""
        planted = {"credentials": [{"username": "nobody", "password": Secret(canaries.HASH)}]}
        return yaml.dump(self._prepared(planted | dict(config)), Dumper=_Dumper, sort_keys=False, allow_unicode=True)

    def write_text(self, text: str) -> None:
        """Write the file as it is: faulty ones, too."""
        draft = self.path.with_suffix(".new")
        draft.write_text(text, encoding="utf-8")
        draft.chmod(0o600)
        draft.replace(self.path)

    async def start(self, *, ready: bool = True, plan: Mapping[str, Any] | None = None) -> Self:
        """Start it, and wait until it serves (`ready`). Raises AssertionError with its log where it does not.

        `plan`: for crashing.install, this once.
        """
        assert self.process is None or self.process.poll() is not None, "it runs already"
        self.write_config()
        self.starts += 1
        self._mail_log = _Lines(self.directory / f"mail-{self.starts}.log")
        self._log = _Lines(self.directory / f"daemon-{self.starts}.log")
        argv = ["serve", "--config", str(self.path)]
        if self.execute:
            assert not plan and not self.constants, "plans need a fork"
            self.process = forking.Executed(argv, self._mail_log.path, self._log.path, self.directory, self.env)
        else:
            whole = {"constants": self.constants} | self.plan | dict(plan or {})
            self.process = forking.start(
                argv, self._mail_log.path, self._log.path, cwd=self.directory, env=self.env, plan=whole
            )
        if ready:
            await self.wait_ready()
        return self

    async def wait_ready(self) -> None:
        """Wait until it says that it serves."""
        await self.until(lambda: self._logged("ready") or not self.running, "ready")
        found = self._logged("ready")
        assert found, f"the daemon ended with {self.poll()}:\n{self.log_text()}"
        self._addresses = found[-1]["listening"]

    async def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask it to end, and wait; the exit status."""
        assert self.process is not None
        self.process.signal(number)
        return await self.process.wait()

    async def kill9(self) -> None:
        """kill -9 of the supervisor and all its workers, at once."""
        if self.process is not None:
            self.process.signal_group(signal.SIGKILL)
            await self.process.wait()
            await self.lock_free()

    def check_secrets(self) -> None:
        """No secret of the configuration, and none that the daemon made, is in anything that it said or keeps.

        Raises AssertionError.
        """
        files = [path for path in self.directory.rglob("*") if path.is_file()]
        own = {*self.data_dir.glob("secret"), *self.data_dir.glob("tls/*")}
        secrets = canaries.keys(path for path in files if path.suffix in (".pem", ".key"))
        for path in self.data_dir.glob("secret"):
            secrets.add(path.read_text("latin-1").strip())
        said = [path for path in files if path.suffix in (".log", ".out", ".err")]
        kept = [path for path in files if path.is_relative_to(self.data_dir) and path not in own]
        found = canaries.leaks_in({*said, *kept}, secrets)
        assert not found, f"secrets can be read: {found}"

    async def ended(self) -> int:
        """Wait until it has ended by itself; the exit status."""
        assert self.process is not None
        return await self.process.wait()

    async def restart(self) -> Self:
        """Start it again, after it was stopped, killed, or has crashed."""
        if self.running:
            await self.stop()
        else:
            await self.kill9()  # workers that outlive their supervisor
        return await self.start()

    async def lock_free(self) -> None:
        """The kernel may need a moment to bury killed workers, which hold the lock of data_dir too."""
        import fcntl

        lock = self.data_dir / "lock"
        if not lock.exists():
            return

        def free() -> bool:
            with lock.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return False
            return True

        await self.until(free, "the lock of data_dir is free")

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def poll(self) -> int | None:
        """The exit status of the last start, None while it runs."""
        return None if self.process is None else self.process.poll()

    def signal(self, number: int) -> None:
        """Send a signal to the daemon (not to its workers)."""
        assert self.process is not None
        self.process.signal(number)

    def worker_pids(self) -> dict[int, int]:
        """Worker → pid, as a daemon of several workers has them now."""
        [status] = call(self.data_dir, "status", slots="lead", timeout=PATIENCE)
        return {worker["worker"]: worker["pid"] for worker in status["workers"] if worker.get("pid")}

    def kill_worker(self, worker: int) -> None:
        """kill -9 of one worker."""
        os.kill(self.worker_pids()[worker], signal.SIGKILL)

    # -- where it is

    def addresses(self, listener: str) -> list[str]:
        """host:port as the daemon says; "web" is the web server."""
        return self._addresses[listener]

    def port_of(self, listener: str) -> int:
        """The first port of a listener."""
        return int(self.addresses(listener)[0].rpartition(":")[2])

    @property
    def port(self) -> int:
        """The first port of the first listener."""
        return self.port_of(self.config["listeners"][0]["name"])

    # -- what it says

    def events(self, kind: str | None = None, **facts: Any) -> list[Event]:
        """Mail-log events of this start, as far as they have these facts."""
        return _matching(self._mail_log.all(), kind, facts)

    def log(self, event: str | None = None, **facts: Any) -> list[Event]:
        """Lines of the daemon's own log of this start."""
        return _matching(self._log.all(), event, facts)

    def log_text(self) -> str:
        """The daemon's own log of this start as it stands there."""
        return self._log.path.read_text(encoding="utf-8", errors="replace") if self._log.path.exists() else ""

    def everything_said(self) -> str:
        """All logs of all starts, for the search of what must not be in them."""
        paths = [*self.directory.glob("mail-*.log"), *self.directory.glob("daemon-*.log")]
        return "".join(path.read_text(encoding="utf-8", errors="replace") for path in sorted(paths))

    async def wait_for_event(self, kind: str, *, count: int = 1, **facts: Any) -> Event:
        """Wait until so many such events are there; the last of them."""
        await self.until(lambda: len(self.events(kind, **facts)) >= count, f"{count} × {kind} {facts}")
        return self.events(kind, **facts)[count - 1]

    async def wait_for_log(self, event: str, *, count: int = 1, **facts: Any) -> Event:
        """Wait until the daemon's own log has so many such lines; the last of them."""
        await self.until(lambda: len(self.log(event, **facts)) >= count, f"{count} × {event} {facts} in the log")
        return self.log(event, **facts)[count - 1]

    async def until(self, condition: Condition, what: str = "", timeout: float = PATIENCE) -> Any:
        """Wait until the condition (it may be a coroutine function) holds; what it returned."""
        try:
            async with asyncio.timeout(timeout):
                while True:
                    found = condition()
                    if isinstance(found, Awaitable):
                        found = await found
                    if found:
                        return found
                    await asyncio.sleep(0.01)
        except TimeoutError:
            self._tell()
            raise AssertionError(f"not within {timeout:g} s: {what or condition}") from None

    def _logged(self, event: str) -> list[Event]:
        return self.log(event)

    def _tell(self) -> None:
        """For the report of a failed test."""
        print(f"--- daemon log, start {self.starts}\n{self.log_text()[-20000:]}")
        print("--- mail log")
        for event in self.events()[-60:]:
            print(orjson.dumps(event).decode())

    # -- steering and looking

    async def control(self, verb: str, args: Mapping[str, Any] | None = None, slots: Any = "lead") -> Any:
        """Ask the daemon by its control socket: one answer for "lead" or a slot, a list for "all"."""
        answers = await asyncio.to_thread(call, self.data_dir, verb, args, slots, PATIENCE)
        return answers if slots == "all" else answers[0]

    async def cli(self, *args: str, timeout: float = 60.0) -> Finished:
        """Run `relayd --config FILE ARGS` in a process of its own."""
        self._commands += 1
        out, err = (self.directory / f"command-{self._commands}.{name}" for name in ("out", "err"))
        process = forking.start(["--config", str(self.path), *args], out, err, cwd=self.directory, env=self.env)
        code = await process.wait(timeout)
        return Finished(code, out.read_text("utf-8", "replace"), err.read_text("utf-8", "replace"))

    def audit(self) -> AuditReport:
        """What `relayd audit` finds, without the process."""
        return audit(self.data_dir / "spool")

    async def message(self, number: str) -> dict[str, Any]:
        """`relayd message show ID --json`."""
        done = await self.cli("message", "show", number, "--json")
        assert done.code == 0, done.err
        found: dict[str, Any] = done.json
        return found

    # -- writing the configuration

    def _prepared(self, value: Any) -> Any:
        if isinstance(value, Secret):
            return Tagged("!file", self._secret_file(value.value))
        if isinstance(value, Mapping):
            return {key: self._prepared(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self._prepared(each) for each in value]
        return str(value) if isinstance(value, Path) else value

    def _secret_file(self, value: str) -> str:
        canaries.plant(value)
        for path in self.directory.glob("secret-*"):
            if path.read_text() == value:
                return str(path)
        self._secrets += 1
        path = self.directory / f"secret-{self._secrets}"
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        path.touch(0o600)
        path.write_text(value)
        return str(path)


def _matching(events: list[Event], kind: str | None, facts: Mapping[str, Any]) -> list[Event]:
    return [
        event
        for event in events
        if (kind is None or event.get("event") == kind)
        and all(event.get(name) == value for name, value in facts.items())
    ]
