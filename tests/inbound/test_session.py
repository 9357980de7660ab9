"""From a mail that came back to facts: whom it is about, what is handed over, what is filed, what waits."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from relayd.core.bounce.explain import examine
from relayd.core.feedback import Applied, Fact, FactError, FeedbackKind
from relayd.core.ids import EPOCH, IdMint, MessageId, format_id, time_of
from relayd.core.lifecycle import OutcomeKind, State
from relayd.core.mail import Envelope, Message, Origin, Recipient
from relayd.core.session import Outgoing
from relayd.core.token import DAY, ReturnPaths
from relayd.inbound.archive import Archive
from relayd.inbound.filing import Filing
from relayd.inbound.match import Matcher
from relayd.inbound.session import InboundConnector, digest
from relayd.spool.keepsake import listing
from relayd.spool.store import History, NoSuchMessageError, StoreError, Waiting
from tests.support.bounces import auto_reply, complaint, letter, report

NOW = EPOCH + 900 * DAY
PATHS = ReturnPaths("bounce.example.com", b"a secret", 40 * DAY)
HOST = "relay.test"


class Shop:
    """A worker's store with the mails of one slot, and a place where facts are written."""

    def __init__(self, slot: int = 0) -> None:
        self.mint = IdMint(slot)
        self.mails: dict[MessageId, tuple[Message, list[str]]] = {}
        self.facts: list[Fact] = []
        self.searches: list[list[str]] = []
        self.trouble: Exception | None = None

    def sent(self, *recipients: str, at: int = NOW - DAY, message_id: str = "", inbound: bool = False) -> MessageId:
        number = self.mint.next(at)
        origin = Origin("local", "127.0.0.1", inbound=inbound)
        message = Message(number, at, Envelope("app@example.com"), origin, 100, message_id=message_id)
        self.mails[number] = (message, list(recipients))
        return number

    async def history(self, message: MessageId) -> History:
        if self.trouble is not None:
            raise self.trouble
        if message not in self.mails:
            raise NoSuchMessageError("gone")
        found, recipients = self.mails[message]
        waiting = tuple(Waiting(n, Recipient(address), "acme", State.DELIVERED) for n, address in enumerate(recipients))
        return History(found, waiting, (), (), has_content=False)

    async def by_message_id(self, wanted: Sequence[str], since: int) -> dict[str, list[MessageId]]:
        self.searches.append(list(wanted))
        await asyncio.sleep(0)
        return {
            text: [
                number
                for number, (message, _) in self.mails.items()
                if message.message_id == text and time_of(number) >= since
            ]
            for text in wanted
        }

    async def write(self, fact: Fact) -> Applied:
        if fact.message not in self.mails:
            return Applied.UNKNOWN
        known = [(each.message, each.n, each.source) for each in self.facts]
        if (fact.message, fact.n, fact.source) in known:
            return Applied.DUPLICATE
        self.facts.append(fact)
        return Applied.NEW


class Counts:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.said: list[tuple[str, ...]] = []

    def read(self, kind: str) -> None:
        self.said.append(("read", kind))

    def fact(self, kind: FeedbackKind, applied: Applied) -> None:
        self.said.append(("fact", kind.value, applied.value))

    def unmatched(self, kind: str) -> None:
        self.said.append(("unmatched", kind))

    def filed(self) -> None:
        self.said.append(("filed",))

    def fetched(self, mailbox: str) -> None:
        raise AssertionError

    def mailbox_failed(self, mailbox: str) -> None:
        raise AssertionError


class Desk:
    """One worker that reads, among two: slot 0 is its own, slot 1 is reached by `remote`."""

    def __init__(self, directory: Path, paths: ReturnPaths | None = PATHS) -> None:
        self.own, self.other = Shop(0), Shop(1)
        self.unreachable = False
        self.counts = Counts()
        self.path = directory / "inbound.db"
        self.filing = Filing(self.path, lambda: NOW)
        self.archive = Archive(0, 2, self.own, self.own.write, self._remote)
        self._far = Archive(1, 2, self.other, self.other.write, self._remote)
        matcher = Matcher(self.archive, paths, HOST, 40 * DAY)
        self.connector = InboundConnector(examine, matcher, self.archive, self.filing, self.counts)
        self.mint = IdMint(0)

    async def _remote(self, slot: int, verb: str, args: dict[str, Any]) -> Any:
        assert slot == 1
        if self.unreachable:
            raise FactError("worker 1 cannot be asked")
        return await self._far.verbs()[verb](args)

    async def read(self, content: bytes, *to: str, number: MessageId | None = None) -> OutcomeKind:
        """Deliver one mail to the lane; its outcome."""
        number = number or self.mint.next(NOW)
        recipients = tuple(Recipient(address) for address in to or ("bounces@example.com",))
        session = await self.connector.open()
        sent = await session.send(Outgoing(format_id(number), Envelope(""), recipients, content))
        assert len(sent.outcomes) == len(recipients)
        await session.close()
        return sent.outcomes[0].kind

    @property
    def filed(self) -> list[str]:
        return [mail.subject for mail in listing(self.path)] if self.path.exists() else []


@pytest.fixture
async def desk(tmp_path: Path) -> Any:
    desk = Desk(tmp_path)
    yield desk
    await desk.archive.close()
    await desk.filing.close()


async def test_the_return_path_says_whom_it_is_about(desk: Desk) -> None:
    number = desk.own.sent("a@example.org", "b@example.org")
    path = PATHS.address(number, 1, NOW - DAY)
    assert await desk.read(report("forwarded@elsewhere.example", to=path), path) is OutcomeKind.DELIVERED
    [fact] = desk.own.facts
    assert (fact.message, fact.n, fact.kind, fact.cls, fact.hard) == (number, 1, "bounce", "user-unknown", True)
    assert (fact.action, fact.status, fact.reply_code) == ("failed", "5.1.1", 550)
    assert (fact.recipient, fact.rewritten, fact.at) == ("forwarded@elsewhere.example", True, NOW)
    assert desk.filed == []
    assert desk.counts.said == [("read", "bounce"), ("fact", "bounce", "new")]


async def test_a_fact_goes_to_the_worker_that_has_the_mail(desk: Desk) -> None:
    number = desk.other.sent("a@example.org")
    path = PATHS.address(number, 0, NOW)
    desk.unreachable = True
    assert await desk.read(report("a@example.org"), path) is OutcomeKind.DEFERRED
    assert desk.counts.said == [] and desk.filed == []
    desk.unreachable = False
    assert await desk.read(report("a@example.org"), path) is OutcomeKind.DELIVERED
    assert [fact.message for fact in desk.other.facts] == [number]
    assert desk.own.facts == []


async def test_trouble_of_the_spool_defers(desk: Desk) -> None:
    number = desk.own.sent("a@example.org")
    desk.own.trouble = StoreError("the disk is gone")
    returned = report("a@example.org", original=f"Message-ID: <{format_id(number)}@{HOST}>\r\n".encode())
    assert await desk.read(returned) is OutcomeKind.DEFERRED
    desk.own.trouble = None
    assert await desk.read(returned) is OutcomeKind.DELIVERED
    assert len(desk.own.facts) == 1


async def test_the_same_mail_by_another_way_is_one_fact(desk: Desk) -> None:
    number = desk.own.sent("a@example.org")
    path = PATHS.address(number, 0, NOW)
    bounce = report("a@example.org")
    await desk.read(bounce, path)
    await desk.read(b"Received: from x by y; Sun, 22 Nov 2026 01:00:10 +0000\r\nDelivered-To: z\r\n" + bounce, path)
    assert len(desk.own.facts) == 1
    assert desk.counts.said[-1] == ("fact", "bounce", "duplicate")
    await desk.read(report("a@example.org", message_id="<another@mx.example.org>"), path)
    assert len(desk.own.facts) == 2


async def test_one_mail_to_several_return_paths(desk: Desk) -> None:
    first, second = desk.own.sent("a@example.org"), desk.other.sent("b@example.org", "c@example.org")
    paths = [PATHS.address(first, 0, NOW), PATHS.address(second, 1, NOW)]
    await desk.read(report("a@example.org"), *paths)
    assert [(fact.message, fact.n) for fact in desk.own.facts] == [(first, 0)]
    assert [(fact.message, fact.n) for fact in desk.other.facts] == [(second, 1)]


async def test_a_return_path_inside_the_mail_counts_too(desk: Desk) -> None:
    """A mailbox was put in as the envelope's recipient; Delivered-To still says where the bounce had been sent."""
    number = desk.own.sent("a@example.org", "b@example.org")
    path = PATHS.address(number, 1, NOW)
    await desk.read(f"Delivered-To: {path}\r\n".encode() + report("x@example.org"))
    assert [(fact.n, fact.rewritten) for fact in desk.own.facts] == [(1, True)]


@pytest.mark.parametrize("way", ["message-id", "received", "given"])
async def test_what_the_report_returns_names_the_mail(desk: Desk, way: str) -> None:
    number = desk.other.sent("a@example.org", "b@example.org", message_id="<given@example.com>")
    id_text = format_id(number)
    returned = {
        "message-id": f"Message-ID: <{id_text}@{HOST}>\r\n",
        "received": f"Received: from app ([127.0.0.1])\r\n\tby {HOST} (relayd local)\r\n\twith ESMTPSA (TLSv1.3)"
        f" id {id_text};\r\n\tSun, 22 Nov 2026 01:00:10 +0000\r\nSubject: hello\r\n",
        "given": "Message-ID: <given@example.com>\r\nSubject: hello\r\n",
    }[way]
    await desk.read(report("B@EXAMPLE.ORG", original=returned.encode()))
    assert [(fact.message, fact.n, fact.rewritten) for fact in desk.other.facts] == [(number, 1, False)]
    assert bool(desk.other.searches) == (way == "given")


async def test_what_is_not_signed_needs_an_address_that_fits(desk: Desk) -> None:
    number = desk.own.sent("a@example.org", "b@example.org", message_id="<given@example.com>")
    for text in (f"Message-ID: <{format_id(number)}@{HOST}>\r\n", "Message-ID: <given@example.com>\r\n"):
        assert await desk.read(report("c@example.org", original=text.encode())) is OutcomeKind.DELIVERED
    assert desk.own.facts == []
    assert desk.counts.said.count(("unmatched", "bounce")) == 2
    assert len(desk.filed) == 2


async def test_an_only_recipient_is_meant_whoever_is_named(desk: Desk) -> None:
    number = desk.own.sent("a@example.org")
    await desk.read(
        report("forwarded@elsewhere.example", original=f"Message-ID: <{format_id(number)}@{HOST}>\r\n".encode())
    )
    assert [fact.n for fact in desk.own.facts] == [0]


async def test_a_message_id_that_many_mails_share(desk: Desk) -> None:
    """A campaign that gives all its mails one Message-ID: the address tells which."""
    numbers = [
        desk.own.sent(f"r{n}@example.org", f"s{n}@example.org", message_id="<all@example.com>") for n in range(5)
    ]
    await desk.read(report("s3@example.org", original=b"Message-ID: <all@example.com>\r\n"))
    assert [(fact.message, fact.n) for fact in desk.own.facts] == [(numbers[3], 1)]


async def test_mails_from_before_verify_for_are_not_touched(desk: Desk) -> None:
    old = desk.own.sent("a@example.org", at=NOW - 41 * DAY, message_id="<old@example.com>")
    await desk.read(report("a@example.org", original=f"Message-ID: <{format_id(old)}@{HOST}>\r\n".encode()))
    await desk.read(report("a@example.org", original=b"Message-ID: <old@example.com>\r\n"))
    await desk.read(report("a@example.org"), PATHS.address(old, 0, NOW - 42 * DAY))
    assert desk.own.facts == []
    assert len(desk.filed) == 3


async def test_a_report_about_mail_that_came_in_ends_there(desk: Desk) -> None:
    """Bounces of bounces: our trace of an inbound mail is no mail that we sent."""
    number = desk.own.sent("postmaster@bounce.example.com", inbound=True)
    await desk.read(
        report("postmaster@bounce.example.com", original=f"Message-ID: <{format_id(number)}@{HOST}>\r\n".encode())
    )
    assert desk.own.facts == []
    assert desk.counts.said[-2:] == [("unmatched", "bounce"), ("read", "bounce")]


async def test_a_mail_that_is_gone_is_filed(desk: Desk) -> None:
    gone = desk.mint.next(NOW - DAY)
    await desk.read(report("a@example.org"), PATHS.address(gone, 0, NOW))
    assert ("fact", "bounce", "unknown") in desk.counts.said
    assert desk.filed == ["Undelivered Mail Returned to Sender"]


async def test_kinds(desk: Desk) -> None:
    number = desk.own.sent("a@example.org")
    path = PATHS.address(number, 0, NOW)
    original = f"Message-ID: <{format_id(number)}@{HOST}>\r\nSubject: hello\r\n\r\nhello\r\n".encode()
    await desk.read(complaint("a@example.org", original=original), "abuse@bounce.example.com")
    await desk.read(auto_reply("a@example.org", to=path), path)
    await desk.read(report("a@example.org", action="delivered", status="2.1.5", diagnostic="250 2.1.5 ok"), path)
    await desk.read(report("a@example.org", action="delayed", status="4.2.2", diagnostic="452 4.2.2 full"), path)
    await desk.read(letter(to=path, subject="Re: hello"), path)
    assert [(fact.kind.value, fact.action) for fact in desk.own.facts] == [
        ("complaint", ""),
        ("auto-reply", ""),
        ("delivery-report", "delivered"),
        ("bounce", "delayed"),
    ]
    assert desk.filed == ["Re: hello"]


async def test_a_mail_is_filed_once(desk: Desk) -> None:
    number = desk.mint.next(NOW)
    for _ in range(2):  # killed between filing and writing that it is filed
        assert await desk.read(letter(to="postmaster"), number=number) is OutcomeKind.DELIVERED
    assert desk.filed == ["A question"]


async def test_it_waits_where_nothing_can_be_filed(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "inbound.db").mkdir()
    assert await desk.read(letter(to="postmaster")) is OutcomeKind.DEFERRED
    (tmp_path / "inbound.db").rmdir()
    assert await desk.read(letter(to="postmaster")) is OutcomeKind.DELIVERED
    assert desk.filed == ["A question"]


async def test_large_mails_are_read_too(desk: Desk) -> None:
    number = desk.own.sent("a@example.org")
    path = PATHS.address(number, 0, NOW)
    await desk.read(
        report("a@example.org", original=b"X-Filler: " + b"x" * 900 + b"\r\n") + b"padding\r\n" * 20_000, path
    )
    assert len(desk.own.facts) == 1


async def test_questions_that_come_together_share_a_search(desk: Desk) -> None:
    for n in range(20):
        desk.own.sent(f"r{n}@example.org", f"s{n}@example.org", message_id=f"<{n}@example.com>")
    reads = [
        desk.read(report(f"s{n}@example.org", original=f"Message-ID: <{n}@example.com>\r\n".encode()))
        for n in range(20)
    ]
    assert set(await asyncio.gather(*reads)) == {OutcomeKind.DELIVERED}
    assert len(desk.own.facts) == 20
    assert len(desk.own.searches) <= 2


async def test_a_search_that_is_given_up_is_told(desk: Desk) -> None:
    desk.own.sent("a@example.org", message_id="<x@example.com>")
    asked = asyncio.Event()

    async def never(wanted: Sequence[str], since: int) -> dict[str, list[MessageId]]:
        asked.set()
        await asyncio.Event().wait()
        return {}

    desk.own.by_message_id = never  # type: ignore[method-assign]
    bounce = report("a@example.org", original=b"Message-ID: <x@example.com>\r\n")
    reading = asyncio.create_task(desk.read(bounce))
    await asked.wait()
    await desk.archive.close()
    assert await reading is OutcomeKind.DEFERRED
    # and one that is cut off before its first step
    finding = asyncio.create_task(desk.archive.find("<x@example.com>", 0))
    await asyncio.sleep(0)
    await desk.archive.close()
    with pytest.raises(FactError):
        await finding


def test_the_digest_is_of_the_mail_not_of_its_way() -> None:
    mail = report("a@example.org")
    assert digest(mail) == digest(b"Received: from a by b\r\n" + mail) == digest(mail + b"\r\n")
    assert digest(mail) != digest(report("b@example.org"))
    assert digest(mail) != digest(report("a@example.org", message_id="<2@mx.example.org>"))
    assert digest(b"") == digest(b"\r\n")
