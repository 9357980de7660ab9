"""Our IMAP client against servers that break the rules: it ends with an error, within bounds, and tells no secret."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.inbound.imap import ImapClient, ImapError, date_text, folder_name
from tests.support.fake_upstream import server_context

Act = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
GREETING = b"* OK hello\r\n"


@contextlib.asynccontextmanager
async def served(act: Act) -> AsyncIterator[int]:
    """A server that acts so for every connection; its port."""

    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await act(reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await writer.wait_closed()

    def start(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.create_task(connected(reader, writer)))

    server = await asyncio.start_server(start, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)


def answering(answers: dict[bytes, bytes], greeting: bytes = GREETING) -> Act:
    """A server that answers by the command's first words; %t stands for the tag."""

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        while line := await reader.readline():
            tag, _, command = line.rstrip(b"\r\n").partition(b" ")
            for start, answer in ({b"CAPABILITY": b"* CAPABILITY IMAP4rev1\r\n%t OK\r\n"} | answers).items():
                if command.upper().startswith(start):
                    writer.write(answer.replace(b"%t", tag))
                    break
            else:
                writer.write(tag + b" OK\r\n")

    return act


async def connect(port: int) -> ImapClient:
    return await ImapClient.connect("127.0.0.1", port, None, starttls=False)


@pytest.mark.parametrize("greeting", [b"", b"* BYE too many\r\n", b"220 smtp.example.org\r\n", b"\x00\xff\r\n"])
async def test_what_is_no_imap_server_is_told_so(greeting: bytes) -> None:
    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)

    async with served(act) as port:
        with pytest.raises(ImapError):
            await connect(port)


async def test_a_mail_larger_than_asked_for_is_refused() -> None:
    answer = b"* 1 FETCH (UID 7 BODY[]<0> {5000000}\r\n"
    async with served(answering({b"UID FETCH": answer})) as port:
        client = await connect(port)
        with pytest.raises(ImapError, match="at most 1000"):
            await client.fetch(7, 1000)
        client.abort()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"* 1 FETCH (UID 7 BODY[]<0> {5}\r\nhello)\r\n%t OK\r\n", b"hello"),
        (b"* 1 FETCH (BODY[]<0> {5}\r\nhello UID 7)\r\n%t OK\r\n", b"hello"),
        (b"* 1 FETCH (FLAGS () UID 8 BODY[]<0> {2}\r\nno)\r\n* 1 FETCH (UID 7 BODY[] {3}\r\nyes)\r\n%t OK\r\n", b"yes"),
        (b'* 1 FETCH (UID 7 BODY[]<0> "")\r\n%t OK\r\n', b""),
        (b"* 1 FETCH (UID 7 BODY[]<0> {0}\r\n)\r\n%t OK\r\n", b""),
        (b"* 2 EXISTS\r\n%t OK nothing\r\n", None),
        (b"* 1 FETCH (UID 7 FLAGS (\\Seen))\r\n%t OK\r\n", None),
    ],
)
async def test_forms_of_an_answer(answer: bytes, expected: bytes | None) -> None:
    async with served(answering({b"UID FETCH": answer})) as port:
        client = await connect(port)
        assert await client.fetch(7, 1000) == expected
        await client.logout()


async def test_a_search_finds_what_is_behind_the_mark_only() -> None:
    answer = b"* SEARCH 9 5 7\r\n* SEARCH 12\r\n%t OK\r\n"
    async with served(answering({b"UID SEARCH": answer})) as port:
        client = await connect(port)
        assert await client.search(6, 1_800_000_000_000) == [7, 9, 12]
        await client.logout()


async def test_numbers_that_no_mail_has_are_passed_over() -> None:
    answer = b"* SEARCH 9 4294967295 4294967296 %b 99999999999999999999 x\r\n%%t OK\r\n" % (b"9" * 5000)
    async with served(answering({b"UID SEARCH": answer})) as port:
        client = await connect(port)
        assert await client.search(6, 1_800_000_000_000) == [9, 4294967295]
        await client.logout()


@pytest.mark.parametrize(
    "endless",
    [b"* 1 EXISTS\r\n" * 1000, b"* 1 FETCH (UID 7 BODY[]<0> {1000}\r\n" + b"x" * 1000 + b")\r\n"],
    ids=["lines", "mails"],
)
async def test_an_answer_without_end_is_ended(endless: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relayd.inbound.imap.ANSWER_MAX", 500_000)

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING)
        tag, _, _ = (await reader.readline()).partition(b" ")
        writer.write(b"* CAPABILITY IMAP4rev1 IDLE\r\n" + tag + b" OK\r\n")
        if (await reader.readline()).rstrip().endswith(b"IDLE"):
            writer.write(b"+ idling\r\n")
        while True:
            writer.write(endless.replace(b"EXISTS", b"RECENT"))
            await writer.drain()

    async with served(act) as port:
        for ask in (lambda client: client.fetch(7, 1000), lambda client: client.wait(60)):
            client = await connect(port)
            with pytest.raises(ImapError, match="without end"):
                await ask(client)
            client.abort()


@pytest.mark.parametrize("end", [b"", b"* BYE going down\r\n", b"* 1 FETCH (UID 7 BODY[]<0> {9}\r\nhel"])
async def test_a_connection_that_ends_in_the_middle(end: bytes) -> None:
    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING)
        tag = (await reader.readline()).split()[0]
        writer.write(b"* CAPABILITY IMAP4rev1\r\n" + tag + b" OK\r\n")
        await reader.readline()
        writer.write(end)

    async with served(act) as port:
        client = await connect(port)
        with pytest.raises(ImapError, match="closed"):
            await client.fetch(7, 1000)
        client.abort()


@pytest.mark.parametrize("capabilities", [b"AUTH=PLAIN", b"AUTH=PLAIN SASL-IR", b""])
async def test_a_refused_login_repeats_no_secret(capabilities: bytes) -> None:
    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING)
        while line := await reader.readline():
            tag, command = line.split()[:2]
            if command == b"CAPABILITY":
                writer.write(b"* CAPABILITY IMAP4rev1 " + capabilities + b"\r\n" + tag + b" OK\r\n")
            elif line.rstrip() == tag + b" AUTHENTICATE PLAIN":
                writer.write(b"+ \r\n")
                writer.write(tag + b" NO no such password: " + await reader.readline())
            else:
                writer.write(tag + b" NO what is this: " + line)

    async with served(act) as port:
        client = await connect(port)
        with pytest.raises(ImapError) as caught:
            await client.login("user", "hunter2")
        said = str(caught.value)
        assert "hunter2" not in said and "AGh1bnRlcjI" not in said and "1bnRlcj" not in said
        client.abort()


async def test_login_where_it_is_disabled_sends_nothing() -> None:
    seen: list[bytes] = []
    answers = {b"CAPABILITY": b"* CAPABILITY IMAP4rev1 LOGINDISABLED STARTTLS\r\n%t OK\r\n"}
    act = answering(answers)

    async def watching(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        original = reader.readline

        async def readline() -> bytes:
            seen.append(await original())
            return seen[-1]

        reader.readline = readline  # type: ignore[method-assign]
        await act(reader, writer)

    async with served(watching) as port:
        client = await connect(port)
        with pytest.raises(ImapError, match="TLS"):
            await client.login("user", "hunter2")
        await client.logout()
    assert b"hunter2" not in b"".join(seen)


async def test_who_speaks_before_tls_is_not_believed() -> None:
    """An answer in the clear behind the one to STARTTLS (as CVE-2011-0411, from the other side)."""
    answers = {
        b"CAPABILITY": b"* CAPABILITY IMAP4rev1 STARTTLS\r\n%t OK\r\n",
        b"STARTTLS": b"%t OK\r\n* CAPABILITY IMAP4rev1 AUTH=PLAIN\r\nr3 OK\r\n",
    }
    context = server_context("good")  # never used: it does not come so far
    async with served(answering(answers)) as port:
        with pytest.raises(ImapError, match="before TLS"):
            await ImapClient.connect("localhost", port, context, starttls=True)


async def test_starttls_that_is_not_offered_is_demanded_all_the_same() -> None:
    async with served(answering({})) as port:
        with pytest.raises(ImapError, match="STARTTLS"):
            await ImapClient.connect("localhost", port, server_context("good"), starttls=True)


async def test_an_idle_that_is_refused() -> None:
    answers = {b"CAPABILITY": b"* CAPABILITY IMAP4rev1 IDLE\r\n%t OK\r\n", b"IDLE": b"%t NO not now\r\n"}
    async with served(answering(answers)) as port:
        client = await connect(port)
        with pytest.raises(ImapError, match=r"IDLE was refused: .*not now"):
            await client.wait(30)
        client.abort()


async def test_an_idle_ends_with_its_time() -> None:
    done: list[bytes] = []

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING)
        tag = (await reader.readline()).split()[0]
        writer.write(b"* CAPABILITY IMAP4rev1 IDLE\r\n" + tag + b" OK\r\n")
        tag = (await reader.readline()).split()[0]
        writer.write(b"+ idling\r\n* OK still here\r\n")
        done.append(await reader.readline())
        writer.write(b"* 3 EXISTS\r\n" + tag + b" OK\r\n")
        await reader.readline()

    async with served(act) as port:
        client = await connect(port)
        await client.wait(0.05)
        await client.logout()
    assert done == [b"DONE\r\n"]


async def test_a_folder_that_may_only_be_read() -> None:
    answer = b"* OK [UIDVALIDITY 5] x\r\n%t OK [READ-ONLY] done\r\n"
    async with served(answering({b"SELECT": answer})) as port:
        client = await connect(port)
        with pytest.raises(ImapError, match="may only be read"):
            await client.select("INBOX")
        client.abort()


@given(st.text(max_size=40))
def test_names_of_folders_are_plain_and_cannot_break_out(name: str) -> None:
    try:
        written = folder_name(name)
    except (ImapError, UnicodeEncodeError):
        return
    assert written.isascii() and written.isprintable()
    assert re.fullmatch(r'"(?:[^"\\]|\\["\\])*"', written)


@pytest.mark.parametrize(
    ("name", "written"),
    [("INBOX", '"INBOX"'), ("A&B", '"A&-B"'), ("台北", '"&U,BTFw-"'), ("~peter/mail/台北", '"~peter/mail/&U,BTFw-"')],
)
def test_folders_of_the_rfc(name: str, written: str) -> None:
    assert folder_name(name) == written


def test_days() -> None:
    assert date_text(1_800_000_000_000) == "15-Jan-2027"


async def test_leaving_closes_the_connection_even_if_there_is_no_time_to_say_so() -> None:
    asked, gone = asyncio.Event(), asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING)
        while line := await reader.readline():
            tag, _, command = line.rstrip(b"\r\n").partition(b" ")
            if command.startswith(b"LOGOUT"):
                asked.set()
            else:
                writer.write(b"* CAPABILITY IMAP4rev1\r\n" + tag + b" OK\r\n")
        gone.set()

    async with served(silent) as port:
        client = await ImapClient.connect("127.0.0.1", port, None, starttls=False)
        leaving = asyncio.create_task(client.logout())
        await asked.wait()
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        async with asyncio.timeout(30):
            with contextlib.suppress(ConnectionError):
                await gone.wait()
