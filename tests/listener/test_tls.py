"""STARTTLS and implicit TLS: what changes, what is forgotten, what is never obeyed, and handshakes that fail."""

from __future__ import annotations

import asyncio
import base64
import ssl

from relayd.listener.observer import ListenerRefusal
from tests.listener.conftest import Serve
from tests.support.fake_door import FakeDoor

MAIL = """
    C: MAIL FROM:<a@example.com>
    S: 250 2.1.0 …
    C: RCPT TO:<b@example.com>
    S: 250 2.1.5 …
    C: DATA
    S: 354 …
    C: hello
    C: .
    S: 250 2.0.0 …
"""


async def test_starttls_protects_the_rest_of_the_session(
    serve: Serve, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    served = await serve(tls="starttls", context=server_tls)
    client = await served.greeted(ehlo=False)
    assert "\n250-STARTTLS\n" in await client.ask("EHLO app")
    assert await client.ask("STARTTLS now") == "501 5.5.4 The command takes no argument"
    assert await client.ask("STARTTLS") == "220 2.0.0 Ready to start TLS"
    await client.start_tls(client_tls)
    assert (await client.ask("MAIL FROM:<a@example.com>")).startswith("503 5.5.1")
    extensions = await client.ask("EHLO app")
    assert "STARTTLS" not in extensions
    assert extensions.endswith("250 AUTH PLAIN LOGIN")
    assert await client.ask("STARTTLS") == "503 5.5.1 TLS is active already"
    await client.talk(MAIL)
    assert await client.ask("QUIT") == "221 2.0.0 Bye"
    assert await client.closed()
    (mail,) = served.door.submissions
    assert mail.tls == "TLSv1.3"
    assert served.seen.versions == ["TLSv1.3"]


async def test_login_and_name_are_forgotten_with_starttls(
    serve: Serve, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    served = await serve(tls="starttls", context=server_tls, door=FakeDoor(logins={"shop": "x"}))
    client = await served.greeted()
    login = "AUTH PLAIN " + base64.b64encode(b"\0shop\0x").decode()
    assert (await client.ask(login)).startswith("235")
    assert (await client.ask("STARTTLS")).startswith("220")
    await client.start_tls(client_tls)
    assert (await client.ask("EHLO again")).startswith("250")
    await client.talk(MAIL)
    assert served.door.submissions[0].username is None


async def test_what_is_injected_before_the_handshake_is_never_obeyed(
    serve: Serve, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    served = await serve(tls="starttls", context=server_tls)
    client = await served.greeted()
    client.send(b"STARTTLS\r\nEHLO evil\r\nMAIL FROM:<evil@example.com>\r\n")
    assert (await client.reply()).startswith("220")
    await client.start_tls(client_tls)
    assert await client.ask("NOOP") == "250 2.0.0 OK"
    assert (await client.ask("MAIL FROM:<a@example.com>")).startswith("503 5.5.1 Send EHLO")
    assert served.seen.refusals[0] is ListenerRefusal.EARLY_TALKER
    assert served.door.sizes == []


async def test_starttls_in_the_middle_of_a_mail_is_refused(serve: Serve, server_tls: ssl.SSLContext) -> None:
    client = await (await serve(tls="starttls", context=server_tls)).greeted()
    await client.ask("MAIL FROM:<a@example.com>")
    assert (await client.ask("STARTTLS")).startswith("503 5.5.1")


async def test_without_a_certificate_starttls_is_put_off(serve: Serve) -> None:
    client = await (await serve(tls="starttls")).greeted()
    assert await client.ask("STARTTLS") == "454 4.7.0 TLS is not available at the moment"


async def test_implicit_tls_from_the_first_octet(
    serve: Serve, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    served = await serve(tls="implicit", context=server_tls)
    client = await served.greeted(ssl=client_tls, server_hostname="relay.example.com")
    await client.talk(MAIL)
    assert (await client.ask("STARTTLS")).startswith("503")
    assert served.door.submissions[0].tls == "TLSv1.3"


async def test_a_large_mail_over_tls_is_whole(
    serve: Serve, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    served = await serve(tls="implicit", context=server_tls)
    client = await served.greeted(ssl=client_tls, server_hostname="relay.example.com")
    body = b"".join(b"%08d\r\n" % n for n in range(100_000))
    client.send(b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\nBDAT %d LAST\r\n" % len(body) + body)
    assert [(await client.reply())[:3] for _ in range(3)] == ["250"] * 3
    assert served.contents == [body]


async def test_old_tls_is_refused(serve: Serve, authority: object, server_tls: ssl.SSLContext) -> None:
    served = await serve(tls="implicit", context=server_tls)
    reader_closed = False
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_ciphers("AES128-SHA")
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        await served.connect(ssl=context)
    except (ssl.SSLError, ConnectionError):
        reader_closed = True
    assert reader_closed
    await served.greeted(ssl=trusting(), server_hostname="relay.example.com")
    assert served.seen.refusals == [ListenerRefusal.TLS]


def trusting() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


async def test_a_handshake_that_never_ends_is_ended(serve: Serve, server_tls: ssl.SSLContext) -> None:
    served = await serve(tls="implicit", context=server_tls, timings={"tls_timeout": 0.1})
    client = await served.connect()
    client.send(b"\x16\x03\x01")
    assert await client.closed()
    assert served.seen.refusals == [ListenerRefusal.TLS]


async def test_smtp_spoken_to_an_implicit_tls_port_is_ended(serve: Serve, server_tls: ssl.SSLContext) -> None:
    served = await serve(tls="implicit", context=server_tls)
    client = await served.connect()
    client.send(b"EHLO app\r\n")
    async with asyncio.timeout(20):
        while await client.reader.read(100):
            pass  # an alert, then the end
    assert served.seen.refusals == [ListenerRefusal.TLS]


async def test_a_handshake_broken_off_after_starttls(serve: Serve, server_tls: ssl.SSLContext) -> None:
    served = await serve(tls="starttls", context=server_tls)
    client = await served.greeted()
    assert (await client.ask("STARTTLS")).startswith("220")
    await client.close()
    other = await served.greeted()
    assert await other.ask("NOOP") == "250 2.0.0 OK"


async def test_a_new_certificate_is_shown_after_reload(
    serve: Serve, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    served = await serve(tls="implicit", context=None)
    assert await (await served.connect()).closed()
    server = served.server
    server.apply(server.listener, server.limits, server_tls)
    client = await served.greeted(ssl=client_tls, server_hostname="relay.example.com")
    await client.talk(MAIL)


async def test_early_talkers_over_tls_are_refused(
    serve: Serve, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    # With TLS 1.3 the client's first octets may travel with the end of its handshake.
    served = await serve(tls="implicit", context=server_tls)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client_tls.wrap_bio(incoming, outgoing, server_hostname="relay.example.com")
    client = await served.connect()
    while True:
        try:
            tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            client.send(outgoing.read())
            incoming.write(await client.reader.read(65536))
    tls.write(b"EHLO early\r\n")
    client.send(outgoing.read())
    received = b""
    while not received:
        incoming.write(await client.reader.read(65536))
        try:
            received = tls.read(1000)
        except ssl.SSLWantReadError:
            continue
    assert received.startswith(b"554 5.5.0 ")
