"""Submission: what is kept, when 250 is said, what delivery gets, and what happens when something fails on the way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any

import pytest

from relayd.config.models import Config
from relayd.core import headers
from relayd.core.ids import format_id, parse_id
from relayd.core.lifecycle import State
from relayd.core.mail import Body, Envelope, Recipient
from relayd.core.reply import Reply
from relayd.intake.submission import HEADER_MAX, protocol_word
from relayd.spool.store import StoreError, StoreFullError
from tests.intake.conftest import CRM_HASH, SHOP_HASH, House, make_config

ENVELOPE = Envelope("info@shop.example.com")
TO = (Recipient("a@example.net"),)
MAIL = (
    b"From: Shop <info@Shop.Example.COM>\r\nTo: a@example.net\r\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\n"
    b"Date: Mon, 1 Sep 2025 10:00:00 +0000\r\nMessage-ID: <1@shop>\r\nX-Relay-Campaign: autumn\r\nX-Kind: bulk\r\n"
    b"\r\nHello\r\n.dot\r\n"
)


def code(reply: Reply | None) -> str:
    return "" if reply is None else f"{reply.code} {reply.enhanced}"


async def test_the_message_is_kept_with_our_trace_and_without_the_campaign_header(house: House) -> None:
    session = house.session(tls="TLSv1.3", credential=house.config.credentials[0])
    reply = await house.intake.submit(session, ENVELOPE, TO, MAIL)
    assert code(reply) == "250 2.0.0"
    (entry,) = house.store.accepted
    id_text = format_id(entry.message.id)
    assert reply.text == f"OK queued as {id_text}"
    trace, _, rest = entry.content.partition(b"From:")
    assert b"From:" + rest == MAIL.replace(b"X-Relay-Campaign: autumn\r\n", b"")
    unfolded = trace.replace(b"\r\n\t", b" ").decode()
    assert unfolded.startswith("Received: from app.example.com ([192.0.2.9]) by relay.example.com (relayd submission) ")
    assert f"with ESMTPSA (TLSv1.3) id {id_text} for <a@example.net>; " in unfolded
    assert parsedate_to_datetime(unfolded.rpartition("; ")[2].strip()).timestamp() * 1000 == house.clock.now


async def test_the_facts_of_the_message_are_kept_beside_it(house: House) -> None:
    session = house.session(tls="TLSv1.3", credential=house.config.credentials[0])
    await house.intake.submit(session, ENVELOPE, TO, MAIL)
    message = house.store.accepted[0].message
    assert message.accepted_at == house.clock.now
    assert message.envelope is ENVELOPE
    assert message.size == len(house.store.accepted[0].content)
    assert (message.from_domain, message.message_id, message.subject) == ("shop.example.com", "<1@shop>", "Grüße")
    assert (message.campaign, message.labels) == ("autumn", {"x-kind": "bulk"})
    origin = message.origin
    assert (origin.listener, origin.peer, origin.helo) == ("submission", "192.0.2.9", "app.example.com")
    assert (origin.credential, origin.network, origin.tls, origin.protocol) == ("shop", "office", "TLSv1.3", "ESMTPSA")


async def test_date_and_message_id_are_added_where_missing_and_only_there(house: House) -> None:
    session = house.session()
    await house.intake.submit(session, ENVELOPE, TO, b"From: a@b.example\r\n\r\nx\r\n")
    entry = house.store.accepted[0]
    header = entry.content.partition(b"\r\n\r\n")[0]
    own = f"<{format_id(entry.message.id)}@relay.example.com>"
    assert entry.message.message_id == own
    assert header.count(b"\r\nDate: ") == 1
    assert header.count(f"\r\nMessage-ID: {own}".encode()) == 1
    await house.intake.submit(session, ENVELOPE, TO, MAIL)
    header = house.store.accepted[1].content.partition(b"\r\n\r\n")[0]
    assert header.count(b"\r\nDate: ") == header.count(b"\r\nMessage-ID: ") == 1


def big(header: bytes) -> bytes:
    return header + b"\r\n" + b"A line of the text.\r\n" * 60_000


BIG = {
    "usual": big(MAIL.partition(b"\r\n\r\n")[0] + b"\r\n"),
    "without Date": big(b"From: a@b.example\r\n"),
    "a long header": big(
        b"From: a@b.example\r\n" + b"X-Long: 0123456789\r\n" * 15_000 + b"X-Relay-Campaign: autumn\r\n"
    ),
    "no header": big(b""),
    "no empty line": b"From: a@b.example\r\n" + b"not-a-field\r\n" * 60_000,
    "no line but the first": b"From: " + b"x" * 700_000 + b"\r\n",
}


@pytest.mark.parametrize("content", BIG.values(), ids=BIG.keys())
@pytest.mark.parametrize("piece", [4096, 65_535, 262_144])
async def test_a_big_one_in_pieces_is_kept_as_though_it_came_whole(house: House, content: bytes, piece: int) -> None:
    pieces = [content[place : place + piece] for place in range(0, len(content), piece)]
    session = house.session()
    await house.intake.submit(session, ENVELOPE, TO, content)
    assert code(await house.intake.submit(session, ENVELOPE, TO, pieces.pop(0), pieces)) == "250 2.0.0"
    assert not pieces
    whole, put_together = house.store.accepted
    old, new = (format_id(entry.message.id).encode() for entry in (whole, put_together))
    assert put_together.content == whole.content.replace(old, new)
    assert put_together.message.size == whole.message.size == len(whole.content)
    for fact in ("from_domain", "subject", "campaign", "labels"):
        assert getattr(put_together.message, fact) == getattr(whole.message, fact)


LONG = {
    "a From of many addresses": b"From: " + b"a@b.example," * 2000 + b"c@d.example\r\nX-Relay-Campaign: x\r\n\r\nx\r\n",
    "many fields": b"From: a@b.example\r\nX-Relay-Campaign: x\r\n" + b"a:\r\n" * 5000 + b"\r\nx\r\n",
}


@pytest.mark.parametrize("content", LONG.values(), ids=LONG.keys())
async def test_long_headers_are_read_beside_the_loop_one_at_a_time_and_others_at_once(
    house: House, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[bool] = []
    now = most = 0

    def watched(real: Callable[..., Any]) -> Callable[..., Any]:
        def work(*args: Any, **others: Any) -> Any:
            nonlocal now, most
            now += 1
            most = max(most, now)
            read.append(threading.current_thread() is threading.main_thread())
            try:
                return real(*args, **others)
            finally:
                now -= 1

        return work

    monkeypatch.setattr(headers, "facts", watched(headers.facts))
    monkeypatch.setattr(headers, "assembly", watched(headers.assembly))
    tasks = [house.intake.submit(house.session(), ENVELOPE, TO, content) for _ in range(4)]
    assert {code(reply) for reply in await asyncio.gather(*tasks)} == {"250 2.0.0"}
    assert not any(read)
    assert (len(read), most) == (8, 1)
    read.clear()
    await house.intake.submit(house.session(), ENVELOPE, TO, big(b"From: a@b.example\r\nX-Relay-Campaign: x\r\n"))
    assert read == [True, True]
    assert {entry.message.campaign for entry in house.store.accepted} == {"x"}
    assert not any(b"X-Relay-Campaign" in entry.content for entry in house.store.accepted)


LINES = {
    "fields": b"X-Endless: header\r\n",
    "one field": b" of many lines\r\n",
    "no line end": b"x",
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES.keys())
@pytest.mark.parametrize("whole", [True, False])
async def test_a_header_beyond_all_measure_is_refused(house: House, line: bytes, whole: bool) -> None:
    content = b"From: a@b.example\r\nX-Long:" + line * (HEADER_MAX // len(line))
    rest = [] if whole else [content[70_000:] + b"\r\n\r\nHello\r\n"]
    first = content + b"\r\n\r\nHello\r\n" if whole else content[:70_000]
    assert code(await house.intake.submit(house.session(), ENVELOPE, TO, first, rest)) == "552 5.3.4"
    assert not house.store.accepted


@pytest.mark.parametrize("end", [b"\r\n", b"no field\r\n"])
async def test_a_header_that_ends_in_time_is_not_taken_for_a_longer_one(house: House, end: bytes) -> None:
    header = b"From: a@b.example\r\n" + b"X-Endless: header\r\n" * ((HEADER_MAX - 100) // 19)
    content = header + end + b"X-Text: no field\r\n" * 10_000
    assert len(header) < HEADER_MAX < len(content)
    assert code(await house.intake.submit(house.session(), ENVELOPE, TO, content)) == "250 2.0.0"
    assert house.store.accepted[0].content.endswith(header + end + b"X-Text: no field\r\n" * 10_000)


async def test_the_size_of_all_pieces_counts(house: House) -> None:
    limit = house.config.limits.message_size
    pieces = [b"x" * 998 + b"\r\n"] * (limit // 1000 + 1)
    assert code(await house.intake.submit(house.session(), ENVELOPE, TO, MAIL, pieces)) == "552 5.3.4"


async def test_recipients_stay_blind_to_each_other_and_share_a_delivery_per_lane(house: House) -> None:
    house.lanes = {"a@example.net": "one", "b@example.net": "two", "c@example.net": "one"}
    recipients = [Recipient(f"{letter}@example.net") for letter in "abc"]
    await house.intake.submit(house.session(), ENVELOPE, recipients, MAIL)
    entry = house.store.accepted[0]
    assert b"for <" not in entry.content
    assert [(w.n, w.recipient, w.lane, w.state, w.attempts, w.due) for w in entry.recipients] == [
        (n, recipient, lane, State.QUEUED, 0, house.clock.now)
        for n, (recipient, lane) in enumerate(zip(recipients, ["one", "two", "one"], strict=True))
    ]
    assert [tuple(w.n for w in delivery.recipients) for delivery in house.kept] == [(0, 2), (1,)]
    assert all(d.message is entry.message and d.content is entry.content for d in house.kept)


async def test_250_waits_for_the_commit(house: House) -> None:
    house.store.held = True
    task = asyncio.create_task(house.intake.submit(house.session(), ENVELOPE, TO, MAIL))
    await house.store.asked.wait()
    await asyncio.sleep(0)
    assert not task.done()
    assert not house.kept
    assert house.intake.memory.used == len(house.store.accepted[0].content)
    house.store.commit()
    assert code(await task) == "250 2.0.0"
    assert len(house.kept) == 1
    assert house.intake.memory.used == 0


async def test_a_client_that_vanishes_during_the_commit_cancels_nothing(house: House) -> None:
    house.store.held = True
    task = asyncio.create_task(house.intake.submit(house.session(), ENVELOPE, TO, MAIL))
    await house.store.asked.wait()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not house.store.accepted[0].future.cancelled()
    house.store.commit()
    await asyncio.sleep(0)
    assert len(house.kept) == 1
    assert house.intake.memory.used == 0


@pytest.mark.parametrize(
    ("trouble", "expected", "reason"),
    [
        (StoreFullError("no room on /dev/sda1"), "452 4.3.1", "disk"),
        (StoreError("disk I/O error"), "451 4.3.0", "spool"),
        (RuntimeError("secret detail"), "451 4.3.0", "internal"),
    ],
)
async def test_what_is_not_kept_is_not_promised_and_not_explained(
    house: House, trouble: Exception, expected: str, reason: str
) -> None:
    house.store.trouble = trouble
    reply = await house.intake.submit(house.session(), ENVELOPE, TO, MAIL)
    assert code(reply) == expected
    assert str(trouble) not in reply.text
    assert not house.kept
    assert house.counts.refusals == {(reason, "submission"): 1}
    assert house.intake.memory.used == 0


async def test_a_spool_that_fails_at_once_is_the_same_as_one_that_fails_later(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise StoreFullError("full")

    monkeypatch.setattr(house.store, "accept", refuse)
    assert code(await house.intake.submit(house.session(), ENVELOPE, TO, MAIL)) == "452 4.3.1"
    assert house.intake.memory.used == 0


async def test_a_fault_of_ours_is_451_without_its_text(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(house.store, "mint", fail)
    reply = await house.intake.submit(house.session(), ENVELOPE, TO, MAIL)
    assert code(reply) == "451 4.3.0"
    assert "secret" not in reply.text


async def test_mail_that_delivery_does_not_take_is_kept_all_the_same(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(house.intake, "_on_kept", fail)
    assert code(await house.intake.submit(house.session(), ENVELOPE, TO, MAIL)) == "250 2.0.0"


async def test_no_route_for_one_recipient_refuses_the_message(house: House) -> None:
    house.lanes = {"b@example.net": None}
    recipients = [Recipient("a@example.net"), Recipient("b@example.net")]
    reply = await house.intake.submit(house.session(), ENVELOPE, recipients, MAIL)
    assert code(reply) == "550 5.4.4"
    assert "<b@example.net>" in reply.text
    assert not house.store.accepted


async def test_loops_end(house: House) -> None:
    hop = b"Received: from x by y; Mon, 1 Sep 2025 10:00:00 +0000\r\n"
    assert code(await house.intake.submit(house.session(), ENVELOPE, TO, hop * 49 + MAIL)) == "250 2.0.0"
    assert code(await house.intake.submit(house.session(), ENVELOPE, TO, hop * 50 + MAIL)) == "550 5.4.6"


async def test_a_relay_that_is_fed_its_own_output_refuses_in_the_end(house: House) -> None:
    content, replies = MAIL, []
    for _ in range(60):
        replies.append(code(await house.intake.submit(house.session(), ENVELOPE, TO, content)))
        content = house.store.accepted[-1].content
    assert replies[:50] == ["250 2.0.0"] * 50
    assert set(replies[50:]) == {"550 5.4.6"}


async def test_content_over_the_limit_is_refused_whatever_was_declared(house: House) -> None:
    house.intake.apply(make_config(limits={"message_size": 1024}))
    assert code(house.intake.mail(house.session(), ENVELOPE, 1025)) == "552 5.3.4"
    assert house.intake.mail(house.session(), ENVELOPE, 0) is None
    assert code(await house.intake.submit(house.session(), ENVELOPE, TO, MAIL + b"x" * 1024)) == "552 5.3.4"


async def test_postmaster_without_domain_is_ours(house: House) -> None:
    recipient = Recipient("postmaster")
    assert house.intake.rcpt(house.session(), ENVELOPE, recipient, 0) is None
    await house.intake.submit(house.session(), ENVELOPE, [recipient], MAIL)
    assert house.store.accepted[0].recipients[0].recipient.address == "postmaster@relay.example.com"


async def test_draining_refuses_connections_and_mails_but_not_what_is_in_reception(house: House) -> None:
    session = house.session()
    house.intake.draining = True
    assert code(house.intake.connect(session)) == "421 4.3.2"
    assert code(house.intake.mail(session, ENVELOPE, 0)) == "421 4.3.2"
    assert code(await house.intake.submit(session, ENVELOPE, TO, MAIL)) == "250 2.0.0"


async def test_low_disk_and_full_memory_put_mail_off(house: House) -> None:
    session = house.session()
    house.disk.low = True
    assert code(house.intake.mail(session, ENVELOPE, 0)) == "452 4.3.1"
    house.disk.low = False
    house.intake.memory.take(house.config.limits.memory - 100_000)
    assert house.intake.mail(session, ENVELOPE, 100_000) is None
    assert code(house.intake.mail(session, ENVELOPE, 100_001)) == "452 4.3.1"
    assert house.intake.mail(session, ENVELOPE, 1000) is None
    assert house.counts.refusals == {("disk", "submission"): 1, ("memory", "submission"): 1}


async def test_the_rate_of_a_credential_is_kept_to_the_message(house: House) -> None:
    session = house.session("smtps", tls="TLSv1.3", credential=house.config.credentials[1])
    replies = []
    for _ in range(5):
        if (refused := house.intake.mail(session, Envelope(""), 0)) is not None:
            replies.append(code(refused))
            continue
        replies.append(code(await house.intake.submit(session, Envelope(""), TO, MAIL)))
    # the fourth is refused behind its content, the fifth is known at MAIL
    assert replies == ["250 2.0.0"] * 3 + ["450 4.7.1"] * 2
    assert len(house.store.accepted) == 3
    house.clock.advance(61)
    assert house.intake.mail(session, Envelope(""), 0) is None
    assert code(await house.intake.submit(session, Envelope(""), TO, MAIL)) == "250 2.0.0"


async def test_a_rate_that_cannot_be_known_puts_mail_off(house: House) -> None:
    await house.state.close()
    session = house.session("smtps", credential=house.config.credentials[1])
    assert code(await house.intake.submit(session, ENVELOPE, TO, MAIL)) == "451 4.3.0"
    assert not house.store.accepted


async def test_a_mapped_address_is_in_the_ipv4_network(house: House) -> None:
    session = house.session(peer="::ffff:192.0.2.77")
    assert session.network == "office"
    assert str(session.peer) == "192.0.2.77"


async def test_outside_the_network_a_listener_for_networks_is_closed(house: House) -> None:
    session = house.session("local", peer="127.0.0.1")
    assert (session.network, house.intake.connect(session)) == ("127.0.0.0/8", None)
    session = house.session("local", peer="192.0.2.9")
    assert code(house.intake.connect(session)) == "554 5.7.1"


def reload(house: House, **changes: Any) -> Config:
    config = make_config(**changes)
    house.intake.apply(config)
    return config


def shop(**changes: Any) -> dict[str, Any]:
    return {"username": "shop", "password": SHOP_HASH, "senders": ["*@shop.example.com"]} | changes


async def test_a_reload_reaches_sessions_that_are_logged_in(house: House) -> None:
    session = house.session("smtps", credential=house.config.credentials[0])
    assert house.intake.mail(session, Envelope("info@example.com"), 0) is None
    config = reload(house, credentials=[shop()])
    assert code(house.intake.mail(session, Envelope("info@example.com"), 0)) == "553 5.7.1"
    assert house.intake.mail(session, ENVELOPE, 0) is None
    assert session.credential is config.credentials[0]
    reload(house, credentials=[shop(password=CRM_HASH)])
    assert code(house.intake.mail(session, ENVELOPE, 0)) == "530 5.7.0"
    assert session.credential is None


async def test_a_reload_that_takes_a_network_away_reaches_open_sessions(house: House) -> None:
    session = house.session()
    assert house.intake.mail(session, ENVELOPE, 0) is None
    reload(house, networks={"office": ["198.51.100.0/24"]})
    assert code(house.intake.mail(session, ENVELOPE, 0)) == "530 5.7.0"


async def test_a_report_passes_the_same_door_without_checks(house: House) -> None:
    house.intake.draining = True
    house.disk.low = True
    number = await house.intake.submit_report("boss@shop.example.com", MAIL, body=Body.EIGHT_BIT_MIME)
    (entry,) = house.store.accepted
    assert entry.message.id == number == parse_id(format_id(number))
    assert entry.message.envelope == Envelope("", body=Body.EIGHT_BIT_MIME)
    assert (entry.message.origin.listener, entry.message.from_domain) == ("report", "shop.example.com")
    assert [delivery.message.id for delivery in house.kept] == [number]


async def test_a_report_without_a_route_waits_on_disk(house: House) -> None:
    house.lanes = {"boss@shop.example.com": None}
    await house.intake.submit_report("boss@shop.example.com", MAIL)
    assert house.store.accepted[0].recipients[0].lane == ""
    assert not house.kept


async def test_a_report_that_is_not_kept_raises(house: House) -> None:
    house.store.trouble = StoreError("disk I/O error")
    with pytest.raises(StoreError):
        await house.intake.submit_report("boss@shop.example.com", MAIL)


@pytest.mark.parametrize(
    ("esmtp", "tls", "auth", "smtputf8", "word"),
    [
        (False, None, False, False, "SMTP"),
        (True, None, False, False, "ESMTP"),
        (True, "TLSv1.3", False, False, "ESMTPS"),
        (True, None, True, False, "ESMTPA"),
        (True, "TLSv1.3", True, False, "ESMTPSA"),
        (True, None, False, True, "UTF8SMTP"),
        (True, "TLSv1.3", False, True, "UTF8SMTPS"),
        (True, None, True, True, "UTF8SMTPA"),
        (True, "TLSv1.3", True, True, "UTF8SMTPSA"),
        (False, "TLSv1.3", False, False, "ESMTPS"),
    ],
)
async def test_protocol_words(
    house: House, *, esmtp: bool, tls: str | None, auth: bool, smtputf8: bool, word: str
) -> None:
    session = house.session(esmtp=esmtp, tls=tls, credential=house.config.credentials[0] if auth else None)
    assert protocol_word(session, smtputf8=smtputf8) == word


async def test_a_helo_with_control_characters_is_not_kept(house: House) -> None:
    await house.intake.submit(house.session(helo="x\r\nBcc: y"), ENVELOPE, TO, MAIL)
    entry = house.store.accepted[0]
    assert entry.message.origin.helo == ""
    assert b"Bcc" not in entry.content
