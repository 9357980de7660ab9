"""A changed configuration is applied without dropping a connection; a faulty one changes nothing and says why."""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
from typing import Any

import pytest

from tests.endtoend.client import Client, id_of, mail, send_one
from tests.endtoend.conftest import MakeDaemon
from tests.endtoend.test_random_kills import Load
from tests.support.daemon import Daemon, local, smtp_upstream
from tests.support.fake_upstream import FakeUpstream, authority

SENDER = "app@example.com"
WAYS = ("relayd reload", "SIGHUP")


async def reload(daemon: Daemon, way: str = "relayd reload") -> tuple[bool, str]:
    """Reload, and wait until it is done: was it applied, and what was said?"""
    if way == "relayd reload":
        done = await daemon.cli("reload")
        return done.code == 0, done.out + done.err
    before = len(daemon.log("reloaded")) + len(daemon.log("not_reloaded"))
    daemon.signal(signal.SIGHUP)
    await daemon.until(
        lambda: len(daemon.log("reloaded")) + len(daemon.log("not_reloaded")) > before, "the daemon has read its file"
    )
    last = max(daemon.log("reloaded") + daemon.log("not_reloaded"), key=lambda line: line["time"])
    return last["event"] == "reloaded", str(last)


@pytest.mark.parametrize(("way", "workers"), [("relayd reload", 1), ("SIGHUP", 1), ("relayd reload", 2)])
async def test_a_change_holds_for_open_sessions_and_for_what_is_queued(
    make_daemon: MakeDaemon, way: str, workers: int
) -> None:
    async with FakeUpstream({"MAIL": "451 4.3.0 not now"}) as old, FakeUpstream() as new:
        upstreams = {"old": smtp_upstream(old), "new": smtp_upstream(new)}
        base: dict[str, Any] = {"upstreams": upstreams, "retry": {"schedule": "1h*"}, "workers": workers}
        daemon = make_daemon(base | {"routes": [{"upstream": "old"}]})
        await daemon.start()
        queued = await send_one(daemon.port, SENDER, "a@example.org", content=mail("queued"))
        await daemon.wait_for_event("deferred", id=queued)
        async with Client(daemon.port) as client, Client(daemon.port) as idle:
            assert (await client.say(f"MAIL FROM:<{SENDER}>"))[0] == 250
            assert (await client.say("RCPT TO:<b@example.org>"))[0] == 250
            assert (await client.say("DATA"))[0] == 354
            client.writer.write(mail("open")[:50])

            daemon.write_config(base | {"routes": [{"upstream": "new"}], "limits": {"message_size": "1MiB"}})
            diff = await daemon.cli("config", "diff", str(daemon.path), "--json")
            assert diff.code == 0, diff.err
            assert diff.json["compared_with"] == "the running daemon"
            assert diff.json["routes"] == [{"from": "old", "to": "new", "recipients": 1, "examples": [queued]}]
            assert any("routes" in change for change in diff.json["changes"])
            applied, said = await reload(daemon, way)
            assert applied and "message_size" in said

            client.writer.write(mail("open")[50:] + b".\r\n")
            number = id_of(await client.reply())
            event = await daemon.wait_for_event("delivered", id=number)
            assert event["upstream"] == "new"
            # the new limits are announced in sessions that were open
            assert "SIZE 1048576" in (await idle.say("EHLO again.test"))[1]
            assert (await idle.say(f"MAIL FROM:<{SENDER}> SIZE=2000000"))[0] == 552
        # what waited for the old upstream goes to the new one, without waiting for its next turn there
        event = await daemon.wait_for_event("delivered", id=queued)
        assert event["upstream"] == "new"
        assert not old.accepted and len(new.accepted) == 2
        assert await daemon.stop() == 0
        assert daemon.audit().clean


@pytest.mark.parametrize("way", WAYS)
async def test_a_faulty_file_changes_nothing_and_says_why(make_daemon: MakeDaemon, way: str) -> None:
    daemon = make_daemon()
    await daemon.start()
    async with Client(daemon.port) as client:
        good = daemon.path.read_text()
        faulty = good.replace("hostname: relay.test", "hostnam: relay.test").replace("1s*", "soon")
        daemon.write_text(faulty)
        applied, said = await reload(daemon, way)
        assert not applied
        assert "hostnam" in said and "soon" in said, "every fault at once"
        number = id_of(await client.send(SENDER, ["a@example.org"], mail()))
        await daemon.wait_for_event("delivered", id=number)
        daemon.write_text("routes: [")
        assert not (await reload(daemon, way))[0]
        daemon.write_text(good.replace("relay.test", "other.test"))
        applied, said = await reload(daemon, way)
        assert applied and "hostname" in said
        assert (await client.say("EHLO again.test"))[1].startswith("other.test")


async def test_an_unchanged_file_is_no_change(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon()
    await daemon.start()
    done = await daemon.cli("reload")
    assert done.code == 0 and "nothing had changed" in done.out


async def test_what_needs_a_restart_is_said_and_left(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon()
    await daemon.start()
    daemon.write_config({"workers": 3, "data_dir": "elsewhere"})
    applied, said = await reload(daemon, "SIGHUP")  # the command would look for the daemon in the new place
    assert applied and "restart" in said
    number = await send_one(daemon.port, SENDER, "a@example.org")
    await daemon.wait_for_event("delivered", id=number)
    assert not (daemon.directory / "elsewhere").exists()


@pytest.mark.parametrize("workers", [1, 2])
async def test_listeners_come_and_go(make_daemon: MakeDaemon, workers: int) -> None:
    daemon = make_daemon({"workers": workers, "listeners": [local(), local("second")]})
    await daemon.start()
    first, second = daemon.port_of("local"), daemon.port_of("second")
    async with Client(first) as stays, Client(second) as goes:
        assert (await goes.say(f"MAIL FROM:<{SENDER}>"))[0] == 250
        assert (await goes.say("RCPT TO:<a@example.org>"))[0] == 250
        assert (await goes.say("DATA"))[0] == 354
        daemon.write_config({"workers": workers, "listeners": [local(), local("third")]})
        applied, said = await reload(daemon)
        assert applied, said
        status = await daemon.control("status")
        third = int(status["listening"]["third"][0].rpartition(":")[2])
        assert status["listening"]["local"] == [f"127.0.0.1:{first}"]
        # whoever had begun a message at the listener that goes may finish it
        goes.writer.write(mail() + b".\r\n")
        assert (await goes.reply())[0] == 250
        assert (await goes.say("NOOP"))[0] in (0, 421)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", second)
        id_of(await stays.send(SENDER, ["a@example.org"], mail()))
        await send_one(third, SENDER, "a@example.org")
    await daemon.wait_for_event("delivered", count=3)
    assert await daemon.stop() == 0


async def test_a_port_that_is_taken_changes_nothing(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon()
    await daemon.start()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        daemon.write_config({"listeners": [local(bind=[f"127.0.0.1:{port}"]), local("other")], "hostname": "new.test"})
        applied, said = await reload(daemon)
        assert not applied and str(port) in said
        async with Client(daemon.port) as client:
            assert (await client.say("EHLO x"))[1].startswith("relay.test")
    applied, said = await reload(daemon)
    assert applied, said


async def test_new_handshakes_show_the_new_certificate(make_daemon: MakeDaemon) -> None:
    listener = local("smtps", tls="implicit")
    daemon = make_daemon({"listeners": [listener]})
    await daemon.start()
    with pytest.raises(ssl.SSLCertVerificationError):
        await _greeting(daemon.port)
    certificate = authority().issue_cert("localhost")
    tls = daemon.data_dir / "tls"
    certificate.private_key_pem.write_to_path(tls / "privkey.pem")
    certificate.cert_chain_pems[0].write_to_path(tls / "fullchain.pem")
    applied, said = await reload(daemon)
    assert applied, said
    assert (await _greeting(daemon.port)).startswith("220 relay.test")


async def _greeting(port: int) -> str:
    context = ssl.create_default_context()
    authority().configure_trust(context)
    reader, writer = await asyncio.open_connection("localhost", port, ssl=context)
    try:
        return (await reader.readline()).decode()
    finally:
        writer.close()


@pytest.mark.parametrize("workers", [1, 2])
async def test_reloads_under_load(make_daemon: MakeDaemon, workers: int) -> None:
    """No client is refused or cut off, nothing is lost, nothing comes twice."""
    async with FakeUpstream() as one, FakeUpstream() as two:
        upstreams = {"one": smtp_upstream(one), "two": smtp_upstream(two)}
        base: dict[str, Any] = {"upstreams": upstreams, "workers": workers}
        daemon = make_daemon(base | {"routes": [{"upstream": "one"}]})
        await daemon.start()
        load = Load(daemon)
        async with load.running():
            for place in range(10):
                await load.more(10)
                connections = 1 + place % 4
                changed = {
                    name: section | {"limits": {"connections": connections}} for name, section in upstreams.items()
                }
                daemon.write_config(base | {"upstreams": changed, "routes": [{"upstream": ("two", "one")[place % 2]}]})
                await daemon.control("reload")
        assert set(load.answers) == {250}
        assert not load.refused_connections

        async def all_there() -> bool:
            return not (await asyncio.to_thread(daemon.audit)).waiting

        await daemon.until(all_there, "everything is delivered")
        assert await daemon.stop() == 0
        assert daemon.audit().clean
        taken = [each.content for each in (*one.accepted, *two.accepted)]
        assert one.accepted and two.accepted
        assert len(taken) == len(load.promised)
