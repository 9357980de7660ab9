"""Steering a running daemon: a unix socket per process, one JSON object per line each way, and the client for it.

What the verbs do is decided by the handlers that app.py and workers/ hand in; who may ask is decided by the
socket's mode (0600): the daemon's own user and root.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson
import structlog

Handler = Callable[[dict[str, Any]], Awaitable[Any]]
"""Takes the request's arguments, returns what JSON can say. Raises ControlError for what the operator should read."""

LINE_LIMIT = 1024**2
"""Octets of one request."""
ANSWER_LIMIT = 64 * 1024**2
"""Octets of one answer: ids of a few million messages."""
MAX_CLIENTS = 16
IDLE = 60.0
"""Seconds a client may be silent."""

_PATH_LIMIT = 100  # sun_path holds 108 octets on Linux, with the final NUL
_WORKER = re.compile(r"worker-(\d+)\.sock")


class ControlError(Exception):
    """An expected failure, worded for the operator.

    `faults` are the single complaints, `done` holds what other workers did all the same.
    """

    def __init__(self, message: str, faults: list[str] | None = None, done: list[Any] | None = None) -> None:
        super().__init__(message)
        self.faults = faults or []
        self.done = done or []


class UnknownVerbError(ControlError):
    """The daemon does not serve this verb: it is older or newer than we are."""


class NotRunningError(ControlError):
    """No daemon listens in this data directory."""


def worker_socket(data_dir: Path, slot: int) -> Path:
    """Where worker `slot` listens for verbs."""
    return data_dir / "run" / f"worker-{slot}.sock"


def supervisor_socket(data_dir: Path) -> Path:
    """Where the supervisor of several workers listens."""
    return data_dir / "run" / "supervisor.sock"


@contextlib.contextmanager
def _address(path: Path) -> Iterator[str]:
    """A name for the socket that fits sun_path: long ones go by an open file descriptor of their directory."""
    if len(os.fsencode(path)) <= _PATH_LIMIT:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


class ControlServer:
    """Serves verbs on one unix socket, on the loop that starts it."""

    def __init__(self, path: Path, handlers: Mapping[str, Handler], *, timeout: float = 300.0) -> None:
        """`timeout`: seconds that one verb may take."""
        self._path = path
        self._handlers = dict(handlers)
        self._timeout = timeout
        self._server: asyncio.Server | None = None
        self._inode: int | None = None
        self._clients: set[asyncio.Task[None]] = set()
        self._log = structlog.get_logger("relayd.control")

    async def start(self) -> None:
        """Listen. An abandoned socket in the way is replaced: the lock of data_dir says that nobody uses it.

        Raises OSError.
        """
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # bound under another name, made private, and only then shown: nobody ever meets it open or half made
        draft = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        draft.unlink(missing_ok=True)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _address(draft) as address:
                listening.bind(address)
            draft.chmod(0o600)
            self._server = await asyncio.start_unix_server(self._connected, sock=listening, limit=LINE_LIMIT)
            self._inode = draft.stat().st_ino
            draft.replace(self._path)
        except BaseException:
            listening.close()
            draft.unlink(missing_ok=True)
            raise

    async def close(self) -> None:
        """Stop listening and end what is under way. The socket file goes, unless a successor has put its own there."""
        if self._server is None:
            return
        self._server.close()
        for task in self._clients:
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        await self._server.wait_closed()
        self._server = None
        # a disk that has become read-only must not keep the rest of the stopping from its turn
        with contextlib.suppress(OSError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._clients) >= MAX_CLIENTS:
            writer.write(_line({"error": f"more than {MAX_CLIENTS} control connections: try again in a moment"}))
            writer.close()
            return
        task = asyncio.create_task(self._serve(reader, writer), name=f"control {self._path.name}")
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                try:
                    async with asyncio.timeout(IDLE):
                        line = await reader.readline()
                except ValueError:
                    writer.write(_line({"error": f"a request is one line of at most {LINE_LIMIT} octets"}))
                    return
                if not line.endswith(b"\n"):
                    return
                writer.write(_line(await self._answer(line)))
                async with asyncio.timeout(IDLE):
                    await writer.drain()
        except (ConnectionError, TimeoutError):
            return
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = orjson.loads(line)
        except orjson.JSONDecodeError:
            request = None
        if not isinstance(request, dict) or not isinstance(request.get("args", {}), dict):
            return {"error": 'a request is a JSON object like {"verb": "ping", "args": {}}'}
        verb = request.get("verb")
        handler = self._handlers.get(verb) if isinstance(verb, str) else None
        if handler is None:
            return {"error": f"the verbs here are {', '.join(sorted(self._handlers))}", "unknown": True}
        return await self._run(str(verb), handler, request.get("args", {}))

    async def _run(self, verb: str, handler: Handler, args: dict[str, Any]) -> dict[str, Any]:
        limit = asyncio.timeout(self._timeout)
        try:
            async with limit:
                return {"result": await handler(args)}
        except ControlError as error:
            return {"error": str(error), "faults": error.faults}
        except Exception:  # noqa: BLE001 - whatever a verb runs into, the daemon goes on and the operator is told
            if limit.expired():
                return {"error": f"{verb} took longer than {self._timeout:g} s and was given up"}
            self._log.exception("control_failed", verb=verb)
            return {"error": f"{verb} failed inside the daemon: its log says why"}


def _line(answer: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(answer) + b"\n"
    except TypeError:
        return orjson.dumps({"error": "the answer could not be written as JSON"}) + b"\n"


@dataclass(frozen=True, slots=True)
class Answer:
    """What one process of the daemon answered."""

    slot: int | None
    """The worker's slot; None for the supervisor."""
    result: Any = None
    error: str | None = None
    faults: tuple[str, ...] = ()
    unknown: bool = False
    """It does not serve this verb."""
    gone: bool = False
    """Its socket is there but nobody listens: it died, or is being restarted."""


def ask(
    data_dir: Path,
    verb: str,
    args: Mapping[str, Any] | None = None,
    slots: Literal["all", "lead"] | int = "all",
    timeout: float = 330.0,
) -> list[Answer]:
    """Send a verb and collect every answer, by slot. Blocks, up to `timeout` seconds for each process.

    `slots`: "all" workers, "lead" (the supervisor where there is one, else the first worker) or one worker's slot.
    Raises NotRunningError when nobody answers at all, ControlError when we may not ask.
    """
    if slots == "lead":
        answers = [_ask_one(supervisor_socket(data_dir), None, verb, args, timeout)]
        if answers[0].gone:
            answers = _ask_workers(data_dir, verb, args, timeout, first=True)
    elif slots == "all":
        answers = _ask_workers(data_dir, verb, args, timeout, first=False)
    else:
        answers = [_ask_one(worker_socket(data_dir, slots), slots, verb, args, timeout)]
    if all(answer.gone for answer in answers):
        raise NotRunningError(f"no relayd is running on {data_dir}")
    return answers


def call(
    data_dir: Path,
    verb: str,
    args: Mapping[str, Any] | None = None,
    slots: Literal["all", "lead"] | int = "all",
    timeout: float = 330.0,
) -> list[Any]:
    """The results of `ask`. Raises ControlError when any process refused or failed, what others did in its `done`."""
    answers = [answer for answer in ask(data_dir, verb, args, slots, timeout) if not answer.gone]
    failed = [answer for answer in answers if answer.error is not None]
    if not failed:
        return [answer.result for answer in answers]
    if all(answer.unknown for answer in failed):
        raise UnknownVerbError(f"the running daemon does not know {verb}: restart it after an upgrade")
    names = len(answers) > 1
    message = "; ".join(f"worker {a.slot}: {a.error}" if names else str(a.error) for a in failed)
    faults = list(dict.fromkeys(fault for answer in failed for fault in answer.faults))
    raise ControlError(message, faults, [answer.result for answer in answers if answer.error is None])


def running(data_dir: Path) -> bool:
    """Whether a daemon listens in this data directory (or is there, though we may not speak to it)."""
    for path in [supervisor_socket(data_dir), *(path for _, path in _workers(data_dir))]:
        try:
            _connect(path, 5.0).close()
        except FileNotFoundError:
            continue
        except ConnectionRefusedError:
            continue
        except OSError:
            return True
        else:
            return True
    return False


def _workers(data_dir: Path) -> list[tuple[int, Path]]:
    found = ((_WORKER.fullmatch(path.name), path) for path in (data_dir / "run").glob("worker-*.sock"))
    return sorted((int(match[1]), path) for match, path in found if match)


def _ask_workers(
    data_dir: Path, verb: str, args: Mapping[str, Any] | None, timeout: float, *, first: bool
) -> list[Answer]:
    answers = []
    for slot, path in _workers(data_dir):
        answers.append(_ask_one(path, slot, verb, args, timeout))
        if first and not answers[-1].gone:
            return [answers[-1]]
    return answers


def _ask_one(path: Path, slot: int | None, verb: str, args: Mapping[str, Any] | None, timeout: float) -> Answer:
    request = orjson.dumps({"verb": verb, "args": dict(args or {})}) + b"\n"
    if len(request) > LINE_LIMIT:
        raise ControlError("the request is too long: name fewer messages, or use a filter")
    try:
        with _connect(path, timeout) as client:
            client.sendall(request)
            line = _read_line(client)
    except (FileNotFoundError, ConnectionRefusedError):
        return Answer(slot, gone=True)
    except PermissionError:
        raise ControlError(f"may not speak to the daemon at {path}: run this as root or as the daemon's user") from None
    except TimeoutError:
        return Answer(slot, error=f"no answer within {timeout:g} s")
    except OSError as error:
        return Answer(slot, error=f"the connection broke ({error.strerror or 'closed'})")
    try:
        answer = orjson.loads(line)
    except orjson.JSONDecodeError:
        return Answer(slot, error="the daemon closed the connection without an answer")
    if "error" in answer:
        return Answer(
            slot,
            error=str(answer["error"]),
            faults=tuple(map(str, answer.get("faults", ()))),
            unknown=bool(answer.get("unknown")),
        )
    return Answer(slot, result=answer.get("result"))


async def ask_worker(data_dir: Path, slot: int, verb: str, args: Mapping[str, Any], timeout: float = 60.0) -> Any:
    """What one worker answers, without blocking the loop: how workers speak to each other.

    Raises ControlError where it refuses, fails, is not there or is silent for `timeout` seconds.
    """
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(timeout):
            with _address(worker_socket(data_dir, slot)) as address:
                reader, writer = await asyncio.open_unix_connection(address, limit=ANSWER_LIMIT)
            writer.write(orjson.dumps({"verb": verb, "args": dict(args)}) + b"\n")
            line = await reader.readline()
        answer = orjson.loads(line)
    except TimeoutError:
        raise ControlError(f"worker {slot} gave no answer within {timeout:g} s") from None
    except (OSError, ValueError) as error:  # ValueError: no answer, or none that can be read
        raise ControlError(f"worker {slot} cannot be asked: {type(error).__name__}") from error
    finally:
        if writer is not None:
            writer.close()
    if "error" in answer:
        raise ControlError(f"worker {slot}: {answer['error']}")
    return answer.get("result")


def _connect(path: Path, timeout: float) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        client.settimeout(timeout)
        with _address(path) as address:
            client.connect(address)
    except BaseException:
        client.close()
        raise
    return client


def _read_line(client: socket.socket) -> bytes:
    parts: list[bytes] = []
    size = 0
    while not (parts and parts[-1].endswith(b"\n")):
        part = client.recv(65536)
        if not part:
            break
        size += len(part)
        if size > ANSWER_LIMIT:
            raise ControlError("the daemon's answer is too long")
        parts.append(part)
    return b"".join(parts)
