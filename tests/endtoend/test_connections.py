"""Connections to an upstream: reused, probed, capped over all workers; an idle one that ends costs no attempt."""

from __future__ import annotations

import asyncio

import pytest

from tests.endtoend.client import Client, mail, send_one
from tests.endtoend.conftest import MakeDaemon
from tests.support.daemon import Daemon, smtp_upstream
from tests.support.fake_upstream import Drop, FakeUpstream, Wait

SENDER = "app@example.com"


async def _fill(daemon: Daemon, count: int, connections: int = 5) -> None:
    """Hand over so many mails, in several connections at once."""

    async def some(place: int) -> None:
        async with Client(daemon.port) as client:
            for number in range(place, count, connections):
                answer = await client.send(SENDER, [f"{number}@example.org"], mail(f"mail-{number}"))
                assert answer[0] == 250

    await asyncio.gather(*(some(place) for place in range(connections)))


async def test_one_connection_carries_one_mail_after_the_other(make_daemon: MakeDaemon) -> None:
    async with FakeUpstream(tls="starttls", users={"u": "a secret word"}) as upstream:
        section = smtp_upstream(upstream, limits={"connections": 1})
        daemon = make_daemon({"upstreams": {"acme": section}})
        await daemon.start()
        await _fill(daemon, 20)
        await daemon.wait_for_event("delivered", count=20)
        assert upstream.connections == 1 and len(upstream.logins) == 1
        assert await daemon.stop() == 0
        assert upstream.commands[-1] == "QUIT"


async def test_a_connection_is_renewed_after_so_many_mails(make_daemon: MakeDaemon) -> None:
    async with FakeUpstream() as upstream:
        section = smtp_upstream(upstream, limits={"connections": 1, "messages_per_connection": 3})
        daemon = make_daemon({"upstreams": {"acme": section}})
        await daemon.start()
        await _fill(daemon, 10)
        await daemon.wait_for_event("delivered", count=10)
        assert upstream.connections == 4
        assert upstream.most_open == 1


@pytest.mark.parametrize(("workers", "limit"), [(1, 3), (2, 3), (2, 1)])
async def test_no_more_connections_than_allowed_over_all_workers(
    make_daemon: MakeDaemon, workers: int, limit: int
) -> None:
    answer = asyncio.Event()
    async with FakeUpstream({"DOT": [*[Wait(answer)] * limit]}) as upstream:
        section = smtp_upstream(upstream, limits={"connections": limit})
        daemon = make_daemon({"upstreams": {"acme": section}, "workers": workers})
        await daemon.start()
        await _fill(daemon, 40, connections=20)
        # all that are allowed hold a mail, and no other comes
        await daemon.until(lambda: len(upstream.mails) == limit, "every connection is at work")
        assert upstream.open == limit
        answer.set()
        await daemon.wait_for_event("delivered", count=40)
        assert upstream.most_open == limit
        # every worker had its turn
        slots = {event["id"] for event in daemon.events("delivered")}
        assert len(slots) == 40
        assert await daemon.stop() == 0


async def test_an_idle_connection_is_probed_before_it_is_used_again(make_daemon: MakeDaemon) -> None:
    async with FakeUpstream() as upstream:
        daemon = make_daemon(
            {"upstreams": {"acme": smtp_upstream(upstream)}}, constants={"relayd.delivery.crew:STALE": 0.0}
        )
        await daemon.start()
        for place in range(3):
            await send_one(daemon.port, SENDER, f"{place}@example.org")
            await daemon.wait_for_event("delivered", count=place + 1)
        verbs = [command.split(" ")[0] for command in upstream.commands]
        once = ["MAIL", "RCPT", "DATA"]
        assert verbs == ["EHLO", *once, "RSET", *once, "RSET", *once]
        assert upstream.connections == 1


async def test_a_probe_that_fails_costs_no_attempt(make_daemon: MakeDaemon) -> None:
    async with FakeUpstream({"RSET": [Drop("421 4.4.2 idle too long")]}) as upstream:
        daemon = make_daemon(
            {"upstreams": {"acme": smtp_upstream(upstream)}}, constants={"relayd.delivery.crew:STALE": 0.0}
        )
        await daemon.start()
        for place in range(2):
            await send_one(daemon.port, SENDER, f"{place}@example.org")
            await daemon.wait_for_event("delivered", count=place + 1)
        assert upstream.connections == 2
        assert not daemon.events("deferred")
        assert {event["attempt"] for event in daemon.events("delivered")} == {1}


@pytest.mark.parametrize("way", ["closed while idle", "closed at MAIL", "421 at MAIL"])
async def test_an_idle_connection_that_the_upstream_closes_costs_no_attempt(make_daemon: MakeDaemon, way: str) -> None:
    script = {"closed while idle": {}, "closed at MAIL": {"MAIL": [None, Drop()]}}.get(
        way, {"MAIL": [None, Drop("421 4.4.2 idle too long")]}
    )
    async with FakeUpstream(script) as upstream:
        daemon = make_daemon({"upstreams": {"acme": smtp_upstream(upstream)}})
        await daemon.start()
        await send_one(daemon.port, SENDER, "0@example.org")
        await daemon.wait_for_event("delivered")
        if way == "closed while idle":
            upstream.hang_up()
        await send_one(daemon.port, SENDER, "1@example.org")
        event = await daemon.wait_for_event("delivered", count=2)
        assert event["attempt"] == 1 and not daemon.events("deferred")
        assert upstream.connections == 2


async def test_idle_connections_are_given_back(make_daemon: MakeDaemon) -> None:
    async with FakeUpstream() as upstream:
        daemon = make_daemon(
            {"upstreams": {"acme": smtp_upstream(upstream)}}, constants={"relayd.delivery.crew:IDLE": 0.2}
        )
        await daemon.start()
        await send_one(daemon.port, SENDER, "0@example.org")
        await daemon.wait_for_event("delivered")
        await daemon.until(lambda: upstream.open == 0, "the connection is closed")
        assert upstream.commands[-1] == "QUIT"
