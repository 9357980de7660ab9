"""Who keeps a place at the cap on connections: those who may send; of all others the newest."""

from __future__ import annotations

import asyncio
import math
import socket
import ssl
import struct
from base64 import b64encode
from typing import Any

import pytest

from relayd.core.counter import ConnectionCounter
from relayd.listener.observer import ListenerRefusal
from relayd.listener.opening import Opening
from relayd.listener.stream import LINE_MAX
from tests.listener.conftest import Client, Serve, limits, until
from tests.support.fake_door import KEPT, FakeDoor, known

LOGIN = "AUTH PLAIN " + b64encode(b"\0shop\0secret").decode()
FULL = "421 4.3.2 Too many connections; try again later"


async def gone(client: Client) -> str:
    """What a client reads until its connection is closed, however that is done."""
    try:
        async with asyncio.timeout(20):
            return (await client.reader.read()).decode("latin-1")
    except ConnectionError:
        return ""


MAIL = b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\n"


@pytest.mark.parametrize(
    ("octets", "answers"),
    [
        (b"", 0),
        (b"NOO", 0),
        (MAIL, 2),
        (MAIL + b"DATA\r\n", 3),
        (MAIL + b"DATA\r\nSubject: x\r\n", 3),
        (MAIL + b"BDAT 100000\r\nSubject", 2),
        (b"AUTH LOGIN\r\n", 1),
    ],
    ids=repr,
)
async def test_the_oldest_stranger_makes_room_whatever_it_waits_for(serve: Serve, octets: bytes, answers: int) -> None:
    served = await serve()
    served.server.counter.connections = 2
    first, second = await served.greeted(), await served.greeted()
    first.send(octets)
    for _ in range(answers):
        await first.reply()
    third = await served.greeted()
    assert await gone(first) == FULL + "\r\n"
    assert served.seen.refusals == [ListenerRefusal.DISPLACED]
    for client in (second, third):
        assert await client.ask("NOOP") == "250 2.0.0 OK"


@pytest.mark.parametrize("how", ["starttls", "implicit", "proxy"])
async def test_who_does_not_even_begin_makes_room(serve: Serve, server_tls: ssl.SSLContext, how: str) -> None:
    keys: dict[str, Any] = (
        {"tls": how, "context": server_tls} if how != "proxy" else {"proxy_protocol": ["127.0.0.1/32"]}
    )
    served = await serve(timings={"proxy_start_timeout": 20.0}, **keys)
    counter = served.server.counter
    counter.connections = 1
    first = await served.connect()
    if how == "starttls":
        await first.reply()
        await first.ask("EHLO client.example")
        assert (await first.ask("STARTTLS")).startswith("220")
    await until(lambda: served.seen.open == 1 and all(c._begun for c in served.server.connections))
    second = await served.connect()
    assert await gone(first) == ""
    await until(lambda: served.seen.open == 1)
    assert served.seen.refusals[0] is ListenerRefusal.DISPLACED
    second.writer.close()


async def test_who_may_send_keeps_the_place(serve: Serve) -> None:
    counter = ConnectionCounter(2, 50)
    served = await serve(door=FakeDoor(logins={"shop": "secret"}), counter=counter)
    home = await serve(door=FakeDoor(on_connect=known), counter=counter)
    login, neighbour = await served.greeted(), await home.greeted()
    assert (await login.ask(LOGIN)).startswith("235")
    refused = await served.connect()
    assert await refused.reply() == FULL
    assert await refused.closed()
    for client in (login, neighbour):
        assert await client.ask("NOOP") == "250 2.0.0 OK"
    # a stranger of one listener makes room for a client of the other
    assert await login.ask("QUIT") == "221 2.0.0 Bye"
    assert await login.closed()
    stranger = await served.greeted()
    await home.greeted()
    assert await gone(stranger) == FULL + "\r\n"


async def test_a_login_is_forgotten_with_starttls(
    serve: Serve, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    served = await serve(door=FakeDoor(logins={"shop": "secret"}), tls="starttls", context=server_tls)
    served.server.counter.connections = 1
    client = await served.greeted()
    assert (await client.ask(LOGIN)).startswith("235")
    assert (await client.ask("STARTTLS")).startswith("220")
    await client.start_tls(client_tls)
    assert (await client.ask("EHLO again")).startswith("250")
    await served.greeted()
    assert FULL in await gone(client)


async def test_a_mail_in_the_hands_of_intake_is_not_cut_off(serve: Serve) -> None:
    door = FakeDoor(gate=asyncio.Event())
    served = await serve(door=door)
    served.server.counter.connections = 1
    client = await served.greeted()
    client.send(MAIL + b"DATA\r\n")
    for _ in range(3):
        await client.reply()
    client.send(b"Subject: x\r\n\r\nx\r\n.\r\n")
    await door.waiting.wait()
    refused = await served.connect()
    assert await refused.reply() == FULL
    assert door.gate is not None
    door.gate.set()
    assert await client.reply() == str(KEPT)


async def test_a_mail_earns_a_new_place(serve: Serve) -> None:
    served = await serve()
    served.server.counter.connections = 2
    busy, idle = await served.greeted(), await served.greeted()
    busy.send(MAIL + b"DATA\r\n")
    for _ in range(3):
        await busy.reply()
    assert await busy.ask(".") == str(KEPT)
    await served.greeted()
    assert await gone(idle) == FULL + "\r\n"
    assert await busy.ask("NOOP") == "250 2.0.0 OK"


async def test_a_client_that_does_not_read_makes_room_at_once(serve: Serve) -> None:
    served = await serve(limits=limits(commands=10**9))
    served.server.counter.connections = 1
    deaf = await served.greeted()
    deaf.writer.transport.pause_reading()  # type: ignore[attr-defined]
    connection = next(iter(served.server.connections))
    flood = asyncio.create_task(_flood(deaf), name="flood")
    await until(lambda: connection._paused)
    await served.greeted()
    await until(lambda: connection.lost)
    flood.cancel()
    await asyncio.gather(flood, return_exceptions=True)


async def _flood(client: Client) -> None:
    while True:
        client.send(b"HELP\r\n" * 10_000)
        await client.writer.drain()


def test_no_more_than_a_quarter_is_on_its_way_out() -> None:
    class Slow:
        asked = 0

        def give_way(self) -> bool:
            self.asked += 1
            return True

    counter = ConnectionCounter(8, 50)
    guests = [Slow() for _ in range(20)]
    assert [counter.enter(guest) for guest in guests] == [True] * 10 + [False] * 10
    assert [guest.asked for guest in guests] == [1, 1] + [0] * 18
    for guest in guests[:10]:
        counter.leave(guest)
    assert counter.open == 0
    assert [counter.enter(guest) for guest in guests] == [True] * 10 + [False] * 10


def reset(client: Client) -> None:
    """End the connection by RST, as a client does that crashes, or a probe that only looks whether somebody listens."""
    sock = client.writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.writer.transport.abort()


async def test_who_goes_while_its_mail_is_kept_leaves_its_place(serve: Serve) -> None:
    served = await serve(door=FakeDoor(gate=asyncio.Event()))
    counter = served.server.counter
    counter.connections = 2
    client = await served.greeted()
    client.send(MAIL + b"DATA\r\nA: b\r\n\r\nx\r\n.\r\n")
    await served.door.waiting.wait()
    [connection] = served.server.connections
    reset(client)
    await until(lambda: connection.lost)
    served.door.gate.set()
    await until(lambda: not served.server.connections)
    others = [await served.greeted() for _ in range(4)]  # the last two each displace one
    assert len(served.contents) == 1
    assert [await gone(other) for other in others[:2]] == [FULL + "\r\n"] * 2
    for other in others[2:]:
        assert await other.ask("NOOP") == "250 2.0.0 OK"


async def test_who_goes_as_it_comes_is_not_counted_for_its_address(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = await serve()
    counter = served.server.counter
    counter.connections_per_ip = 1
    coming: list[socket.socket] = []
    made = Opening.connection_made

    def connection_made(self: Opening, transport: asyncio.BaseTransport) -> None:
        made(self, transport)
        while coming:
            sock = coming.pop()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()

    monkeypatch.setattr(Opening, "connection_made", connection_made)
    for number in range(1, 11):
        sock = socket.socket()
        coming.append(sock)
        sock.connect(served.address)
        await until(lambda seen=number: served.seen.connections == seen and not served.server.connections)
    client = await served.greeted()
    assert await client.ask("NOOP") == "250 2.0.0 OK"


async def test_the_line_behind_one_that_was_too_long_has_its_whole_time(serve: Serve) -> None:
    served = await serve()
    client = await served.greeted()
    [connection] = served.server.connections
    before, loop = connection._deadline, asyncio.get_running_loop()
    now = loop.time()
    await until(lambda: loop.time() > now + 0.01)
    assert (await client.ask("NOOP " + "x" * LINE_MAX)).startswith("500 ")
    assert before < connection._deadline < math.inf
