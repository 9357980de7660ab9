"""Random dialogues: whatever is sent, every reply is well formed, and only whole mails reach intake."""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.listener.conftest import Serve, Served, limits

REPLY = re.compile(rb"(?:\d{3}-[^\r\n\x00-\x08]*\r\n)*\d{3} [^\r\n\x00-\x08]*\r\n")
ENHANCED = re.compile(rb"[245]\d\d[ -][245]\.\d{1,3}\.\d{1,3} ")

COMMANDS = [
    b"EHLO app\r\n",
    b"HELO app\r\n",
    b"MAIL FROM:<a@example.com>\r\n",
    b"MAIL FROM:<a@example.com> SIZE=5 BODY=8BITMIME RET=HDRS\r\n",
    b"RCPT TO:<b@example.com>\r\n",
    b"RCPT TO:<b@example.com> NOTIFY=NEVER\r\n",
    b"DATA\r\n",
    b"DATA\r\nhello\r\n.\r\n",
    b"hello\r\n.\r\n",
    b".\r\n",
    b"BDAT 5\r\nhello",
    b"BDAT 5 LAST\r\nhello",
    b"BDAT 0 LAST\r\n",
    b"BDAT\r\n",
    b"RSET\r\n",
    b"NOOP\r\n",
    b"VRFY x\r\n",
    b"EXPN x\r\n",
    b"HELP\r\n",
    b"AUTH PLAIN AGEAYg==\r\n",
    b"AUTH LOGIN\r\n",
    b"YQ==\r\n",
    b"*\r\n",
    b"STARTTLS\r\n",
    b"XCLIENT ADDR=192.0.2.1\r\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
    b"GET / HTTP/1.1\r\n",
    b"QUIT\r\n",
    b"\r\n",
    b"\n",
    b"\r",
    b"\x00",
    b"\xff\r\n",
    b"\x1b[2J\r\n",
]
packets = st.lists(
    st.lists(st.sampled_from(COMMANDS), min_size=1, max_size=4).map(b"".join) | st.binary(max_size=40), max_size=12
)


async def play(served: Served, sent: list[bytes]) -> bytes:
    reader, writer = await asyncio.open_connection(*served.address)
    received = await reader.readline()
    try:
        for packet in sent:
            if writer.is_closing():
                break
            writer.write(packet)
            await asyncio.sleep(0)
        if not writer.is_closing():
            # the server may have gone at this moment: the socket says ENOTCONN, which is no ConnectionError
            with suppress(OSError):
                writer.write_eof()
        async with asyncio.timeout(20):
            received += await reader.read()
    except ConnectionError:
        pass
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()
    return received


async def test_random_dialogues_get_well_formed_replies(serve: Serve) -> None:
    served: Served = await serve(limits=limits(errors=10), tls="starttls")
    served.server.counter.connections = served.server.counter.connections_per_ip = 1000
    loop = asyncio.get_running_loop()
    dialogues: list[list[bytes]] = []

    @settings(max_examples=150, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(packets, st.booleans())
    def collect(sent: list[bytes], hello: bool) -> None:
        dialogues.append([b"EHLO app\r\n", *sent] if hello else sent)

    collect()
    for sent in dialogues:
        received = await play(served, sent)
        whole = re.fullmatch(rb"(?:" + REPLY.pattern + rb")*", received)
        assert whole, (sent, received)
        for reply in REPLY.findall(received):
            if reply.startswith((b"220 relay", b"250-relay", b"250 relay", b"3")):
                continue
            for line in reply.splitlines():
                assert ENHANCED.match(line), (sent, line)
        assert b"4.3.0" not in received, (sent, received)
    assert loop.is_running()
    for submission in served.door.submissions:
        assert submission.content in (b"hello\r\n", b"") or submission.content.endswith(b"\r\n")
        assert submission.recipients
