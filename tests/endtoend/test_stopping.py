"""SIGTERM finishes what is in flight; what cannot be finished in time is kept; one daemon per data directory."""

from __future__ import annotations

import asyncio
import signal
import socket

import pytest

from tests.endtoend.client import GONE, Client, mail, send_one
from tests.endtoend.conftest import MakeDaemon
from tests.support.daemon import Daemon, local, smtp_upstream
from tests.support.fake_upstream import SILENCE, FakeUpstream, Wait

SENDER = "app@example.com"


async def _closed(port: int) -> bool:
    try:
        async with Client(port):
            return False
    except ConnectionError:
        return True


async def _begin(client: Client) -> None:
    """A client in the middle of DATA."""
    assert (await client.say(f"MAIL FROM:<{SENDER}>"))[0] == 250
    assert (await client.say("RCPT TO:<late@example.org>"))[0] == 250
    assert (await client.say("DATA"))[0] == 354
    client.writer.write(mail("late")[:60])


@pytest.mark.parametrize(("workers", "number"), [(1, signal.SIGTERM), (1, signal.SIGINT), (2, signal.SIGTERM)])
async def test_what_is_in_flight_is_finished(make_daemon: MakeDaemon, workers: int, number: int) -> None:
    answer = asyncio.Event()
    async with FakeUpstream({"DOT": [Wait(answer)]}) as upstream:
        daemon = make_daemon({"upstreams": {"acme": smtp_upstream(upstream)}, "workers": workers, "shutdown": "10m"})
        await daemon.start()
        await send_one(daemon.port, SENDER, "early@example.org")
        await daemon.until(lambda: upstream.mails, "the upstream has a mail and has not answered")
        async with Client(daemon.port) as sending, Client(daemon.port) as idle:
            await _begin(sending)
            daemon.signal(number)
            # whoever waits between mails is told at once
            assert (await idle.reply())[0] == 421
            # each worker stops listening on its own; until then it tells newcomers 421
            await daemon.until(lambda: _closed(daemon.port), "nobody listens any more")
            sending.writer.write(mail("late")[60:] + b".\r\n")
            assert (await sending.reply())[0] == 250
            assert (await sending.reply())[0] in (421, 0)
            assert daemon.running
            answer.set()
            assert await daemon.ended() == 0
        assert [event["recipient"] for event in daemon.events("accepted")] == ["early@example.org", "late@example.org"]
        assert daemon.events("delivered", recipient="early@example.org")
        report = daemon.audit()
        assert report.clean and report.accepted == 2
        assert not daemon.log("stopping_took_too_long")
        await daemon.restart()
        if daemon.audit().final.get("delivered") != 2:
            await daemon.wait_for_event("delivered", recipient="late@example.org")
        assert len(upstream.mails) == 2


async def test_what_takes_too_long_is_cut_off_and_what_may_have_arrived_is_not_sent_again(
    make_daemon: MakeDaemon,
) -> None:
    async with FakeUpstream({"DOT": [SILENCE]}) as upstream:
        section = smtp_upstream(upstream, on_uncertain="hold")
        daemon = make_daemon({"upstreams": {"acme": section}, "shutdown": "1s"})
        await daemon.start()
        number = await send_one(daemon.port, SENDER, "a@example.org")
        await daemon.until(lambda: upstream.mails, "the upstream has the mail and is silent")
        async with Client(daemon.port) as client:
            await _begin(client)
            assert await daemon.stop() == 0
            assert await client.reply() in (GONE, (421, ""))
        report = daemon.audit()
        assert report.clean and report.accepted == 1 and report.waiting == {"uncertain": 1}
        [event] = daemon.events("uncertain", id=number)
        assert event["stage"] == "dot"
        await daemon.restart()
        await send_one(daemon.port, SENDER, "b@example.org")
        await daemon.wait_for_event("delivered", recipient="b@example.org")
        assert len(upstream.mails) == 2
        assert (await daemon.cli("queue", "release", number)).code == 0
        await daemon.wait_for_event("delivered", id=number)


async def test_stopping_does_not_wait_for_a_backlog(make_daemon: MakeDaemon) -> None:
    answer = asyncio.Event()
    async with FakeUpstream({"DOT": [Wait(answer)]}) as upstream:
        section = smtp_upstream(upstream, limits={"connections": 1})
        daemon = make_daemon({"upstreams": {"acme": section}})
        await daemon.start()
        for place in range(30):
            await send_one(daemon.port, SENDER, f"{place}@example.org")
        await daemon.until(lambda: upstream.mails, "the upstream has the first mail")
        daemon.signal(signal.SIGTERM)
        await daemon.wait_for_log("stopping")
        answer.set()
        assert await daemon.ended() == 0
        report = daemon.audit()
        assert report.clean and report.final == {"delivered": len(upstream.accepted)}
        assert len(upstream.accepted) < 30
        await daemon.restart()
        await daemon.until(lambda: len(upstream.accepted) == 30, "the rest is delivered")


async def test_sigterm_that_comes_twice_at_once_is_one(make_daemon: MakeDaemon) -> None:
    """As `timeout` and some supervisors send it: to the process, and to its group."""
    answer = asyncio.Event()
    async with FakeUpstream({"DOT": [Wait(answer)]}) as upstream:
        daemon = make_daemon({"upstreams": {"acme": smtp_upstream(upstream)}})
        await daemon.start()
        await send_one(daemon.port, SENDER, "a@example.org")
        await daemon.until(lambda: upstream.mails, "the upstream has the mail and has not answered")
        daemon.signal(signal.SIGTERM)
        daemon.signal(signal.SIGTERM)
        await daemon.wait_for_log("stopping")
        daemon.signal(signal.SIGTERM)
        answer.set()
        assert await daemon.ended() == 0
        assert daemon.events("delivered") and daemon.audit().final == {"delivered": 1}


async def test_a_second_ctrl_c_ends_it_at_once(make_daemon: MakeDaemon) -> None:
    async with FakeUpstream({"DOT": [SILENCE]}) as upstream:
        daemon = make_daemon({"upstreams": {"acme": smtp_upstream(upstream)}, "shutdown": "10m"})
        await daemon.start()
        number = await send_one(daemon.port, SENDER, "a@example.org")
        await daemon.until(lambda: upstream.mails, "the upstream has the mail and is silent")
        daemon.signal(signal.SIGINT)
        await daemon.wait_for_log("stopping")
        daemon.signal(signal.SIGINT)
        await daemon.ended()
        assert daemon.audit().clean
        await daemon.restart()
        await daemon.wait_for_event("delivered", id=number)


async def _refused(daemon: Daemon) -> str:
    """Start it where it cannot start; what it says."""
    await daemon.start(ready=False)
    assert await daemon.ended() in (1, 2)
    assert not daemon.log("ready")
    return daemon.log_text()


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_second_daemon_on_the_same_data_refuses(make_daemon: MakeDaemon, workers: int) -> None:
    first, second = make_daemon({"workers": workers}), make_daemon()
    await first.start()
    second.config["data_dir"] = str(first.data_dir)
    said = await _refused(second)
    assert "in use" in said
    assert first.process is not None and f"process {first.process.pid}" in said
    number = await send_one(first.port, SENDER, "a@example.org")
    await first.wait_for_event("delivered", id=number)
    assert await first.stop() == 0


async def test_a_port_that_is_taken_keeps_it_from_starting(make_daemon: MakeDaemon) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        daemon = make_daemon({"listeners": [local(bind=[f"127.0.0.1:{port}"])]})
        said = await _refused(daemon)
        assert f"127.0.0.1:{port}" in said and "another program listens there" in said


async def test_a_faulty_file_keeps_it_from_starting(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon({"retry": {"schedul": "1m"}, "routes": [{"upstream": "nowhere"}]})
    said = await _refused(daemon)
    assert "schedul" in said and "nowhere" in said
    assert not daemon.data_dir.exists()
