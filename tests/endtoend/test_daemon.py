"""The daemon as a process: it starts, carries a mail, says what it did, and ends."""

from __future__ import annotations

from tests.endtoend.client import mail, send_one
from tests.endtoend.conftest import MakeDaemon
from tests.support.daemon import smtp_upstream
from tests.support.fake_upstream import FakeUpstream


async def test_a_mail_goes_from_the_client_to_the_upstream(make_daemon: MakeDaemon) -> None:
    async with FakeUpstream(tls="starttls", users={"u": "a secret word"}) as upstream:
        daemon = make_daemon({"upstreams": {"acme": smtp_upstream(upstream)}}, execute=True)
        await daemon.start()
        number = await send_one(daemon.port, "app@example.com", "a@example.org", content=mail("through"))
        event = await daemon.wait_for_event("delivered", id=number)
        assert (event["recipient"], event["upstream"], event["tls"]) == ("a@example.org", "acme", "TLSv1.3")
        [taken] = upstream.accepted
        assert (taken.sender, taken.recipients, taken.username) == ("app@example.com", ["a@example.org"], "u")
        assert taken.content.endswith(mail("through"))
        assert taken.content.startswith(b"Received: from client.test")
        assert await daemon.stop() == 0
        report = daemon.audit()
        assert report.clean and report.accepted == 1
        assert "a secret word" not in daemon.everything_said()


async def test_it_is_killed_and_started_again(make_daemon: MakeDaemon) -> None:
    async with FakeUpstream({"MAIL": "451 4.3.0 not now"}) as upstream:
        daemon = make_daemon({"upstreams": {"acme": smtp_upstream(upstream)}, "retry": {"schedule": "100ms*"}})
        await daemon.start()
        number = await send_one(daemon.port, "app@example.com", "a@example.org")
        await daemon.wait_for_event("deferred", id=number)
        await daemon.kill9()
        upstream.script.clear()
        await daemon.restart()
        await daemon.wait_for_event("delivered", id=number)
        assert await daemon.stop() == 0
        assert daemon.audit().clean


async def test_commands_find_it(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon()
    await daemon.start()
    number = await send_one(daemon.port, "app@example.com", "a@example.org")
    await daemon.wait_for_event("delivered", id=number)
    status = (await daemon.cli("status", "--json")).json
    assert status["running"]
    [kept] = (await daemon.cli("sandbox", "list", "--json")).json
    assert kept["sender"] == "app@example.com"
    assert (await daemon.cli("audit")).code == 0
    assert (await daemon.message(number))["recipients"][0]["state"] == "delivered"


async def test_several_workers_share_the_ports(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon({"workers": 2})
    await daemon.start()
    assert set(daemon.worker_pids()) == {0, 1}
    numbers = {await send_one(daemon.port, "app@example.com", "a@example.org") for _ in range(20)}
    for number in numbers:
        await daemon.wait_for_event("delivered", id=number)
    assert len(numbers) == 20
    assert await daemon.stop() == 0
    assert daemon.audit().accepted == 20
