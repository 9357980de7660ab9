"""Whole sessions as they look on the wire: what is offered, what order holds, and the code of every reply."""

from __future__ import annotations

from tests.listener.conftest import Serve


async def test_a_mail_is_taken(serve: Serve) -> None:
    served = await serve()
    await served.talk("""
        S: 220 relay.example.com ESMTP relayd
        C: EHLO app.example.com
        S: 250-relay.example.com\\n250-PIPELINING\\n250-SIZE 52428800\\n250-8BITMIME\\n250-SMTPUTF8\\n250-ENHANCEDSTATUSCODES\\n250-DSN\\n250-CHUNKING\\n250 AUTH PLAIN LOGIN
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
    assert served.contents == [b"Subject: hello\r\n\r\n.a line with a dot\r\n"]
    assert served.door.sizes == [123]
