"""Several ports: the order they are tried in, what is remembered, and a firewall that blocks the first."""

from __future__ import annotations

import socket

import pytest

from relayd.core.session import ConnectFailedError
from relayd.delivery.ports import REMEMBERED, Ports
from relayd.delivery.smtp import SMTPConnector
from relayd.delivery.tls import ClientContexts
from tests.support.fake_upstream import FakeUpstream


def closed_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def test_what_could_not_be_reached_goes_last_for_a_while() -> None:
    ports = Ports((587, 2525, 465))
    assert ports.order(0.0) == (587, 2525, 465)
    ports.unreachable(587, 10.0)
    assert ports.order(20.0) == (2525, 465, 587)
    ports.unreachable(2525, 30.0)
    assert ports.order(40.0) == (465, 587, 2525)
    assert ports.order(10.0 + REMEMBERED) == (587, 465, 2525)
    ports.reached(2525)
    assert ports.order(10.0 + REMEMBERED) == (587, 2525, 465)


def connector(fake: FakeUpstream, *ports: int) -> SMTPConnector:
    config = fake.config(port=ports[0], ports=list(ports))
    return SMTPConnector("fake", config, "relay.test", ClientContexts())


async def test_the_next_port_is_tried_and_remembered() -> None:
    async with FakeUpstream() as fake:
        closed = closed_port()
        opens = connector(fake, closed, fake.port)
        session = await opens.open()
        assert session.endpoint == f"127.0.0.1:{fake.port}"
        await session.close()
        assert opens._ports.order(0.0)[-1] == closed


async def test_a_port_that_answers_no_is_reached() -> None:
    async with FakeUpstream({"greeting": "554 5.3.2 closed"}) as first, FakeUpstream() as second:
        with pytest.raises(ConnectFailedError) as failed:
            await connector(first, first.port, second.port).open()
    assert failed.value.outcome.reply.code == 554
    assert second.connections == 0


async def test_when_no_port_can_be_reached_the_last_failure_is_told() -> None:
    async with FakeUpstream() as fake:
        ports = closed_port(), closed_port()
        with pytest.raises(ConnectFailedError) as failed:
            await connector(fake, *ports).open()
    assert failed.value.endpoint == f"127.0.0.1:{ports[1]}"
    assert failed.value.outcome.reply.enhanced == "4.4.1"
