"""The sandbox keeps what it is given, acts what it is asked to, and never grows without end."""

from __future__ import annotations

import asyncio
import mailbox
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import pytest

from relayd.core.lifecycle import OutcomeKind
from relayd.core.reply import Reply
from relayd.core.session import ConnectFailedError
from relayd.delivery.rehearsal import Act, Rehearsal, rehearsal
from relayd.delivery.sandbox import SandboxConnector, SandboxSession
from relayd.spool.keepsake import Keepsakes, NotKeptError, clear, export, listing, show
from tests.delivery.upstream.helpers import codes, kinds, outgoing

NOW = 1_700_000_000_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "sandbox.db"


async def opened(path: Path) -> SandboxSession:
    return await SandboxConnector("sandbox", path, lambda: NOW).open()


async def test_what_is_given_is_kept_octet_for_octet(path: Path) -> None:
    session = await opened(path)
    content = b"Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\n\r\n.\r\n\x00\xff\r\n"
    sent = await session.send(outgoing("b@example.net", "c@example.net", content=content))
    assert kinds(sent) == ["delivered", "delivered"]
    assert (sent.reply, sent.transcript, sent.dsn) == ("250 2.0.0 Kept in the sandbox as 1", None, False)
    await session.close()
    [mail] = listing(path)
    assert (mail.id, mail.at, mail.message, mail.sender) == (1, NOW, "m1", "a@example.com")
    assert (mail.recipients, mail.subject, mail.size) == (("b@example.net", "c@example.net"), "Grüße", len(content))
    assert show(path, 1) == (mail, content) == show(path, "m1")
    await (session := await opened(path)).send(
        replace(outgoing("d@example.net", content=content), front=b"X-One: 1\r\n")
    )
    await session.close()
    mail, kept = show(path, 2)
    assert (kept, mail.size) == (b"X-One: 1\r\n" + content, len(content) + 10)
    assert os.stat(path).st_mode & 0o077 == 0  # noqa: PTH116 - a look at the file, after all is done


GRAMMAR = [
    ("550", Act.REFUSE, "550 5.1.1", False, None),
    ("450", Act.REFUSE, "450 4.2.1", False, None),
    ("599", Act.REFUSE, "599 5.0.0", False, None),
    ("550-5.7.1", Act.REFUSE, "550 5.7.1", False, None),
    ("450-2", Act.REFUSE, "450 4.2.1", False, 2),
    ("552-dot", Act.REFUSE, "552 5.2.2", True, None),
    ("451-4.3.1-3-DOT", Act.REFUSE, "451 4.3.1", True, 3),
    ("550+order-1", Act.REFUSE, "550 5.1.1", False, None),
    ("Uncertain", Act.UNCERTAIN, None, False, None),
    ("drop-1", Act.DROP, None, False, 1),
    ("login", Act.LOGIN, "535 5.7.8", False, None),
]


@pytest.mark.parametrize(("local", "act", "reply", "at_dot", "times"), GRAMMAR)
def test_the_grammar(local: str, act: Act, reply: str | None, at_dot: bool, times: int | None) -> None:
    part = rehearsal(f"{local}@anything.test")
    assert isinstance(part, Rehearsal)
    assert (part.act, part.at_dot, part.times) == (act, at_dot, times)
    if reply is not None:
        assert f"{part.reply.code} {part.reply.enhanced}" == reply


@pytest.mark.parametrize(
    "local", ["b", "250", "350", "650", "5500", "550x", "450-5.1.1", "drops", "login-x", "", "550-dot-2"]
)
def test_what_is_not_in_the_grammar_is_taken(local: str) -> None:
    assert rehearsal(f"{local}@anything.test") is None


async def test_recipients_act_each_for_themselves(path: Path) -> None:
    session = await opened(path)
    sent = await session.send(outgoing("550@x.test", "b@x.test", "450@x.test"))
    assert kinds(sent) == ["rejected", "delivered", "deferred"]
    assert codes(sent)[0] == "550 5.1.1"
    assert sent.transcript is not None
    assert "> RCPT TO:<550@x.test>" in sent.transcript
    await session.close()
    assert [mail.recipients for mail in listing(path)] == [("b@x.test",)]


async def test_twice_refused_then_taken(path: Path) -> None:
    session = await opened(path)
    mail = outgoing("450-2@x.test", ident="m7")
    assert [kinds(await session.send(mail))[0] for _ in range(4)] == ["deferred", "deferred", "delivered", "delivered"]
    assert kinds(await session.send(outgoing("450-2@x.test", ident="m8"))) == ["deferred"]
    await session.close()


ACTS = [
    ("552-dot", "rejected", True, False),
    ("451-dot", "deferred", True, False),
    ("421-dot", "deferred", False, False),
    ("421", "deferred", False, False),
    ("uncertain", "uncertain", False, True),
    ("drop", "deferred", False, False),
    ("login", "trouble", True, False),
]


@pytest.mark.parametrize(("local", "kind", "usable", "kept"), ACTS)
async def test_what_concerns_the_whole_transaction(path: Path, local: str, kind: str, usable: bool, kept: bool) -> None:
    session = await opened(path)
    sent = await session.send(outgoing("b@x.test", f"{local}@x.test"))
    assert kinds(sent) == [kind, kind]
    assert session.usable == usable
    await session.close()
    assert len(listing(path)) == kept


async def test_the_oldest_go_first(path: Path) -> None:
    keepsakes = Keepsakes(path, max_mails=3, max_octets=1000)
    await keepsakes.open()
    for _ in range(5):
        await keepsakes.keep(outgoing(content=b"x" * 100), ["b@x.test"], NOW)
    assert [mail.id for mail in listing(path)] == [5, 4, 3]
    await keepsakes.keep(outgoing(content=b"x" * 950), ["b@x.test"], NOW)
    assert [mail.id for mail in listing(path)] == [6]
    # one mail is kept in any case, however big
    await keepsakes.keep(outgoing(content=b"x" * 5000), ["b@x.test"], NOW)
    assert [mail.id for mail in listing(path)] == [7]
    await keepsakes.close()


async def test_listing_export_and_clear(path: Path, tmp_path: Path) -> None:
    with pytest.raises(NotKeptError):
        listing(path)
    session = await opened(path)
    for n in range(3):
        await session.send(outgoing(content=b"Subject: %d\r\n\r\nFrom here\r\n>From there\r\n" % n))
    await session.close()
    assert [mail.subject for mail in listing(path, 2)] == ["2", "1"]
    with pytest.raises(NotKeptError):
        show(path, 99)
    assert export(path, tmp_path / "eml") == 3
    assert (tmp_path / "eml" / "000002.eml").read_bytes() == b"Subject: 1\r\n\r\nFrom here\r\n>From there\r\n"
    assert export(path, tmp_path / "all.mbox", "mbox") == 3
    box = mailbox.mbox(tmp_path / "all.mbox", create=False)
    mails = list(box)
    assert [mail["Subject"] for mail in mails] == ["0", "1", "2"]
    assert mails[0].get_payload() == ">From here\n>>From there\n"
    box.close()
    assert clear(path) == 3
    assert listing(path) == []
    session = await opened(path)
    assert kinds(await session.send(outgoing())) == ["delivered"]
    await session.close()
    assert len(listing(path)) == 1


async def test_sessions_share_one_database_and_the_last_one_closes_it(path: Path) -> None:
    connector = SandboxConnector("sandbox", path, lambda: NOW)
    sessions = [await connector.open() for _ in range(5)]
    sent = await asyncio.gather(*(session.send(outgoing(ident=str(n))) for n, session in enumerate(sessions)))
    assert {outcome.kind for one in sent for outcome in one.outcomes} == {OutcomeKind.DELIVERED}
    for session in sessions:
        assert await session.probe()
        await session.close()
        await session.close()
        assert not session.usable
    again = await connector.open()
    assert kinds(await again.send(outgoing())) == ["delivered"]
    await again.close()


async def test_an_unusable_database_is_trouble(tmp_path: Path) -> None:
    (tmp_path / "sandbox.db").mkdir()
    with pytest.raises(ConnectFailedError) as caught:
        await opened(tmp_path / "sandbox.db")
    assert caught.value.outcome.kind is OutcomeKind.TROUBLE
    assert caught.value.outcome.reply == Reply(451, "4.3.0", caught.value.outcome.reply.text)


def _worker(path: Path, number: int) -> None:
    async def run() -> None:
        session = await opened(path)
        for n in range(20):
            assert kinds(await session.send(outgoing(ident=f"{number}-{n}"))) == ["delivered"]
        await session.close()

    asyncio.run(run())


def test_workers_share_the_file(path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_worker, args=(path, number)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len(listing(path)) == 60
