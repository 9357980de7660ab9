"""Every limit on what a client may ask: its reply, that the session ends or goes on, and that it is counted."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress

import pytest

from relayd.intake.memory import MemoryBudget
from relayd.listener.observer import ListenerRefusal
from tests.listener.conftest import Client, Serve, Served, limits, until
from tests.support.fake_door import KEPT, FakeDoor, known
from tests.support.log_lines import log_lines

SHORT = 0.15
"""Seconds: a limit that a test waits for."""


async def greeted_in_peace(serve: Serve) -> tuple[Served, Client]:
    """A session that has a short idle time from its next command on: however slow this machine is, it was greeted."""
    served = await serve(timings={"tick": SHORT})
    client = await served.greeted()
    served.server.limits = limits(idle=SHORT)
    return served, client


async def keep_sending(client: Client, octets: bytes) -> None:
    """Send the octets one by one, for ever, ten times as fast as any limit of these tests."""
    while True:
        for octet in octets:
            client.send(bytes([octet]))
            await asyncio.sleep(SHORT / 10)


async def until_reply(client: Client, octets: bytes) -> str:
    task = asyncio.create_task(keep_sending(client, octets), name="slow client")
    try:
        return await client.reply()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def open_data(client: Client) -> None:
    await client.talk("""
        C: MAIL FROM:<a@example.com>
        S: 250 …
        C: RCPT TO:<b@example.com>
        S: 250 …
        C: DATA
        S: 354 …
    """)


async def test_too_many_connections(serve: Serve) -> None:
    served = await serve(door=FakeDoor(on_connect=known))
    served.server.counter.connections = 1
    first = await served.greeted()
    second = await served.connect()
    assert (await second.reply()).startswith("421 4.3.2 ")
    assert await second.closed()
    assert served.seen.refusals == [ListenerRefusal.CONNECTIONS]
    assert await first.ask("QUIT") == "221 2.0.0 Bye"
    assert await first.closed()
    await served.greeted()


async def test_too_many_connections_of_one_address(serve: Serve) -> None:
    served = await serve()
    served.server.counter.connections_per_ip = 1
    await served.greeted(source="127.0.0.1")
    second = await served.connect(source="127.0.0.1")
    assert (await second.reply()).startswith("421 4.7.0 ")
    assert await second.closed()
    await served.greeted(source="127.0.0.2")
    assert served.seen.refusals == [ListenerRefusal.CONNECTIONS_PER_IP]


async def test_silence_ends_the_session(serve: Serve) -> None:
    served, client = await greeted_in_peace(serve)
    assert await client.ask("NOOP") == "250 2.0.0 OK"
    assert (await client.reply()).startswith("421 4.4.2 ")
    assert await client.closed()
    assert served.seen.refusals == [ListenerRefusal.IDLE]


@pytest.mark.parametrize("octets", [b"A", b"NOOP "], ids=repr)
async def test_a_command_that_comes_octet_by_octet_without_end(serve: Serve, octets: bytes) -> None:
    _, client = await greeted_in_peace(serve)
    assert await client.ask("NOOP") == "250 2.0.0 OK"
    assert (await until_reply(client, octets)).startswith("421 4.4.2 ")
    assert await client.closed()


async def test_an_answer_to_auth_that_comes_octet_by_octet(serve: Serve) -> None:
    _, client = await greeted_in_peace(serve)
    assert (await client.ask("AUTH LOGIN")).startswith("334")
    assert (await until_reply(client, b"A")).startswith("421 4.4.2 ")


async def test_message_data_that_stops(serve: Serve) -> None:
    served = await serve(limits=limits(data_idle=SHORT))
    client = await served.greeted()
    await open_data(client)
    client.send(b"Subject: the end?\r\n")
    assert (await client.reply()).startswith("421 4.4.2 ")
    assert await client.closed()
    assert served.seen.refusals == [ListenerRefusal.DATA_IDLE]


@pytest.mark.parametrize("verb", ["DATA", "BDAT"])
async def test_message_data_that_trickles(serve: Serve, verb: str) -> None:
    served = await serve(limits=limits(min_rate=1000), timings={"rate_window": SHORT})
    client = await served.greeted()
    if verb == "DATA":
        await open_data(client)
    else:
        client.send(b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\nBDAT 100000\r\n")
        await client.reply()
        await client.reply()
    assert (await until_reply(client, b"x")).startswith("421 4.4.2 ")
    assert await client.closed()
    assert served.seen.refusals == [ListenerRefusal.MIN_RATE]


async def test_a_session_that_lasts_too_long_ends_between_mails(serve: Serve) -> None:
    served = await serve(timings={"tick": SHORT})
    begun, lasts = asyncio.get_running_loop().time(), served.server.limits.session
    client = await served.greeted()
    connection = next(iter(served.server.connections))
    assert begun + lasts <= connection._ends_at <= connection.loop.time() + lasts
    connection._ends_at = connection.loop.time() + SHORT
    assert (await client.reply()).startswith("421 4.4.2 ")
    assert served.seen.refusals == [ListenerRefusal.SESSION]


async def test_an_open_mail_may_be_finished_after_the_session_time(serve: Serve) -> None:
    served = await serve(timings={"tick": SHORT})
    client = await served.greeted()
    await open_data(client)
    connection = next(iter(served.server.connections))
    connection._ends_at = connection.loop.time()
    await until(lambda: connection.loop.time() > connection._ends_at + 2 * SHORT)
    client.send(b"late\r\n.\r\n")
    assert await client.reply() == str(KEPT)
    assert (await client.reply()).startswith("421 4.4.2 ")


async def test_commands_without_a_mail(serve: Serve) -> None:
    served = await serve(limits=limits(commands=10))
    client = await served.greeted()
    client.send(b"NOOP\r\nRSET\r\n" * 3000)
    replies = [await client.reply() for _ in range(10)]
    assert replies[:9] == ["250 2.0.0 OK"] * 9
    assert replies[9].startswith("421 4.7.0 ")
    assert await client.closed()
    assert served.seen.refusals == [ListenerRefusal.COMMANDS]


async def test_mails_and_accepted_recipients_are_no_idle_commands(serve: Serve) -> None:
    served = await serve(limits=limits(commands=10))
    client = await served.greeted()
    for _ in range(5):
        client.send(b"MAIL FROM:<a@example.com>\r\n" + b"RCPT TO:<b@example.com>\r\n" * 50 + b"DATA\r\n")
        assert [(await client.reply())[:3] for _ in range(52)] == ["250"] * 51 + ["354"]
        client.send(b".\r\n")
        assert await client.reply() == str(KEPT)


async def test_errors(serve: Serve) -> None:
    served = await serve(limits=limits(errors=3))
    client = await served.greeted()
    await client.talk("""
        C: WHAT
        S: 500 5.5.1 …
        C: MAIL FROM:a@example.com
        S: 501 5.5.2 …
        C: WHAT
        S: 500 5.5.1 …
        S: 421 4.7.0 Too many errors
        S: closed
    """)


async def test_a_mail_that_is_kept_forgives_errors(serve: Serve) -> None:
    client = await (await serve(limits=limits(errors=3))).greeted()
    for _ in range(3):
        assert (await client.ask("WHAT")).startswith("500")
        assert (await client.ask("WHAT")).startswith("500")
        await open_data(client)
        assert await client.ask(".") == str(KEPT)


async def test_a_line_without_end(serve: Serve) -> None:
    served = await serve()
    client = await served.greeted()
    client.send(b"A" * 20_000)
    client.send(b"A" * 20_000 + b"\r\n")
    assert await client.reply() == "500 5.5.2 The line is too long"
    assert await client.ask("NOOP") == "250 2.0.0 OK"
    client.send(b"A" * 200_000)
    assert await client.reply() == "500 5.5.2 The line is too long"
    assert await client.closed()


async def test_a_client_that_does_not_read_is_ended(serve: Serve) -> None:
    served = await serve(limits=limits(commands=10**9), timings={"tick": SHORT})
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, served.address)
    with sock:
        await loop.sock_recv(sock, 100)
        served.server.limits = limits(idle=SHORT, commands=10**9)
        async with asyncio.timeout(30):
            with pytest.raises(ConnectionError):
                while True:  # what the kernels' buffers hold on both sides is no small amount, nor the same everywhere
                    await loop.sock_sendall(sock, b"HELP\r\n" * 100_000)
    assert served.seen.refusals == [ListenerRefusal.UNREAD_REPLIES]


@pytest.mark.parametrize("hello", [b"EHLO app\r\nMAIL FROM:<a@example.com>\r\n", b"HELO app\r\nNOOP\r\n"])
async def test_pipelining_before_it_is_offered(serve: Serve, hello: bytes) -> None:
    served = await serve()
    client = await served.greeted(ehlo=False)
    client.send(hello)
    assert (await client.reply()).startswith("554 5.5.0 ")
    assert await client.closed()
    assert served.door.sizes == []


async def test_pipelining_behind_auth(serve: Serve) -> None:
    client = await (await serve()).greeted()
    client.send(b"AUTH PLAIN AGEAYg==\r\nMAIL FROM:<a@example.com>\r\n")
    assert (await client.reply()).startswith("554 5.5.0 ")
    assert await client.closed()


@pytest.mark.parametrize(
    ("octets", "reply"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "554 5.5.0 This is an SMTP server"),
        (b"POST / HTTP/1.1\r\n\r\nMAIL FROM:<a@example.com>\r\n", "554 5.5.0 This is an SMTP server"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01", "554 5.5.0 This port does not begin with TLS"),
        (b"\x16\x03\x01\x00\x05ab\ncd\r\n", "554 5.5.0 This port does not begin with TLS"),
        (b"\x80\x2e\x01\x00\x02", "554 5.5.0 This port does not begin with TLS"),
        (b"\x80\x2e\x01\x00\x02\x00\n\x07\x00", "554 5.5.0 This port does not begin with TLS"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "554 5.5.0 This is an SMTP server"),
        (b"Host: relay.example.com\r\nMAIL FROM:<a@example.com>\r\n", "554 5.5.0 This is an SMTP server"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", "554 5.7.0 You may not use PROXY"),
        (b"\r\n\r\n\x00\r\nQUIT\n!\x11\x00\x0c", "554 5.7.0 You may not use PROXY"),
    ],
    ids=repr,
)
async def test_what_is_no_smtp_is_shown_out(serve: Serve, octets: bytes, reply: str) -> None:
    with log_lines("info") as log:
        served = await serve()
        client = await served.greeted(ehlo=False)
        client.send(octets)
        assert [(await client.reply())[: len(reply)]] == [reply]
        assert await client.closed()
        assert served.seen.refusals[-1] in (ListenerRefusal.PROTOCOL, ListenerRefusal.PROXY)
        assert served.door.sizes == []
        (line,) = log.all()
    assert line["event"] == "session ended"
    assert line["reply"].startswith(reply)


@pytest.mark.parametrize(
    ("octets", "reply"),
    [
        (b"EHLO early\r\nMAIL FROM:<a@example.com>\r\n", "554 5.5.0 You spoke before the greeting"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "554 5.5.0 You spoke before the greeting"),
        (b"\x16\x03\x01\x00\x05ab\ncd", "554 5.5.0 This port does not begin with TLS"),
        (b"\x80\x2e\x01\x00\x02\x00\n", "554 5.5.0 This port does not begin with TLS"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nEHLO x\r\n", "554 5.5.0 You spoke before the greeting"),
        (b"\0", "554 5.5.0 You spoke before the greeting"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("proxies", [[], ["192.0.2.0/24"]], ids=["transport", "bare socket"])
async def test_who_does_not_wait_for_the_greeting_is_told_in_one_line(
    serve: Serve, octets: bytes, reply: str, proxies: list[str]
) -> None:
    with log_lines("info") as log:
        served = await serve(proxy_protocol=proxies)
        sock = socket.create_connection(served.address)  # the listener gets its turn only after both of these
        sock.sendall(octets)
        client = Client(*await asyncio.open_connection(sock=sock))
        assert (await client.reply()).startswith(reply)
        assert await client.closed()
        await client.close()
        (line,) = log.all()
    assert line["reply"].startswith(reply)
    assert served.door.connects == []


@pytest.mark.parametrize(
    "octets", [b"EHLO x\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\x80\x2e\x01\x00\x02" + bytes(50), b"\0" * 100], ids=repr
)
async def test_what_is_no_tls_ends_at_a_port_that_begins_with_it(
    serve: Serve, server_tls: ssl.SSLContext, octets: bytes
) -> None:
    with log_lines("info") as log:
        served = await serve(tls="implicit", context=server_tls)
        client = await served.connect()
        client.send(octets)
        async with asyncio.timeout(20):
            with suppress(ConnectionError):
                while await client.reader.read(100):
                    pass  # an alert, then the end
        await until(log.all)
        (line,) = log.all()
    assert (line["reason"], line["reply"]) == ("tls", "")
    assert served.door.connects == []


async def test_a_client_that_pipelines_without_end_lets_others_have_a_turn(serve: Serve) -> None:
    served = await serve(limits=limits(commands=10**9))
    greedy, modest = await served.greeted(), await served.greeted()
    greedy.send(b"NOOP\r\n" * 50_000)
    assert await modest.ask("NOOP") == "250 2.0.0 OK"


async def test_recipients_count_as_memory(serve: Serve) -> None:
    door = FakeDoor(memory=MemoryBudget(10_000))
    served = await serve(door=door)
    client = await served.greeted()
    client.send(b"MAIL FROM:<a@example.com>\r\n" + b"RCPT TO:<b@example.com>\r\n" * 100)
    replies = [await client.reply() for _ in range(101)]
    taken = replies.count("250 2.1.5 Recipient OK")
    assert 20 < taken < 40
    assert set(replies[taken + 1 :]) == {"452 4.3.1 Out of memory for messages at the moment; try again later"}
    assert await client.ask("RSET") == "250 2.0.0 OK"
    assert door.memory.used == 0
    await open_data(client)
    assert door.memory.used > 256
    assert await client.ask(".") == str(KEPT)
    assert door.memory.used == 0
    client.send(b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\n")
    await client.reply()
    await client.reply()
    await client.close()
    await until(lambda: not door.memory.used)
