"""The control socket: verbs reach their handlers, failures reach the operator, nothing else reaches anybody."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest

from relayd import control
from relayd.control import ControlError, ControlServer, Handler, NotRunningError


async def echo(args: dict[str, Any]) -> Any:
    return args


async def refuse(_args: dict[str, Any]) -> Any:
    raise ControlError("the file is faulty", ["line 1: hostname is missing"])


async def crash(_args: dict[str, Any]) -> Any:
    raise RuntimeError("password=hunter2")


HANDLERS: Mapping[str, Handler] = {"echo": echo, "refuse": refuse, "crash": crash}


@contextlib.asynccontextmanager
async def served(
    path: Path, handlers: Mapping[str, Handler] = HANDLERS, **options: Any
) -> AsyncIterator[ControlServer]:
    server = ControlServer(path, handlers, **options)
    await server.start()
    try:
        yield server
    finally:
        await server.close()


async def off_loop(function: Callable[..., Any], *args: Any) -> Any:
    return await asyncio.to_thread(function, *args)


async def raw(path: Path, *requests: bytes) -> list[Any]:
    reader, writer = await asyncio.open_unix_connection(str(path), limit=control.ANSWER_LIMIT)
    answers = []
    for request in requests:
        writer.write(request)
        answers.append(orjson.loads(await reader.readline()))
    writer.close()
    await writer.wait_closed()
    return answers


async def test_a_verb_reaches_its_handler_in_every_worker(tmp_path: Path) -> None:
    async def one(args: dict[str, Any]) -> Any:
        return {"worker": 1, **args}

    async with (
        served(control.worker_socket(tmp_path, 0)),
        served(control.worker_socket(tmp_path, 1), {"echo": one}),
    ):
        assert await off_loop(control.call, tmp_path, "echo", {"a": "ü"}) == [{"a": "ü"}, {"worker": 1, "a": "ü"}]
        assert await off_loop(control.call, tmp_path, "echo", {}, 1) == [{"worker": 1}]
        assert await off_loop(control.call, tmp_path, "echo", {"b": 1}, "lead") == [{"b": 1}]


async def test_the_supervisor_is_asked_first_where_there_is_one(tmp_path: Path) -> None:
    async def lead(_args: dict[str, Any]) -> Any:
        return "supervisor"

    async with (
        served(control.worker_socket(tmp_path, 0)),
        served(control.supervisor_socket(tmp_path), {"echo": lead}),
    ):
        assert await off_loop(control.call, tmp_path, "echo", {}, "lead") == ["supervisor"]


async def test_an_expected_failure_arrives_with_its_faults(tmp_path: Path) -> None:
    async with served(control.worker_socket(tmp_path, 0)):
        with pytest.raises(ControlError, match="the file is faulty") as caught:
            await off_loop(control.call, tmp_path, "refuse")
    assert caught.value.faults == ["line 1: hostname is missing"]


async def test_what_other_workers_did_is_told_with_the_failure(tmp_path: Path) -> None:
    async with (
        served(control.worker_socket(tmp_path, 0), {"refuse": echo}),
        served(control.worker_socket(tmp_path, 3)),
    ):
        with pytest.raises(ControlError, match="worker 3: the file is faulty") as caught:
            await off_loop(control.call, tmp_path, "refuse", {"x": 1})
    assert caught.value.done == [{"x": 1}]


async def test_an_unexpected_failure_tells_no_detail_and_the_server_lives(tmp_path: Path) -> None:
    path = control.worker_socket(tmp_path, 0)
    async with served(path):
        answers = await raw(path, b'{"verb": "crash"}\n', b'{"verb": "echo", "args": {"a": 1}}\n')
    assert "hunter2" not in str(answers[0])
    assert answers[0] == {"error": "crash failed inside the daemon: its log says why"}
    assert answers[1] == {"result": {"a": 1}}


@pytest.mark.parametrize(
    "request_line",
    [
        b"\n",
        b"hello\n",
        b"[1]\n",
        b'{"verb": 7}\n',
        b'{"verb": "nothing"}\n',
        b'{"verb": "echo", "args": []}\n',
        b"\xff\n",
    ],
)
async def test_a_malformed_request_is_answered_and_the_connection_goes_on(tmp_path: Path, request_line: bytes) -> None:
    path = control.worker_socket(tmp_path, 0)
    async with served(path):
        first, second = await raw(path, request_line, b'{"verb": "echo"}\n')
    assert "error" in first
    assert "result" not in first
    assert second == {"result": {}}


async def test_a_line_without_end_is_refused(tmp_path: Path) -> None:
    path = control.worker_socket(tmp_path, 0)
    async with served(path):
        [answer] = await raw(path, b"x" * (control.LINE_LIMIT + 10))
    assert "one line" in answer["error"]


async def test_a_request_that_is_too_long_is_not_even_sent(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="too long"):
        control.call(tmp_path, "echo", {"ids": ["x" * 13] * 100_000}, 0)


async def test_a_verb_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    cancelled = asyncio.Event()

    async def wait(_args: dict[str, Any]) -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with served(control.worker_socket(tmp_path, 0), {"wait": wait}, timeout=0.01):
        with pytest.raises(ControlError, match=r"wait took longer than 0\.01 s"):
            await off_loop(control.call, tmp_path, "wait")
        await cancelled.wait()


async def test_only_the_owner_may_connect(tmp_path: Path) -> None:
    path = control.worker_socket(tmp_path, 0)
    async with served(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert sorted(entry.name for entry in path.parent.iterdir()) == ["worker-0.sock"]


async def test_more_clients_than_allowed_are_turned_away_and_the_others_are_served(tmp_path: Path) -> None:
    path = control.worker_socket(tmp_path, 0)
    async with served(path):
        open_ones = [await asyncio.open_unix_connection(str(path)) for _ in range(control.MAX_CLIENTS)]
        for reader, writer in open_ones:
            writer.write(b'{"verb": "echo"}\n')
            assert await reader.readline() == b'{"result":{}}\n'
        reader, writer = await asyncio.open_unix_connection(str(path))
        assert b"try again" in await reader.readline()
        writer.close()
        for _, other in open_ones:
            other.close()


async def test_closing_ends_what_is_under_way(tmp_path: Path) -> None:
    started = asyncio.Event()

    async def wait(_args: dict[str, Any]) -> Any:
        started.set()
        await asyncio.Event().wait()

    path = control.worker_socket(tmp_path, 0)
    async with served(path, {"wait": wait}) as server:
        asking = asyncio.create_task(off_loop(control.call, tmp_path, "wait"))
        await started.wait()
        await server.close()
        with pytest.raises(ControlError):
            await asking
    assert not path.exists()


async def test_a_data_dir_with_a_long_name_works_too(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120) / ("e" * 120)
    async with served(control.worker_socket(deep, 0)):
        assert control.worker_socket(deep, 0).is_socket()
        assert control.running(deep)
        assert await off_loop(control.call, deep, "echo") == [{}]


def abandon(path: Path) -> None:
    """A socket file whose process is gone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))


async def test_an_abandoned_socket_is_noticed_and_replaced(tmp_path: Path) -> None:
    path = control.worker_socket(tmp_path, 0)
    abandon(path)
    assert not control.running(tmp_path)
    with pytest.raises(NotRunningError):
        control.call(tmp_path, "echo")
    async with served(path):
        assert control.running(tmp_path)
        assert await off_loop(control.call, tmp_path, "echo") == [{}]


async def test_a_worker_that_is_gone_does_not_hide_the_others(tmp_path: Path) -> None:
    abandon(control.worker_socket(tmp_path, 0))
    async with served(control.worker_socket(tmp_path, 1)):
        answers = await off_loop(control.ask, tmp_path, "echo")
        assert [(answer.slot, answer.gone) for answer in answers] == [(0, True), (1, False)]
        assert await off_loop(control.call, tmp_path, "echo") == [{}]


async def test_a_successor_keeps_its_socket_when_the_predecessor_closes(tmp_path: Path) -> None:
    path = control.worker_socket(tmp_path, 0)
    async with served(path) as old, served(path):
        await old.close()
        assert await off_loop(control.call, tmp_path, "echo") == [{}]


async def test_a_daemon_that_hangs_up_without_answer_is_an_error_not_a_traceback(tmp_path: Path) -> None:
    path = control.worker_socket(tmp_path, 0)
    path.parent.mkdir()

    async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_unix_server(hang_up, str(path))
    with pytest.raises(ControlError):
        await off_loop(control.call, tmp_path, "echo")
    server.close()
    await server.wait_closed()


def test_nothing_runs_where_nothing_was_started(tmp_path: Path) -> None:
    assert not control.running(tmp_path)
    with pytest.raises(NotRunningError, match="no relayd is running"):
        control.call(tmp_path, "ping")
    with pytest.raises(NotRunningError):
        control.call(tmp_path, "ping", slots="lead")


@pytest.mark.skipif(os.getuid() == 0, reason="root may speak to everybody")
async def test_a_stranger_is_told_whom_to_be(tmp_path: Path) -> None:
    path = control.worker_socket(tmp_path, 0)
    async with served(path):
        path.chmod(0)
        assert control.running(tmp_path)
        with pytest.raises(ControlError, match="run this as root"):
            await off_loop(control.call, tmp_path, "echo")


async def test_a_worker_asks_another(tmp_path: Path) -> None:
    path = control.worker_socket(tmp_path, 1)
    async with served(path):
        assert await control.ask_worker(tmp_path, 1, "echo", {"a": 1}) == {"a": 1}
        with pytest.raises(ControlError, match="worker 1: the file is faulty"):
            await control.ask_worker(tmp_path, 1, "refuse", {})
        with pytest.raises(ControlError, match="worker 0 cannot be asked"):
            await control.ask_worker(tmp_path, 0, "echo", {})

    async def sleep(_args: dict[str, Any]) -> Any:
        await asyncio.Event().wait()

    async with served(path, {"sleep": sleep}):
        with pytest.raises(ControlError, match="no answer"):
            await control.ask_worker(tmp_path, 1, "sleep", {}, timeout=0.05)
