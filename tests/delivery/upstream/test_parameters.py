"""MAIL and RCPT parameters by what the upstream offers, and what it cannot take at all."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.core.lifecycle import Stage
from relayd.core.mail import Body, Envelope, Notify, Recipient, Ret
from relayd.delivery.commands import BIG, Offers, is_eight_bit, plan
from tests.delivery.upstream.helpers import codes, kinds, outgoing, send
from tests.support.fake_upstream import EXTENSIONS, FakeUpstream

ALL = Offers(pipelining=True, eight_bit=True, smtputf8=True, dsn=True, size=10_000)
NONE = Offers()
EIGHT_BIT = "Subject: x\r\n\r\nschön\r\n".encode()
UTF8_HEADER = "Subject: schön\r\n\r\nx\r\n".encode()


def lines(offers: Offers, *recipients: str | Recipient, content: bytes = b"A: b\r\n", **envelope: Any) -> list[str]:
    made = plan(
        outgoing(*recipients, content=content, envelope=Envelope(**({"sender": "a@x.test"} | envelope))),
        offers,
        eight_bit=not content.isascii(),
    )
    return [command.decode().rstrip("\r\n") for command in (made.mail, *made.rcpts)]


def test_nothing_is_said_that_was_not_offered() -> None:
    everything: dict[str, Any] = {"body": Body.EIGHT_BIT_MIME, "smtputf8": True, "ret": Ret.HDRS, "envid": "QQ314159"}
    recipient = Recipient("b@y.test", frozenset({Notify.SUCCESS}), "rfc822;b@y.test")
    assert lines(NONE, recipient, **everything) == ["MAIL FROM:<a@x.test>", "RCPT TO:<b@y.test>"]


def test_everything_that_was_offered_and_asked_for_is_said() -> None:
    recipient = Recipient("b@y.test", frozenset({Notify.FAILURE, Notify.DELAY, Notify.SUCCESS}), "rfc822;B+2B@y.test")
    assert lines(ALL, recipient, content=EIGHT_BIT, ret=Ret.FULL, envid="Qq+2B1") == [
        f"MAIL FROM:<a@x.test> SIZE={len(EIGHT_BIT)} BODY=8BITMIME RET=FULL ENVID=Qq+2B1",
        "RCPT TO:<b@y.test> NOTIFY=SUCCESS,FAILURE,DELAY ORCPT=rfc822;B+2B@y.test",
    ]
    assert lines(ALL, Recipient("b@y.test", frozenset({Notify.NEVER})))[1] == "RCPT TO:<b@y.test> NOTIFY=NEVER"


def test_smtputf8_goes_with_what_needs_it() -> None:
    assert "SMTPUTF8" not in lines(ALL, "b@y.test", smtputf8=True)[0]
    assert lines(ALL, "bö@y.test")[0].endswith(" BODY=8BITMIME SMTPUTF8")
    assert " SMTPUTF8" in lines(ALL, "b@y.test", sender="ä@x.test")[0]
    assert " SMTPUTF8" in lines(ALL, "b@y.test", content=UTF8_HEADER, smtputf8=True)[0]
    # a client that never spoke of SMTPUTF8 sends old-fashioned 8-bit mail, whatever is in its header
    assert " SMTPUTF8" not in lines(ALL, "b@y.test", content=UTF8_HEADER)[0]


def test_a_domain_goes_as_a_labels_where_that_is_enough() -> None:
    assert lines(NONE, "b@bücher.test", sender="a@例え.test") == [
        "MAIL FROM:<a@xn--r8jz45g.test>",
        "RCPT TO:<b@xn--bcher-kva.test>",
    ]


def test_orcpt_of_a_utf8_address_is_written_in_seven_bits_without_smtputf8() -> None:
    recipient = Recipient("b@y.test", orcpt="utf-8;bö@y.test")
    assert lines(Offers(dsn=True), recipient)[1] == r"RCPT TO:<b@y.test> ORCPT=utf-8;b\x{F6}@y.test"
    assert lines(ALL, recipient)[1] == "RCPT TO:<b@y.test> ORCPT=utf-8;bö@y.test"


def test_the_null_sender_and_quoted_local_parts() -> None:
    assert lines(NONE, '"a b>"@y.test', sender="") == ["MAIL FROM:<>", 'RCPT TO:<"a b>"@y.test>']


REFUSED = [
    (Offers(size=10, eight_bit=True), b"A: " + b"b" * 20 + b"\r\n", Envelope("a@x.test"), "552 5.3.4"),
    (NONE, EIGHT_BIT, Envelope("a@x.test"), "554 5.6.3"),
    (Offers(eight_bit=True), UTF8_HEADER, Envelope("a@x.test", smtputf8=True), "550 5.6.9"),
    (Offers(eight_bit=True), b"A: b\r\n", Envelope("ä@x.test"), "550 5.6.7"),
    (ALL, b"A: b\r\n", Envelope("a@x.test> SIZE=1"), "550 5.1.7"),
]


@pytest.mark.parametrize(("offers", "content", "envelope", "code"), REFUSED)
def test_what_the_upstream_cannot_take_is_refused_for_all(
    offers: Offers, content: bytes, envelope: Envelope, code: str
) -> None:
    made = plan(
        outgoing("b@y.test", "c@y.test", content=content, envelope=envelope), offers, eight_bit=not content.isascii()
    )
    assert made.rcpts == []
    assert [f"{o.reply.code} {o.reply.enhanced}" for o in made.refused.values()] == [code, code]


async def test_refused_mail_is_not_even_begun() -> None:
    async with FakeUpstream(extensions=["PIPELINING"]) as upstream:
        sent = await send(upstream, outgoing(content=EIGHT_BIT))
        assert (kinds(sent), codes(sent), sent.stage) == (["rejected"], ["554 5.6.3"], Stage.LOCAL)
        assert sent.transcript is not None
        assert not any(command.startswith("MAIL") for command in upstream.commands)


async def test_only_the_recipient_that_cannot_be_named_fails() -> None:
    async with FakeUpstream(extensions=["PIPELINING", "8BITMIME"]) as upstream:
        sent = await send(upstream, outgoing("bö@y.test", "c@y.test", "x y@y.test"))
        assert kinds(sent) == ["rejected", "delivered", "rejected"]
        assert codes(sent)[::2] == ["550 5.6.7", "550 5.1.3"]
        assert upstream.mails[0].recipients == ["c@y.test"]


async def test_the_upstream_gets_the_parameters_and_sent_says_whether_dsn_was_taken_over() -> None:
    recipient = Recipient("b@y.test", frozenset({Notify.SUCCESS}))
    async with FakeUpstream() as upstream:
        assert (await send(upstream, outgoing(recipient))).dsn
        assert upstream.mails[0].recipient_parameters == [["NOTIFY=SUCCESS"]]
    async with FakeUpstream(extensions=[word for word in EXTENSIONS if word != "DSN"]) as upstream:
        assert not (await send(upstream, outgoing(recipient))).dsn
        assert upstream.mails[0].recipient_parameters == [[]]


@pytest.mark.parametrize(("said", "limit"), [("", 0), ("0", 0), ("123", 123), ("x", 0), ("9" * 30, 0), ("²", 0)])
def test_size_is_read_with_care(said: str, limit: int) -> None:
    assert Offers.of({"size": said}).size == limit
    assert Offers.of({}).size is None


@settings(deadline=None)
@given(
    st.text(max_size=30),
    st.lists(st.text(max_size=30), min_size=1, max_size=4),
    st.text(max_size=10),
    st.text(max_size=10),
    st.booleans(),
)
def test_no_input_makes_more_than_its_commands(
    sender: str, addresses: list[str], envid: str, orcpt: str, offered: bool
) -> None:
    """Whatever slipped through intake: one line for each command, and each path is closed where it should be."""
    recipients = [Recipient(address, orcpt=orcpt) for address in addresses]
    made = plan(
        outgoing(*recipients, envelope=Envelope(sender, envid=envid, smtputf8=True)),
        ALL if offered else NONE,
        eight_bit=False,
    )
    for command in (made.mail, *made.rcpts):
        if command:
            assert command.endswith(b"\r\n")
            assert not any(octet < 0x20 or octet == 0x7F for octet in command[:-2])
    assert len(made.rcpts) + len(made.refused) == len(recipients)
    assert sorted([*made.places, *made.refused]) == list(range(len(recipients)))


@pytest.mark.parametrize("place", [None, 0, BIG - 1, BIG, 2 * BIG, 2 * BIG + 7])
async def test_a_big_content_is_looked_at_in_steps(place: int | None) -> None:
    content = bytearray(b"x" * (2 * BIG + 8))
    if place is not None:
        content[place] = 0xE4
    looking = asyncio.create_task(is_eight_bit(bytes(content)))
    turns = 0
    while not looking.done():
        turns += 1
        await asyncio.sleep(0)
    assert looking.result() is (place is not None)
    assert place is not None or turns >= 3


@pytest.mark.parametrize("end", [b"", "schön\r\n".encode()])
async def test_a_big_mail_is_announced_as_what_it_is(end: bytes) -> None:
    content = b"Subject: x\r\n\r\n" + b"A line of the text.\r\n" * 60_000 + end
    assert len(content) > BIG
    async with FakeUpstream() as upstream:
        assert kinds(await send(upstream, outgoing(content=content))) == ["delivered"]
        (said,) = (command for command in upstream.commands if command.startswith("MAIL"))
        assert ("BODY=8BITMIME" in said) is bool(end)
