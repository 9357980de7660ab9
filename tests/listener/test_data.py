"""DATA and BDAT over sockets: smuggling, limits on content, memory, and that the session stays in step."""

from __future__ import annotations

import pytest

from relayd.intake.memory import SMALL
from relayd.listener.observer import ListenerRefusal
from tests.listener.conftest import Client, Serve, Served, limits, until
from tests.support.fake_door import KEPT, FakeDoor

KEPT_LINE = str(KEPT)
ENVELOPE = b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\n"

FALSE_ENDS = [
    b"\n.\n",
    b"\n.\r\n",
    b"\r\n.\n",
    b"\r.\r",
    b"\r.\r\n",
    b"\r\n.\r",
    b"\r\n\0.\r\n",
    b"\r\n\0\0.\0\r\n",
    b"\r\n.\0\r\n",
    b"\r\n.\r\r\n",
    b"\n\n.\r\n",
    b"\r\n \r\n.x\r\n",
]
"""What some servers take for the end of DATA (CVE-2023-51764, -51765, -51766). A line of NULs and a dot is
one for those who drop NULs; where the dot comes first, it has been doubled."""
CLEAN = {b"\r\n.\0\r\n", b"\r\n \r\n.x\r\n"}


async def open_data(client: Client) -> None:
    client.send(ENVELOPE + b"DATA\r\n")
    for code in ("250", "250", "354"):
        assert (await client.reply()).startswith(code)


async def send_in_two(client: Client, octets: bytes, place: int) -> None:
    client.send(octets[:place])
    await client.writer.drain()
    client.send(octets[place:])


@pytest.mark.parametrize("false_end", FALSE_ENDS, ids=repr)
@pytest.mark.parametrize("policy", ["refuse", "normalise"])
async def test_nothing_is_smuggled(serve: Serve, false_end: bytes, policy: str) -> None:
    served: Served = await serve(bare_newlines=policy, limits=limits(errors=1000, commands=1000))
    client = await served.greeted()
    smuggled = b"MAIL FROM:<evil@example.com>\r\nRCPT TO:<victim@example.com>\r\nDATA\r\nevil\r\n"
    message = b"Subject: x\r\n\r\nbody" + false_end + smuggled
    whole = message + b".\r\n"
    around = range(len(b"Subject: x\r\n\r\nbody") - 1, len(b"Subject: x\r\n\r\nbody" + false_end) + 2)
    for place in around:
        await open_data(client)
        await send_in_two(client, whole, place)
        reply = await client.reply()
        if false_end not in CLEAN and (policy == "refuse" or b"\0." in false_end):
            assert reply.startswith("550 5.6.11 ")
        else:
            assert reply == KEPT_LINE
        assert await client.ask("NOOP") == "250 2.0.0 OK"
    senders = {submission.envelope.sender for submission in served.door.submissions}
    assert "evil@example.com" not in senders
    for content in served.contents:
        assert content.count(b"\r\n") == content.count(b"\r") == content.count(b"\n")


async def test_nul_is_taken_as_it_comes_where_it_can_end_nothing(serve: Serve) -> None:
    served: Served = await serve()
    client = await served.greeted()
    body = b"\0\r\n\0a.\r\na\0.\r\n\0..\r\n\0. \r\n"
    await open_data(client)
    client.send(body + b".\r\n")
    assert await client.reply() == KEPT_LINE
    assert served.contents == [body]


@pytest.mark.parametrize("body", [b"\0.\r\n", b"a\r\n\0\0.\0\r\nb\r\n"])
async def test_a_dot_behind_nul_is_refused_in_chunks_too(serve: Serve, body: bytes) -> None:
    served: Served = await serve(bare_newlines="normalise")
    client = await served.greeted()
    client.send(ENVELOPE)
    assert [(await client.reply())[:3] for _ in range(2)] == ["250"] * 2
    for octet in body[:-1]:
        client.send(b"BDAT 1\r\n" + bytes([octet]))
        assert (await client.reply()).startswith("250")
    client.send(b"BDAT 1 LAST\r\n\n")
    assert await client.reply() == "550 5.6.11 A line of NULs and a dot might end the message for other servers"
    assert served.seen.refusals == [ListenerRefusal.BARE_NEWLINE]
    assert served.contents == []


@pytest.mark.parametrize("false_end", FALSE_ENDS, ids=repr)
async def test_nothing_is_smuggled_behind_an_oversized_message(serve: Serve, false_end: bytes) -> None:
    served: Served = await serve(limits=limits(message_size=2000))
    client = await served.greeted()
    await open_data(client)
    client.send(b"x" * 2500 + false_end + b"MAIL FROM:<evil@example.com>\r\n" + b"\r\n.\r\n")
    assert (await client.reply())[:3] in ("550", "552")
    assert (await client.ask("RCPT TO:<victim@example.com>")).startswith("503")


@pytest.mark.parametrize("place", range(1, 31))
async def test_a_mail_is_the_same_whatever_the_packets(serve: Serve, place: int) -> None:
    served: Served = await serve()
    client = await served.greeted()
    await open_data(client)
    whole = b"a: b\r\n\r\n..\r\n...x\r\n.y\r\n\r\n.\r\nNOOP\r\n"
    await send_in_two(client, whole, place)
    assert await client.reply() == KEPT_LINE
    assert await client.reply() == "250 2.0.0 OK"
    assert served.contents == [b"a: b\r\n\r\n.\r\n..x\r\ny\r\n\r\n"]


async def test_content_may_follow_data_at_once(serve: Serve) -> None:
    served: Served = await serve()
    client = await served.greeted()
    client.send(ENVELOPE + b"DATA\r\nimpatient\r\n.\r\n")
    assert [(await client.reply())[:3] for _ in range(4)] == ["250", "250", "354", "250"]
    assert served.contents == [b"impatient\r\n"]


async def test_content_behind_a_refused_data_is_never_obeyed(serve: Serve) -> None:
    served: Served = await serve()
    client = await served.greeted()
    client.send(b"DATA\r\nMAIL FROM:<evil@example.com>\r\nRCPT TO:<b@example.com>\r\n")
    assert (await client.reply()).startswith("503 5.5.1")
    assert (await client.reply()).startswith("554 5.5.0")
    assert await client.closed()
    assert served.door.sizes == []


async def test_a_message_over_the_size_is_refused_at_its_end(serve: Serve) -> None:
    served: Served = await serve(limits=limits(message_size=1024))
    client = await served.greeted()
    await open_data(client)
    client.send(b"x" * 70 + b"\r\n")
    client.send((b"x" * 70 + b"\r\n") * 30 + b".\r\n")
    assert await client.reply() == "552 5.3.4 The message is too big"
    await open_data(client)
    client.send(b"small\r\n.\r\n")
    assert await client.reply() == KEPT_LINE
    assert served.seen.refusals == [ListenerRefusal.MESSAGE_SIZE]


@pytest.mark.parametrize("verb", [b"DATA", b"BDAT 4000"])
async def test_a_message_without_end_is_cut_off(serve: Serve, verb: bytes) -> None:
    served: Served = await serve(limits=limits(message_size=1024))
    client = await served.greeted()
    client.send(ENVELOPE)
    await client.reply()
    await client.reply()
    if verb == b"DATA":
        assert (await client.ask("DATA")).startswith("354")
        client.send(b"x" * 5000)
        assert await client.reply() == "552 5.3.4 The message is too big"
    else:
        client.send(b"BDAT 5000\r\n")
        assert await client.reply() == "552 5.3.4 The message is too big"
    assert await client.closed()


async def test_lines_over_the_standard_are_counted_and_far_over_it_refused(serve: Serve) -> None:
    served: Served = await serve(limits=limits(line_length_max=5000))
    client = await served.greeted()
    await open_data(client)
    client.send(b"x" * 998 + b"\r\n" + b"y" * 999 + b"\r\n" + b"z" * 5000 + b"\r\n.\r\n")
    assert await client.reply() == KEPT_LINE
    await open_data(client)
    client.send(b"z" * 5001 + b"\r\n.\r\n")
    assert (await client.reply()).startswith("554 5.6.0 ")
    assert served.seen.long == 2
    assert served.seen.refusals == [ListenerRefusal.LINE_LENGTH]


async def test_without_memory_a_mail_is_put_off(serve: Serve) -> None:
    door = FakeDoor()
    door.memory.limit = 3000
    served: Served = await serve(door=door)
    client = await served.greeted()
    await open_data(client)
    client.send(b"x" * 4000 + b"\r\n.\r\n")
    assert (await client.reply()).startswith("452 4.3.1 ")
    await open_data(client)
    client.send(b"small\r\n.\r\n")
    assert await client.reply() == KEPT_LINE
    assert served.seen.refusals == [ListenerRefusal.MEMORY]


async def test_memory_is_held_until_intake_has_answered_and_given_back_when_the_client_goes(serve: Serve) -> None:
    door = FakeDoor()
    held: list[int] = []
    door.on_submit = lambda content: (held.append(door.memory.used), KEPT)[1]
    served: Served = await serve(door=door)
    client = await served.greeted()
    await open_data(client)
    client.send(b"x" * 100 + b"\r\n.\r\n")
    assert await client.reply() == KEPT_LINE
    assert held == [102]
    await open_data(client)
    client.send(b"x" * 100)
    client.send(b"y" * 100)
    await client.close()  # the fixture finds the budget empty at the end


async def test_large_mail_is_whole(serve: Serve) -> None:
    served: Served = await serve()
    client = await served.greeted()
    await open_data(client)
    body = b"".join(b"%08d" % n + b"x" * 60 + b"\r\n" for n in range(100_000))
    client.send(body + b".\r\n")
    assert await client.reply() == KEPT_LINE
    assert served.contents == [body]


# --- BDAT (RFC 3030)


async def test_chunks_make_one_mail(serve: Serve) -> None:
    served: Served = await serve()
    client = await served.greeted()
    client.send(
        ENVELOPE + b"BDAT 4\r\na\r\n.BDAT 5\r\n\r\nb\r\nBDAT 3 LAST\r\nend" + ENVELOPE + b"BDAT 3 last\r\nx\r\nNOOP\r\n"
    )
    assert [await client.reply() for _ in range(9)] == [
        "250 2.1.0 Sender OK",
        "250 2.1.5 Recipient OK",
        "250 2.0.0 4 octets received",
        "250 2.0.0 5 octets received",
        KEPT_LINE,
        "250 2.1.0 Sender OK",
        "250 2.1.5 Recipient OK",
        KEPT_LINE,
        "250 2.0.0 OK",
    ]
    assert served.contents == [b"a\r\n.\r\nb\r\nend\r\n", b"x\r\n"]


async def test_dots_mean_nothing_in_chunks(serve: Serve) -> None:
    served: Served = await serve()
    client = await served.greeted()
    body = b"..\r\n.\r\nMAIL FROM:<evil@example.com>\r\n"
    client.send(ENVELOPE + b"BDAT %d LAST\r\n" % len(body) + body)
    assert [(await client.reply())[:3] for _ in range(3)] == ["250"] * 3
    assert served.contents == [body]


async def test_octets_of_refused_chunks_are_not_commands(serve: Serve) -> None:
    served: Served = await serve()
    client = await served.greeted()
    client.send(b"BDAT 30\r\nMAIL FROM:<evil@example.com>\r\nBDAT 6 LAST\r\nNOOP\r\n")
    assert [(await client.reply())[:9] for _ in range(2)] == ["503 5.5.1"] * 2
    assert await client.ask("NOOP") == "250 2.0.0 OK"
    client.send(
        b"MAIL FROM:<a@example.com>\r\nBDAT 6\r\nNOOP\r\nRCPT TO:<b@example.com>\r\nBDAT 6 LAST\r\nNOOP\r\nDATA\r\n"
    )
    assert [(await client.reply())[:9] for _ in range(5)] == [
        "250 2.1.0",
        "503 5.5.1",
        "503 5.5.1",
        "503 5.5.1",
        "503 5.5.1",
    ]
    assert served.contents == []


async def test_what_may_not_come_between_chunks(serve: Serve) -> None:
    served: Served = await serve()
    client = await served.greeted()
    client.send(ENVELOPE + b"BDAT 3\r\na\r\n")
    for _ in range(3):
        assert (await client.reply()).startswith("250")
    for command in ("MAIL FROM:<a@example.com>", "RCPT TO:<c@example.com>", "DATA"):
        assert (await client.ask(command)).startswith("503 5.5.1")
    assert (await client.ask("NOOP")).startswith("250")
    assert (await client.ask("RSET")).startswith("250")
    client.send(ENVELOPE + b"BDAT 3 LAST\r\nb\r\n")
    assert [(await client.reply())[:3] for _ in range(3)] == ["250"] * 3
    assert served.contents == [b"b\r\n"]


@pytest.mark.parametrize("split", [(0, 0), (0, 1), (1, 0), (1, 1)])
async def test_bare_newlines_in_chunks_are_refused_once(serve: Serve, split: tuple[int, int]) -> None:
    served: Served = await serve()
    client = await served.greeted()
    ok, bad = (b"a\r", b"\nb\r\n") if split[0] else (b"a\r\n", b"b\r\n")
    tail = b"c\r" if split[1] else b"c\n"
    client.send(ENVELOPE + b"BDAT %d\r\n" % len(ok) + ok + b"BDAT %d\r\n" % len(bad) + bad)
    assert [(await client.reply())[:3] for _ in range(4)] == ["250"] * 4
    client.send(b"BDAT 2 LAST\r\n" + tail)
    assert (await client.reply()).startswith("550 5.6.11")
    assert (await client.ask("MAIL FROM:<a@example.com>")).startswith("250")


async def test_chunks_after_a_refused_one_are_refused_too(serve: Serve) -> None:
    served: Served = await serve(limits=limits(message_size=1024))
    client = await served.greeted()
    client.send(ENVELOPE + b"BDAT 2000\r\n" + b"x" * 2000 + b"BDAT 3 LAST\r\ny\r\n")
    replies = [(await client.reply())[:9] for _ in range(4)]
    assert replies == ["250 2.1.0", "250 2.1.5", "552 5.3.4", "503 5.5.1"]
    assert (await client.ask("MAIL FROM:<a@example.com>")).startswith("250")
    assert served.contents == []


@pytest.mark.parametrize("argument", ["", "x", "-1", "1 LAS", "1 LAST LAST", "999999999999999999999", "१"])
async def test_a_chunk_of_unknown_length_ends_the_session(serve: Serve, argument: str) -> None:
    client = await (await serve()).greeted()
    assert (await client.ask(f"BDAT {argument}")).startswith("501 5.5.4")
    assert await client.closed()


async def test_an_empty_last_chunk_ends_the_mail(serve: Serve) -> None:
    served: Served = await serve()
    client = await served.greeted()
    client.send(ENVELOPE + b"BDAT 3\r\na\r\nBDAT 0 LAST\r\n")
    assert [(await client.reply())[:3] for _ in range(4)] == ["250"] * 4
    assert served.contents == [b"a\r\n"]


async def test_endless_small_chunks_are_counted(serve: Serve) -> None:
    client = await (await serve(limits=limits(commands=10))).greeted()
    client.send(ENVELOPE + b"BDAT 1\r\nx" * 20)
    replies = [await client.reply() for _ in range(11)]
    assert replies[-1].startswith("421 4.7.0 ")
    assert await client.closed()


async def test_while_a_mail_is_coming_commits_are_told_to_expect_it(serve: Serve) -> None:
    served: Served = await serve()
    client, company = await served.greeted(), served.door.company
    assert len(company) == 0
    for command, coming in [
        ("MAIL FROM:<a@example.com>", 1),
        ("RCPT TO:<b@example.com>", 1),
        ("RSET", 0),
        ("MAIL FROM:<a@example.com>", 1),
        ("EHLO again.example.com", 0),
    ]:
        heard = company.heard
        await client.ask(command)
        assert len(company) == coming, command
        assert company.heard > heard
    await open_data(client)
    assert len(company) == 1
    client.send(b"Subject: x\r\n\r\nbody\r\n.\r\n")
    assert await client.reply() == KEPT_LINE
    assert len(company) == 0


async def test_a_big_mail_is_not_expected_soon_nor_one_whose_client_has_gone(serve: Serve) -> None:
    served: Served = await serve()
    company = served.door.company
    big, gone = await served.greeted(), await served.greeted()
    await open_data(gone)
    await open_data(big)
    assert len(company) == 2
    gone.writer.close()
    await until(lambda: len(company) == 1)
    line = b"x" * 70 + b"\r\n"
    big.send(line * 10)
    big.send(line * (SMALL // len(line)))
    await until(lambda: len(company) == 0)
    big.send(b".\r\n")
    assert await big.reply() == KEPT_LINE
    assert len(company) == 0


async def test_chunks_without_a_mail_make_nobody_expected(serve: Serve) -> None:
    served: Served = await serve()
    client, company = await served.greeted(), served.door.company
    client.send(b"BDAT 5\r\nhel")
    client.send(b"lo")
    assert (await client.reply()).startswith("503 ")
    assert await client.ask("NOOP") == "250 2.0.0 OK"
    assert len(company) == 0
