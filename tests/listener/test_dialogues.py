"""Whole sessions as they look on the wire: what is offered, what order holds, and the code of every reply."""

from __future__ import annotations

import base64

import pytest

from relayd.core.mail import Body, Notify, Ret
from relayd.core.reply import Reply
from relayd.listener.connection import Connection
from relayd.listener.observer import ListenerRefusal
from tests.listener.conftest import Serve
from tests.support.fake_door import FakeDoor


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


async def test_a_mail_is_taken(serve: Serve) -> None:
    served = await serve()
    await served.talk("""
        S: 220 relay.example.com ESMTP relayd
        C: EHLO app.example.com
        S: 250-relay.example.com…
        C: MAIL FROM:<info@example.com> SIZE=123 BODY=8BITMIME
        S: 250 2.1.0 Sender OK
        C: RCPT TO:<hanako@example.co.jp>
        S: 250 2.1.5 Recipient OK
        C: DATA
        S: 354 End data with <CR><LF>.<CR><LF>
        C: Subject: hello
        C:
        C: ..a line with a dot
        C: .
        S: 250 2.0.0 Kept as 0000000000000
        C: QUIT
        S: 221 2.0.0 Bye
        S: closed
    """)
    (mail,) = served.door.submissions
    assert mail.content == b"Subject: hello\r\n\r\n.a line with a dot\r\n"
    assert (mail.helo, mail.esmtp, mail.peer, mail.tls) == ("app.example.com", True, "127.0.0.1", None)
    assert served.door.sizes == [123]
    assert served.seen.refusals == []


async def test_ehlo_offers_what_there_is(serve: Serve) -> None:
    client = await (await serve()).greeted(ehlo=False)
    extensions = (await client.ask("EHLO app")).split("\n")
    assert [line[4:] for line in extensions] == [
        "relay.example.com",
        "PIPELINING",
        "SIZE 52428800",
        "8BITMIME",
        "SMTPUTF8",
        "ENHANCEDSTATUSCODES",
        "DSN",
        "CHUNKING",
        "AUTH PLAIN LOGIN",
    ]


async def test_auth_is_neither_offered_nor_taken_where_access_is_by_network(serve: Serve) -> None:
    client = await (await serve(access="network")).greeted(ehlo=False)
    assert "AUTH" not in await client.ask("EHLO app")
    assert await client.ask("AUTH PLAIN AAA=") == "502 5.5.1 Not offered here"


async def test_helo_is_answered_in_one_line_and_is_no_esmtp(serve: Serve) -> None:
    served = await serve()
    await served.talk("""
        S: 220 …
        C: HELO app.example.com
        S: 250 relay.example.com
        C: AUTH PLAIN AAA=
        S: 503 5.5.1 Send EHLO first
        C: MAIL FROM:<a@example.com> SIZE=1
        S: 555 5.5.4 Parameters need EHLO
        C: MAIL FROM:<a@example.com>
        S: 250 2.1.0 …
        C: RCPT TO:<b@example.com>
        S: 250 2.1.5 …
        C: DATA
        S: 354 …
        C: .
        S: 250 2.0.0 …
    """)
    (mail,) = served.door.submissions
    assert (mail.esmtp, mail.content) == (False, b"")


async def test_commands_out_of_order_are_told_what_is_missing(serve: Serve) -> None:
    client = await (await serve()).greeted(ehlo=False)
    await client.talk("""
        C: MAIL FROM:<a@example.com>
        S: 503 5.5.1 Send EHLO first
        C: RCPT TO:<a@example.com>
        S: 503 5.5.1 Send MAIL first
        C: DATA
        S: 503 5.5.1 Send MAIL first
        C: EHLO app
        S: 250-…
        C: MAIL FROM:<a@example.com>
        S: 250 2.1.0 …
        C: MAIL FROM:<a@example.com>
        S: 503 5.5.1 A mail is open already; end it or send RSET
        C: DATA
        S: 503 5.5.1 Send RCPT first
        C: RCPT TO:<>
        S: 501 5.1.3 …
        C: DATA
        S: 554 5.5.1 No valid recipients
        C: AUTH PLAIN AAA=
        S: 503 5.5.1 A mail is open already; end it or send RSET
        C: RSET
        S: 250 2.0.0 OK
        C: DATA
        S: 503 5.5.1 Send MAIL first
    """)


async def test_every_other_command_has_its_reply(serve: Serve) -> None:
    client = await (await serve()).greeted()
    await client.talk("""
        C: NOOP anything at all
        S: 250 2.0.0 OK
        C: noop
        S: 250 2.0.0 OK
        C: HELP
        S: 214 2.0.0 …
        C: VRFY hanako
        S: 252 2.5.0 …
        C: EXPN staff
        S: 502 5.5.1 …
        C: RSET now
        S: 501 5.5.4 …
        C: TURN
        S: 500 5.5.1 Unknown command
        C: STARTTLS
        S: 502 5.5.1 Not offered here
        C: XCLIENT ADDR=192.0.2.1
        S: 550 5.7.0 You may not use XCLIENT
        C: EHLO
        S: 501 5.5.4 Say your host name
        C:
        S: 500 5.5.2 …
        C: QUIT
        S: 221 2.0.0 Bye
        S: closed
    """)


def test_no_command_of_aiosmtpd_is_left_as_it_came() -> None:
    foreign = [name for name, method in Connection.methods.items() if not method.__module__.startswith("relayd.")]
    assert foreign == []


async def test_what_intake_refuses_is_passed_on(serve: Serve) -> None:
    door = FakeDoor(
        on_mail=lambda envelope, size: Reply(553, "5.7.1", "Not your sender") if "evil" in envelope.sender else None,
        on_rcpt=lambda recipient, count: Reply(452, "4.5.3", "Too many recipients") if count == 1 else None,
        on_submit=lambda content: Reply(550, "5.4.6", "Loop"),
    )
    served = await serve(door=door)
    client = await served.greeted()
    await client.talk("""
        C: MAIL FROM:<evil@example.com>
        S: 553 5.7.1 Not your sender
        C: MAIL FROM:<good@example.com>
        S: 250 2.1.0 …
        C: RCPT TO:<a@example.com>
        S: 250 2.1.5 …
        C: RCPT TO:<b@example.com>
        S: 452 4.5.3 Too many recipients
        C: DATA
        S: 354 …
        C: .
        S: 550 5.4.6 Loop
        C: MAIL FROM:<good@example.com>
        S: 250 2.1.0 …
    """)


async def test_a_421_of_intake_ends_the_session(serve: Serve) -> None:
    door = FakeDoor(on_mail=lambda envelope, size: Reply(421, "4.7.0", "Enough"))
    client = await (await serve(door=door)).greeted()
    await client.talk("""
        C: MAIL FROM:<a@example.com>
        S: 421 4.7.0 Enough
        S: closed
    """)


async def test_a_client_that_intake_does_not_want_is_not_greeted(serve: Serve) -> None:
    door = FakeDoor(on_connect=lambda session: Reply(554, "5.7.1", "No access"))
    await (await serve(door=door)).talk("""
        S: 554 5.7.1 No access
        S: closed
    """)


async def test_dsn_parameters_are_kept_as_they_came(serve: Serve) -> None:
    served = await serve()
    client = await served.greeted()
    await client.talk("""
        C: mail from:<Info@Example.com> ret=hdrs ENVID=QQ+2B314159 body=8bitmime AUTH=<>
        S: 250 2.1.0 …
        C: rcpt to:<Hanako@Example.co.jp> notify=success,FAILURE ORCPT=rfc822;Hanako+2Bx@Example.co.jp
        S: 250 2.1.5 …
        C: RCPT TO:<b@example.com> NOTIFY=NEVER
        S: 250 2.1.5 …
        C: DATA
        S: 354 …
        C: .
        S: 250 2.0.0 …
    """)
    (mail,) = served.door.submissions
    assert (mail.envelope.sender, mail.envelope.ret, mail.envelope.envid) == (
        "Info@Example.com",
        Ret.HDRS,
        "QQ+2B314159",
    )
    assert mail.envelope.body is Body.EIGHT_BIT_MIME
    first, second = mail.recipients
    assert first.address == "Hanako@Example.co.jp"
    assert first.notify == {Notify.SUCCESS, Notify.FAILURE}
    assert first.orcpt == "rfc822;Hanako+2Bx@Example.co.jp"
    assert second.notify == {Notify.NEVER}


async def test_international_addresses_need_smtputf8(serve: Serve) -> None:
    served = await serve()
    client = await served.greeted()
    await client.talk("""
        C: MAIL FROM:<花子@example.jp>
        S: 553 5.6.7 …
        C: MAIL FROM:<花子@example.jp> SMTPUTF8
        S: 250 2.1.0 …
        C: RCPT TO:<太郎@例え.jp> ORCPT=utf-8;太郎@例え.jp
        S: 250 2.1.5 …
        C: DATA
        S: 354 …
        C: .
        S: 250 2.0.0 …
        C: MAIL FROM:<a@example.jp>
        S: 250 2.1.0 …
        C: RCPT TO:<太郎@example.jp>
        S: 553 5.6.7 …
    """)
    (mail,) = served.door.submissions
    assert (mail.envelope.sender, mail.envelope.smtputf8, mail.recipients[0].address) == (
        "花子@example.jp",
        True,
        "太郎@例え.jp",
    )


async def test_postmaster_alone_is_ours(serve: Serve) -> None:
    served = await serve()
    client = await served.greeted()
    await client.talk("""
        C: MAIL FROM:<>
        S: 250 2.1.0 …
        C: RCPT TO:<Postmaster>
        S: 250 2.1.5 …
        C: DATA
        S: 354 …
        C: .
        S: 250 2.0.0 …
    """)
    (mail,) = served.door.submissions
    assert (mail.envelope.sender, mail.recipients[0].address) == ("", "Postmaster@relay.example.com")


async def test_auth_plain_at_once_and_by_challenge(serve: Serve) -> None:
    door = FakeDoor(logins={"shop": "geheim"})
    for command in ("AUTH PLAIN " + encoded("\0shop\0geheim"), "auth plain"):
        client = await (await serve(door=door)).greeted()
        reply = await client.ask(command)
        if reply == "334 ":
            reply = await client.ask(encoded("shop\0shop\0geheim"))
        assert reply == "235 2.7.0 Welcome"
        assert await client.ask("AUTH LOGIN") == "503 5.5.1 You are logged in already"


async def test_auth_login_at_once_and_by_challenge(serve: Serve) -> None:
    door = FakeDoor(logins={"花子": "pässword"})
    for command in ("AUTH LOGIN " + encoded("花子"), "AUTH LOGIN"):
        client = await (await serve(door=door)).greeted()
        reply = await client.ask(command)
        if reply == "334 VXNlcm5hbWU6":
            reply = await client.ask(encoded("花子"))
        assert reply == "334 UGFzc3dvcmQ6"
        assert await client.ask(encoded("pässword")) == "235 2.7.0 Welcome"


async def test_auth_that_fails(serve: Serve) -> None:
    served = await serve(door=FakeDoor(logins={"shop": "geheim"}))
    client = await served.greeted()
    await client.talk(f"""
        C: AUTH PLAIN {encoded(chr(0) + "shop" + chr(0) + "wrong")}
        S: 535 5.7.8 Authentication failed
        C: AUTH PLAIN {encoded("boss" + chr(0) + "shop" + chr(0) + "geheim")}
        S: 535 5.7.8 Authentication failed
        C: AUTH PLAIN {encoded("shop")}
        S: 501 5.5.2 Malformed credentials
        C: AUTH PLAIN =
        S: 501 5.5.2 Malformed credentials
        C: AUTH PLAIN a
        S: 501 5.5.2 That is not base64
        C: AUTH PLAIN
        S: 334 …
        C: *
        S: 501 5.7.0 Authentication cancelled
        C: AUTH LOGIN
        S: 334 VXNlcm5hbWU6
        C: no base64!
        S: 501 5.5.2 That is not base64
        C: AUTH LOGIN
        S: 334 VXNlcm5hbWU6
        C: {"A" * 13000}
        S: 500 5.5.6 The line is too long
        C: AUTH CRAM-MD5
        S: 504 5.5.4 …
        C: AUTH
        S: 504 5.5.4 …
        C: NOOP
        S: 250 2.0.0 OK
    """)
    assert served.door.attempts == [("shop", "wrong")]


async def test_auth_needs_tls_where_it_is_required(serve: Serve, server_tls: object) -> None:
    client = await (await serve(tls="starttls", require_tls=True, context=server_tls)).greeted(ehlo=False)
    assert "AUTH" not in await client.ask("EHLO app")
    assert (await client.ask("AUTH LOGIN")).startswith("538 5.7.11 ")


@pytest.mark.parametrize(
    ("octets", "reply"),
    [
        (b"NOOP \x1b[2J\r\n", "501 5.5.2"),
        (b"NOOP a\x00b\r\n", "501 5.5.2"),
        (b"NOOP a\rb\r\n", "501 5.5.2"),
        (b"NOOP \xff\xfe\r\n", "501 5.5.2"),
        ("NOOP \u2028\r\n".encode(), "501 5.5.2"),
        (b"MAIL FROM:<a@example.com>\tSIZE=1\r\n", "501 5.5.2"),
        (b"EHLO a\x07b\r\n", "501 5.5.2"),
        (b"NOOP\n", "500 5.5.2"),
        (b"NOOP " + b"x" * 600 + b"\r\n", "500 5.5.2"),
        (b"RCPT TO:<" + b"x" * 3000 + b"@example.com>\r\n", "500 5.5.2"),
        (b"\r\n", "500 5.5.2"),
        (b" NOOP\r\n", "500 5.5.1"),
        ("RſET\r\n".encode(), "500 5.5.1"),
        ("STARTTLſ\r\n".encode(), "500 5.5.1"),
        ("MAıL FROM:<a@example.com>\r\n".encode(), "500 5.5.1"),
        ("MAIL FROM:<a@example.com> ſIZE=1\r\n".encode(), "501 5.5.4"),
        ("MAIL FROM:<a@example.com> BODY=8BıTMIME\r\n".encode(), "501 5.5.4"),
        ("AUTH PLAıN AGEAYg==\r\n".encode(), "504 5.5.4"),
    ],
)
async def test_lines_that_are_no_commands(serve: Serve, octets: bytes, reply: str) -> None:
    served = await serve()
    client = await served.greeted()
    client.send(octets)
    assert (await client.reply()).startswith(reply)
    assert await client.ask("NOOP") == "250 2.0.0 OK"
    assert served.seen.refusals[0] in (ListenerRefusal.COMMAND_LINE, ListenerRefusal.COMMAND)


async def test_a_bare_lf_ends_a_command_where_newlines_are_normalised(serve: Serve) -> None:
    client = await (await serve(bare_newlines="normalise")).greeted()
    client.send(b"NOOP\n")
    assert await client.reply() == "250 2.0.0 OK"


async def test_the_name_of_a_client_is_masked_rather_than_refused(serve: Serve) -> None:
    served = await serve()
    client = await served.greeted(ehlo=False)
    client.send(b"EHLO \x89\xd4\x8eq(pc)<x>\r\n")
    assert (await client.reply()).startswith("250-")
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
    assert served.door.submissions[0].helo == "???q?pc??x?"


async def test_a_whole_mail_in_one_packet_after_another(serve: Serve) -> None:
    served = await serve()
    client = await served.greeted()
    envelope = b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\nRCPT TO:<c@example.com>\r\nDATA\r\n"
    client.send(envelope)
    for code in ("250 2.1.0", "250 2.1.5", "250 2.1.5", "354"):
        assert (await client.reply()).startswith(code)
    client.send(b"one\r\n.\r\n" + envelope)
    for code in ("250 2.0.0", "250 2.1.0", "250 2.1.5", "250 2.1.5", "354"):
        assert (await client.reply()).startswith(code)
    client.send(b"two\r\n.\r\nQUIT\r\n")
    for code in ("250 2.0.0", "221"):
        assert (await client.reply()).startswith(code)
    assert served.contents == [b"one\r\n", b"two\r\n"]


async def test_a_line_may_come_octet_by_octet(serve: Serve) -> None:
    client = await (await serve()).greeted()
    for octet in b"NOOP\r\n":
        client.send(bytes([octet]))
        await client.writer.drain()
    assert await client.reply() == "250 2.0.0 OK"


async def test_ipv6_clients_are_served(serve: Serve) -> None:
    served = await serve(host="::1")
    await (await served.greeted()).close()
    assert served.door.connects == ["::1"]


async def test_mapped_addresses_are_taken_for_what_they_are(serve: Serve) -> None:
    served = await serve(host="::ffff:127.0.0.1")
    await served.greeted()
    assert served.door.connects == ["127.0.0.1"]
