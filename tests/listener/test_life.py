"""A session's life around the dialogue: vanishing clients, draining, reload, faults of ours, one log line each."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from relayd.config.models import Listener
from relayd.core.reply import Reply
from relayd.listener.observer import ListenerRefusal
from tests.listener.conftest import Client, Serve, limits, until
from tests.support.fake_door import KEPT, FakeDoor
from tests.support.log_lines import log_lines

ENVELOPE = b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\nDATA\r\n"


def broken(*args: object) -> Reply:
    raise RuntimeError("geheim: /etc/passwd")


async def open_data(client: Client) -> None:
    client.send(ENVELOPE)
    for code in ("250", "250", "354"):
        assert (await client.reply()).startswith(code)


@pytest.mark.parametrize("how", ["close", "reset", "half-close"])
async def test_a_client_that_vanishes_during_the_commit_cancels_nothing(serve: Serve, how: str) -> None:
    door = FakeDoor(gate=asyncio.Event())
    served = await serve(door=door)
    client = await served.greeted()
    await open_data(client)
    client.send(b"kept\r\n.\r\n")
    await door.waiting.wait()
    if how == "half-close":
        client.writer.write_eof()
    elif how == "reset":
        sock = client.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.writer.transport.abort()
    else:
        await client.close()
    assert door.gate is not None
    if how == "reset":
        await until(lambda: not served.seen.open)
    door.gate.set()
    if how == "half-close":
        assert await client.reply() == str(KEPT)
        assert await client.closed()
    await until(lambda: not served.server._tasks)
    assert served.contents == [b"kept\r\n"]


async def test_half_a_message_is_no_message(serve: Serve) -> None:
    served = await serve()
    client = await served.greeted()
    await open_data(client)
    client.send(b"half of it\r\n")
    client.writer.write_eof()
    assert await client.closed()
    assert served.contents == []


async def test_commands_sent_before_a_half_close_are_answered(serve: Serve) -> None:
    client = await (await serve()).greeted()
    client.send(b"NOOP\r\nQUIT\r\n")
    client.writer.write_eof()
    assert await client.reply() == "250 2.0.0 OK"
    assert await client.reply() == "221 2.0.0 Bye"


@pytest.mark.parametrize("hook", ["on_connect", "on_mail", "on_rcpt", "on_submit"])
async def test_a_fault_of_ours_tells_nothing(serve: Serve, hook: str) -> None:
    door = FakeDoor(**{hook: broken})
    served = await serve(door=door)
    with capture_logs() as logs:
        client = await served.connect()
        greeting = await client.reply()
        if hook == "on_connect":
            assert greeting.startswith("421 4.3.0 ")
            assert await client.closed()
        else:
            await client.ask("EHLO app")
            client.send(b"MAIL FROM:<a@example.com>\r\n")
            replies = [await client.reply()]
            if hook != "on_mail":
                replies.append(await client.ask("RCPT TO:<b@example.com>"))
            if hook == "on_submit":
                await client.ask("DATA")
                replies.append(await client.ask("."))
            assert replies[-1] == "451 4.3.0 Something went wrong here; try again later"
            assert await client.ask("NOOP") == "250 2.0.0 OK"
            assert (await client.ask("DATA")).startswith("503")
        assert "geheim" not in greeting
    assert ListenerRefusal.INTERNAL in served.seen.refusals
    assert [log["log_level"] for log in logs].count("error") == 1


async def test_draining_tells_idle_clients_at_once(serve: Serve) -> None:
    served = await serve()
    client = await served.greeted()
    drained = asyncio.create_task(served.server.drain(10), name="drain")
    assert await client.reply() == "421 4.3.2 The service is shutting down; try again in a moment"
    assert await client.closed()
    await client.close()
    await drained
    with pytest.raises(ConnectionError):
        await served.connect()


async def test_a_client_that_came_at_the_very_moment_of_draining_is_told_and_not_forgotten(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = await serve()
    server, loop = served.server, asyncio.get_running_loop()
    begin = server.run

    def drain_now() -> None:
        # before the session's task takes its first step, which a task that is cancelled never does
        server.draining = True
        for connection in list(server.connections):
            connection.drain()

    def run_and_drain(connection: Any) -> asyncio.Task[None]:
        loop.call_soon(drain_now)
        return begin(connection)

    monkeypatch.setattr(server, "run", run_and_drain)
    client = await served.connect()
    async with asyncio.timeout(20):
        assert b"220" not in await client.reader.read()  # told to come again, or just shown out
        await client.close()
        await server.drain(10)
    assert not server.connections


async def test_draining_lets_a_message_be_finished(serve: Serve) -> None:
    served = await serve()
    client = await served.greeted()
    await open_data(client)
    client.send(b"first half\r\n")
    drained = asyncio.create_task(served.server.drain(10), name="drain")
    await until(lambda: served.server.draining)
    client.send(b"second half\r\n.\r\n" + ENVELOPE)
    assert await client.reply() == str(KEPT)
    assert (await client.reply()).startswith("421 4.3.2 ")
    await client.close()
    await drained
    assert served.contents == [b"first half\r\nsecond half\r\n"]


async def test_draining_lets_a_mail_with_recipients_be_finished(serve: Serve) -> None:
    served = await serve()
    client = await served.greeted()
    assert (await client.ask("MAIL FROM:<a@example.com>")).startswith("250")
    assert (await client.ask("RCPT TO:<b@example.com>")).startswith("250")
    drained = asyncio.create_task(served.server.drain(10), name="drain")
    await until(lambda: served.server.draining)
    assert (await client.ask("RCPT TO:<c@example.com>")).startswith("250")
    assert (await client.ask("DATA")).startswith("354")
    client.send(b"all of it\r\n.\r\n")
    assert await client.reply() == str(KEPT)
    assert (await client.reply()).startswith("421 4.3.2 ")
    await client.close()
    await drained
    assert served.contents == [b"all of it\r\n"]


async def test_draining_ends_an_open_envelope_at_the_next_command(serve: Serve) -> None:
    served = await serve()
    client = await served.greeted()
    assert (await client.ask("MAIL FROM:<a@example.com>")).startswith("250")
    drained = asyncio.create_task(served.server.drain(10), name="drain")
    await until(lambda: served.server.draining)
    assert (await client.ask("RCPT TO:<b@example.com>")).startswith("421 4.3.2 ")
    await client.close()
    await drained


async def test_draining_lets_chunks_be_finished(serve: Serve) -> None:
    served = await serve()
    client = await served.greeted()
    client.send(b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\nBDAT 3\r\na\r\n")
    for _ in range(3):
        assert (await client.reply()).startswith("250")
    drained = asyncio.create_task(served.server.drain(10), name="drain")
    await until(lambda: served.server.draining)
    client.send(b"BDAT 3 LAST\r\nb\r\n")
    assert await client.reply() == str(KEPT)
    assert (await client.reply()).startswith("421 4.3.2 ")
    await client.close()
    await drained


async def test_who_does_not_finish_in_time_is_cut_off_and_commits_go_on(serve: Serve) -> None:
    finished = asyncio.Event()

    class SlowDoor(FakeDoor):
        async def submit(self, *args: object) -> Reply:
            commit = asyncio.ensure_future(super().submit(*args))  # type: ignore[arg-type]
            commit.add_done_callback(lambda _: finished.set())
            return await asyncio.shield(commit)

    door = SlowDoor(gate=asyncio.Event())
    served = await serve(door=door)
    stuck, committing = await served.greeted(), await served.greeted()
    await open_data(stuck)
    await open_data(committing)
    committing.send(b"kept\r\n.\r\n")
    await door.waiting.wait()
    await served.server.drain(0.05)
    assert await stuck.closed()
    assert not served.server.connections
    assert door.gate is not None
    door.gate.set()
    await finished.wait()
    assert served.contents == [b"kept\r\n"]


async def test_clients_in_their_handshake_do_not_hold_up_draining(serve: Serve, server_tls: object) -> None:
    served = await serve(tls="implicit", context=server_tls)
    client = await served.connect()
    await until(lambda: served.server.connections)
    await served.server.drain(10)
    assert await client.closed()


async def test_reload_changes_limits_without_dropping_a_session(serve: Serve) -> None:
    served = await serve()
    client = await served.greeted()
    server = served.server
    server.apply(server.listener, limits(message_size=2048, errors=2), None, "new.example.com")
    assert (await client.ask("EHLO app")).startswith("250-new.example.com\n250-PIPELINING\n250-SIZE 2048\n")
    assert (await client.ask("WHAT")).startswith("500")
    assert (await client.ask("WHAT")).startswith("500")
    assert (await client.reply()).startswith("421 4.7.0")
    assert (await (await served.connect()).reply()).startswith("220 new.example.com ")


async def test_reload_to_proxies_goes_on_at_the_same_port(serve: Serve) -> None:
    served = await serve()
    before = await served.greeted()
    server = served.server
    listener = Listener(**(server.listener.model_dump() | {"proxy_protocol": ["127.0.0.0/8"]}))
    server.apply(listener, server.limits, None)
    after = await served.connect()
    after.send(b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 25\r\n")
    assert (await after.reply()).startswith("220 ")
    assert served.door.connects == ["127.0.0.1", "192.0.2.7"]
    assert await before.ask("NOOP") == "250 2.0.0 OK"


async def test_odd_clients_leave_one_log_line_without_control_characters(serve: Serve) -> None:
    served = await serve()
    with capture_logs() as logs:
        client = await served.greeted(ehlo=False)
        client.send(b"GET /\x1b[31m HTTP/1.1\r\n")
        await client.reply()
        client.send(b"GET / HTTP/1.1\r\n")
        await client.reply()
        assert await client.closed()
        await until(lambda: not served.server._tasks)
    (line,) = [log for log in logs if log["event"] == "session ended"]
    assert (line["reason"], line["peer"], line["log_level"]) == ("protocol", "127.0.0.1", "info")
    assert all(str(value).isprintable() for log in logs for value in log.values())


async def test_the_end_of_a_session_is_told_at_debug_also_after_logging_was_set_up_anew(serve: Serve) -> None:
    served = await serve()

    async def end() -> None:
        client = await served.greeted()
        assert (await client.ask("QUIT")).startswith("221")
        await until(lambda: not served.server._tasks)

    for level, lines in (("info", 0), ("debug", 1), ("info", 0)):
        with log_lines(level) as log:
            await end()
            assert len(log.all("session closed")) == lines


async def test_odd_clients_cannot_flood_the_log(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = (await serve()).server
    for second, told in ((7.9, ["session ended"] * 20), (8.0, ["more odd clients"] + ["session ended"] * 20)):
        with monkeypatch.context() as patch, capture_logs() as logs:
            patch.setattr(server, "loop", SimpleNamespace(time=lambda second=second: second))
            for _ in range(60):
                server.odd("session ended", reason="test")
        assert [line["event"] for line in logs] == told


async def test_passwords_are_in_no_log(serve: Serve) -> None:
    served = await serve(door=FakeDoor(logins={"shop": "geheim"}))
    with capture_logs() as logs:
        client = await served.greeted()
        for command in ("AUTH PLAIN AHNob3AAZ2VoZWlt+", "AUTH PLAIN AHNob3AAZ2VoZWlt", "AUTH PLAIN", "QUIT"):
            await client.ask(command)
        with suppress(ConnectionError):
            await client.close()
    assert "Z2VoZWlt" not in str(logs)
    assert "geheim" not in str(logs)
