"""PROXY and XCLIENT over sockets: who may name another client, and what that changes."""

from __future__ import annotations

import ssl
import struct

import pytest

from relayd.core.proxy import SIGNATURE
from relayd.core.reply import Reply
from relayd.listener.observer import ListenerRefusal
from tests.listener.conftest import Serve, limits
from tests.support.fake_door import FakeDoor

V1 = b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 25\r\n"
V2 = (
    SIGNATURE
    + b"\x21\x11"
    + struct.pack(">H", 15)
    + bytes([192, 0, 2, 7, 192, 0, 2, 1])
    + struct.pack(">HH", 4711, 25)
    + b"\x04\x00\x00"
)
GREETING = "220 relay.example.com ESMTP relayd"
TRUSTED = {"proxy_protocol": ["127.0.0.0/8"], "timings": {"proxy_start_timeout": 5.0, "proxy_timeout": 5.0}}
SILENT = {"proxy_protocol": ["127.0.0.0/8"], "timings": {"proxy_start_timeout": 0.05}}


@pytest.mark.parametrize("header", [V1, V2], ids=["v1", "v2"])
async def test_the_client_that_the_proxy_names_is_the_client(serve: Serve, header: bytes) -> None:
    served = await serve(**TRUSTED)
    client = await served.connect()
    client.send(header)
    assert await client.reply() == GREETING
    # plain text between the client and a proxy on this machine is not local
    assert "AUTH" not in await client.ask("EHLO app")
    assert "XCLIENT" not in await client.ask("EHLO app")
    assert (await client.ask("XCLIENT ADDR=127.0.0.1")).startswith("550 5.7.0")
    await client.talk("""
        C: MAIL FROM:<a@example.com>
        S: 250 …
        C: RCPT TO:<b@example.com>
        S: 250 …
        C: DATA
        S: 354 …
        C: .
        S: 250 …
    """)
    assert served.door.connects == ["192.0.2.7"]
    assert served.door.submissions[0].peer == "192.0.2.7"


@pytest.mark.parametrize("header", [V1, V2], ids=["v1", "v2"])
async def test_a_header_may_come_octet_by_octet(serve: Serve, header: bytes) -> None:
    served = await serve(**TRUSTED)
    client = await served.connect()
    for octet in header:
        client.send(bytes([octet]))
        await client.writer.drain()
    assert await client.reply() == GREETING
    assert served.door.connects == ["192.0.2.7"]


async def test_what_comes_behind_the_header_before_the_greeting_is_discarded(serve: Serve) -> None:
    served = await serve(**TRUSTED)
    client = await served.connect()
    client.send(V1 + b"EHLO early\r\nMAIL FROM:<evil@example.com>\r\n")
    assert await client.reply() == GREETING
    assert (await client.ask("MAIL FROM:<a@example.com>")).startswith("503 5.5.1 Send EHLO")
    assert served.seen.refusals[0] is ListenerRefusal.EARLY_TALKER


@pytest.mark.parametrize("header", [V1, V2], ids=["v1", "v2"])
async def test_the_tls_handshake_behind_the_header_is_left_alone(
    serve: Serve, header: bytes, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    served = await serve(tls="implicit", context=server_tls, **TRUSTED)
    client = await served.connect()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client_tls.wrap_bio(incoming, outgoing, server_hostname="relay.example.com")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    client.send(header + outgoing.read())  # in one packet
    while True:
        incoming.write(await client.reader.read(65536))
        try:
            tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            client.send(outgoing.read())
    client.send(outgoing.read())
    greeting = b""
    while not greeting:
        incoming.write(await client.reader.read(65536))
        try:
            greeting = tls.read(1000)
        except ssl.SSLWantReadError:
            continue
    assert greeting == GREETING.encode() + b"\r\n"
    assert served.door.connects == ["192.0.2.7"]


@pytest.mark.parametrize(
    ("header", "peer"),
    [
        (b"PROXY UNKNOWN\r\n", "0.0.0.0"),
        (SIGNATURE + b"\x21\x00\x00\x00", "0.0.0.0"),
        (SIGNATURE + b"\x20\x00\x00\x00", "127.0.0.1"),
    ],
)
async def test_a_proxy_may_speak_for_itself_but_not_for_somebody_whom_it_does_not_know(
    serve: Serve, header: bytes, peer: str
) -> None:
    served = await serve(**TRUSTED)
    client = await served.connect()
    client.send(header)
    assert await client.reply() == GREETING
    assert served.door.connects == [peer]
    assert ("AUTH" in await client.ask("EHLO app")) is (peer == "127.0.0.1")
    assert (await client.ask("XCLIENT ADDR=192.0.2.9")).startswith("550 5.7.0")


@pytest.mark.parametrize(
    "header", [b"PROXY TCP4 nonsense\r\n", SIGNATURE + b"\x21\x11\x00\x00", b"PROXY " + b"x" * 200]
)
async def test_a_malformed_header_ends_the_connection(serve: Serve, header: bytes) -> None:
    served = await serve(**TRUSTED)
    client = await served.connect()
    client.send(header)
    assert await client.reply() == "554 5.5.0 Malformed PROXY header"
    assert await client.closed()
    assert served.seen.refusals == [ListenerRefusal.PROXY]


async def test_a_header_that_stops_halfway_ends_the_connection(serve: Serve) -> None:
    served = await serve(proxy_protocol=["127.0.0.0/8"], timings={"proxy_start_timeout": 5.0, "proxy_timeout": 0.05})
    client = await served.connect()
    client.send(b"PROXY TCP4 ")
    assert (await client.reply()).startswith("554 5.5.0")
    assert await client.closed()


async def test_a_trusted_peer_that_goes_during_the_header(serve: Serve) -> None:
    served = await serve(**TRUSTED)
    client = await served.connect()
    client.send(b"PROXY")
    await client.close()


@pytest.mark.parametrize("octets", [V1, V2], ids=["v1", "v2"])
@pytest.mark.parametrize("early", [True, False])
async def test_strangers_may_not_name_others(serve: Serve, octets: bytes, early: bool) -> None:
    served = await serve(proxy_protocol=["192.0.2.0/24"])
    client = await served.connect()
    if early:
        client.send(octets)
    if await client.reply() == GREETING:
        client.send(octets)
        assert (await client.reply())[:9] in ("554 5.7.0", "500 5.5.2", "554 5.5.0")
    assert await client.closed() or True
    assert "192.0.2.7" not in served.door.connects
    assert served.seen.refusals != []


async def test_xclient_names_the_client_and_begins_anew(serve: Serve) -> None:
    served = await serve(**SILENT)
    client = await served.greeted(ehlo=False)
    assert (await client.ask("EHLO proxy")).endswith("XCLIENT ADDR PORT NAME HELO PROTO")
    await client.talk("""
        C: MAIL FROM:<a@example.com>
        S: 250 …
        C: XCLIENT ADDR=192.0.2.7
        S: 503 5.5.1 …
        C: RSET
        S: 250 …
        C: XCLIENT ADDR=IPV6:2001:db8::7 NAME=app.example HELO=app.example PROTO=ESMTP LOGIN=boss
        S: 220 relay.example.com ESMTP relayd
        C: MAIL FROM:<a@example.com>
        S: 250 …
        C: RCPT TO:<b@example.com>
        S: 250 …
        C: DATA
        S: 354 …
        C: .
        S: 250 …
    """)
    (mail,) = served.door.submissions
    assert (mail.peer, mail.helo, mail.esmtp, mail.username) == ("2001:db8::7", "app.example", True, None)
    assert served.door.connects == ["127.0.0.1", "2001:db8::7"]


async def test_a_client_that_was_named_may_not_name_itself_anew(serve: Serve) -> None:
    """Mail proxies pass on what their client says: else it could say that it is one of us."""
    served = await serve(**SILENT)
    client = await served.greeted()
    await client.talk("""
        C: XCLIENT ADDR=192.0.2.7
        S: 220 …
        C: XCLIENT ADDR=127.0.0.1
        S: 550 5.7.0 …
    """)
    assert "XCLIENT" not in await client.ask("EHLO app")
    assert (await client.ask("XCLIENT ADDR=127.0.0.1")).startswith("550 5.7.0")
    assert served.door.connects == ["127.0.0.1", "192.0.2.7"]


@pytest.mark.parametrize("place", range(2, 13))
async def test_a_header_that_comes_too_late_is_never_obeyed_wherever_it_is_cut(serve: Serve, place: int) -> None:
    served = await serve(bare_newlines="normalise", **SILENT)
    client = await served.connect()
    assert await client.reply() == GREETING
    client.send(V2[:place])
    assert (await client.reply()).startswith("554 5.7.0")
    assert served.seen.refusals == [ListenerRefusal.PROXY]


async def test_input_behind_xclient_is_discarded(serve: Serve) -> None:
    served = await serve(**SILENT)
    client = await served.greeted()
    client.send(b"XCLIENT ADDR=192.0.2.7\r\nEHLO evil\r\nMAIL FROM:<evil@example.com>\r\n")
    assert await client.reply() == GREETING
    assert (await client.ask("MAIL FROM:<a@example.com>")).startswith("503 5.5.1 Send EHLO")


async def test_a_client_that_intake_does_not_want_is_not_let_in_by_xclient(serve: Serve) -> None:
    door = FakeDoor(on_connect=lambda session: Reply(554, "5.7.1", "No") if str(session.peer) == "192.0.2.7" else None)
    client = await (await serve(door=door, **SILENT)).greeted()
    assert await client.ask("XCLIENT ADDR=192.0.2.7") == "554 5.7.1 No"
    assert await client.closed()


@pytest.mark.parametrize("argument", ["", "ADDR=nonsense", "NAME=x", "ADDR=[UNAVAILABLE]"])
async def test_malformed_xclient(serve: Serve, argument: str) -> None:
    client = await (await serve(**SILENT)).greeted()
    assert await client.ask(f"XCLIENT {argument}") == "501 5.5.4 Malformed XCLIENT attributes"


async def test_the_cap_per_address_holds_for_the_named_client(serve: Serve) -> None:
    served = await serve(limits=limits(), **TRUSTED)
    served.server.counter.connections_per_ip = 1
    first = await served.connect()
    first.send(V1)
    assert await first.reply() == GREETING
    second = await served.connect()
    second.send(V1)
    assert (await second.reply()).startswith("421 4.7.0")
    third = await served.connect()
    third.send(V1.replace(b"192.0.2.7", b"192.0.2.8"))
    assert await third.reply() == GREETING


async def test_a_trusted_peer_that_talks_smtp_too_early(serve: Serve) -> None:
    client = await (await serve(**TRUSTED)).connect()
    client.send(b"EHLO app\r\n")
    assert (await client.reply()).startswith("554 5.5.0")
    assert await client.closed()
