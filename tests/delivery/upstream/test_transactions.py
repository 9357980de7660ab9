"""What each reply, drop and silence in a transaction means for each recipient, pipelined and step by step."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from relayd.core.lifecycle import Stage
from tests.delivery.upstream.helpers import kinds, outgoing, send, session, short
from tests.support.fake_upstream import (
    DROP,
    EXTENSIONS,
    RESET,
    SILENCE,
    STALL,
    Action,
    Drop,
    FakeUpstream,
    Script,
    Split,
)

PLAIN = tuple(word for word in EXTENSIONS if word != "PIPELINING")
BOTH = pytest.mark.parametrize("extensions", [EXTENSIONS, PLAIN], ids=["pipelined", "stepwise"])
GARBAGE = b"hello there\r\n"
ENDLESS_LINE = b"250 " + b"x" * 9000
ENDLESS_REPLY = b"250-more\r\n" * 300
MIXED = b"250-one\r\n251 two\r\n"
ONE_YZ = b"150 soon\r\n"


@BOTH
async def test_a_taken_mail_is_delivered_as_it_is(extensions: tuple[str, ...]) -> None:
    content = b"Subject: dots\r\n\r\n.\r\n..\r\n.leading\r\nend\r\n"
    async with FakeUpstream(extensions=extensions) as upstream:
        sent = await send(upstream, outgoing("b@example.net", "c@example.net", content=content))
        assert kinds(sent) == ["delivered", "delivered"]
        assert (sent.stage, sent.reply, sent.transcript) == (Stage.DOT, "250 2.0.0 taken", None)
        [mail] = upstream.mails
        assert (mail.sender, mail.recipients, mail.content) == (
            "a@example.com",
            ["b@example.net", "c@example.net"],
            content,
        )


CASES: list[tuple[str, Action, str, Stage]] = [
    ("MAIL", "450 4.3.1 later", "deferred", Stage.MAIL),
    ("MAIL", "530 5.7.0 who are you", "trouble", Stage.MAIL),
    ("MAIL", "550 5.7.1 not you", "trouble", Stage.MAIL),
    ("MAIL", DROP, "deferred", Stage.MAIL),
    ("MAIL", RESET, "deferred", Stage.MAIL),
    ("MAIL", SILENCE, "deferred", Stage.MAIL),
    ("MAIL", GARBAGE, "deferred", Stage.MAIL),
    ("MAIL", "354 what", "deferred", Stage.MAIL),
    ("RCPT", "450 4.2.1 later", "deferred", Stage.RCPT),
    ("RCPT", "550 5.1.1 nobody", "rejected", Stage.RCPT),
    ("RCPT", "421 4.3.2 going down", "deferred", Stage.RCPT),
    ("RCPT", DROP, "deferred", Stage.RCPT),
    ("RCPT", RESET, "deferred", Stage.RCPT),
    ("RCPT", SILENCE, "deferred", Stage.RCPT),
    ("RCPT", GARBAGE, "deferred", Stage.RCPT),
    ("RCPT", ENDLESS_LINE, "deferred", Stage.RCPT),
    ("RCPT", ENDLESS_REPLY, "deferred", Stage.RCPT),
    ("RCPT", MIXED, "deferred", Stage.RCPT),
    ("RCPT", ONE_YZ, "deferred", Stage.RCPT),
    ("RCPT", "354 what", "deferred", Stage.RCPT),
    ("DATA", b"354 go ahead\r\n421 4.3.2 going down\r\n", "deferred", Stage.DATA),
    ("DATA", b"354 go ahead\r\n" + GARBAGE, "deferred", Stage.DATA),
    ("DATA", "451 4.3.0 later", "deferred", Stage.DATA),
    ("DATA", "554 5.6.0 no", "rejected", Stage.DATA),
    ("DATA", "250 what", "deferred", Stage.DATA),
    ("DATA", "421 4.3.2 going down", "deferred", Stage.DATA),
    ("DATA", DROP, "deferred", Stage.DATA),
    ("DATA", SILENCE, "deferred", Stage.DATA),
    ("DATA", GARBAGE, "deferred", Stage.DATA),
    ("DOT", "451 4.3.0 later", "deferred", Stage.DOT),
    ("DOT", "554 5.6.0 no", "rejected", Stage.DOT),
    ("DOT", "421 4.3.2 going down", "deferred", Stage.DOT),
    ("DOT", DROP, "uncertain", Stage.DOT),
    ("DOT", RESET, "uncertain", Stage.DOT),
    ("DOT", SILENCE, "uncertain", Stage.DOT),
    ("DOT", GARBAGE, "uncertain", Stage.DOT),
    ("DOT", ENDLESS_LINE, "uncertain", Stage.DOT),
    ("DOT", MIXED, "uncertain", Stage.DOT),
    ("DOT", "354 what", "uncertain", Stage.DOT),
    ("content", DROP, "uncertain", Stage.DOT),
    ("DOT", Split("250-2.0.0 well\n2.0.0 taken"), "delivered", Stage.DOT),
    ("MAIL", Split("250 fine"), "delivered", Stage.DOT),
]


@BOTH
@pytest.mark.parametrize(("step", "action", "kind", "stage"), CASES)
async def test_each_failure_has_its_outcome(
    extensions: tuple[str, ...], step: str, action: Action, kind: str, stage: Stage
) -> None:
    timeouts = short("dot" if step == "DOT" else "command", silent=action == SILENCE)
    async with (
        FakeUpstream({step: action}, extensions=extensions) as upstream,
        session(upstream, timeouts=timeouts) as opened,
    ):
        sent = await opened.send(outgoing("b@example.net", "c@example.net"))
        assert kinds(sent) == [kind, kind]
        assert sent.stage is stage
        assert {outcome.stage for outcome in sent.outcomes} == {stage}
        assert (sent.transcript is None) == (kind == "delivered")
        assert opened.usable == goes_on(action)


def goes_on(action: Action) -> bool:
    """A session outlives a plain refusal or a reply in pieces, and nothing else of these."""
    return isinstance(action, Split) or (isinstance(action, str) and action[:3] not in ("421", "354", "250"))


@BOTH
async def test_recipients_have_each_their_own_outcome(extensions: tuple[str, ...]) -> None:
    script: Script = {"RCPT": [None, "550 5.1.1 nobody", "450 4.2.1 later", "251 2.1.5 forwarded"]}
    async with FakeUpstream(script, extensions=extensions) as upstream, session(upstream) as opened:
        sent = await opened.send(outgoing(*(f"r{n}@example.net" for n in range(4))))
        assert kinds(sent) == ["delivered", "rejected", "deferred", "delivered"]
        assert upstream.accepted[0].recipients == ["r0@example.net", "r3@example.net"]
        assert sent.stage is Stage.DOT
        assert sent.transcript is not None
        assert opened.usable


@BOTH
async def test_a_refusal_after_a_refused_recipient_leaves_that_one_its_own(extensions: tuple[str, ...]) -> None:
    script: Script = {"RCPT": ["550 5.1.1 nobody", None], "DOT": "451 4.3.0 later"}
    async with FakeUpstream(script, extensions=extensions) as upstream:
        sent = await send(upstream, outgoing("b@example.net", "c@example.net"))
        assert kinds(sent) == ["rejected", "deferred"]
        assert sent.reply == "451 4.3.0 later"


@BOTH
async def test_421_in_the_middle_defers_the_rest_and_keeps_what_was_refused(extensions: tuple[str, ...]) -> None:
    script: Script = {"RCPT": ["550 5.1.1 nobody", None, Drop("421 4.3.2 going down")]}
    async with FakeUpstream(script, extensions=extensions) as upstream, session(upstream) as opened:
        sent = await opened.send(outgoing(*(f"r{n}@example.net" for n in range(5))))
        assert kinds(sent) == ["rejected", *["deferred"] * 4]
        assert {outcome.reply.code for outcome in sent.outcomes[1:]} == {421}
        assert not opened.usable


@BOTH
async def test_a_refused_mail_leaves_a_session_that_takes_the_next(extensions: tuple[str, ...]) -> None:
    async with FakeUpstream(extensions=extensions) as upstream, session(upstream) as opened:
        for step in ("MAIL", "RCPT", "DATA", "DOT"):
            upstream.script[step] = ["450 4.3.1 later"]
            sent = await opened.send(outgoing())
            # pipelined, the refused MAIL is followed by RCPT and DATA, which are answered too
            assert (kinds(sent), sent.stage.value) == (["deferred"], step.lower())
            assert kinds(await opened.send(outgoing())) == ["delivered"]
        assert opened.usable
        assert upstream.connections == 1
        assert len(upstream.accepted) == 4


async def test_354_without_recipients_is_ended_by_an_empty_message() -> None:
    """RFC 2920 3.1: the upstream that takes DATA all the same gets neither the content nor a command as content."""
    script: Script = {"RCPT": ["550 5.1.1 nobody", "550 5.1.1 nobody"], "DOT": ["554 5.5.1 no valid recipients"]}
    async with FakeUpstream(script, data_without_recipients=True) as upstream, session(upstream) as opened:
        sent = await opened.send(outgoing("b@example.net", "c@example.net"))
        assert kinds(sent) == ["rejected", "rejected"]
        assert [mail.content for mail in upstream.mails] == [b""]
        assert kinds(await opened.send(outgoing())) == ["delivered"]


async def test_354_after_a_refused_sender_sends_no_content() -> None:
    script: Script = {"MAIL": ["550 5.7.1 not you"], "RCPT": ["250 ok"], "DATA": ["354 go"], "DOT": ["250 taken"]}
    async with FakeUpstream(script) as upstream, session(upstream) as opened:
        sent = await opened.send(outgoing())
        assert kinds(sent) == ["trouble"]
        assert [mail.content for mail in upstream.mails] == [b""]


@BOTH
async def test_a_thousand_recipients_neither_block_nor_mix(extensions: tuple[str, ...]) -> None:
    refusals: list[Action | None] = ["550 5.1.1 " + "x" * 500 if n % 3 == 0 else None for n in range(1000)]
    async with FakeUpstream({"RCPT": refusals}, extensions=extensions) as upstream:
        long = "r" * 60
        sent = await send(upstream, outgoing(*(f"{long}{n:04}@example.net" for n in range(1000))))
        assert kinds(sent) == ["rejected" if n % 3 == 0 else "delivered" for n in range(1000)]
        assert len(upstream.accepted[0].recipients) == 666
        assert sent.transcript is not None
        assert len(sent.transcript) <= 32 * 1024


@pytest.mark.parametrize("more", [b"250 and more\r\n", b"25", b"250-and\r\n"])
async def test_a_reply_before_its_command_ends_the_session(more: bytes) -> None:
    async with FakeUpstream({"DOT": b"250 taken\r\n" + more}) as upstream, session(upstream) as opened:
        assert kinds(await opened.send(outgoing())) == ["delivered"]
        assert not opened.usable


async def test_a_reply_to_the_dot_before_the_content_is_not_believed() -> None:
    async with (
        FakeUpstream({"DATA": b"354 go\r\n250 2.0.0 taken already\r\n"}) as upstream,
        session(upstream) as opened,
    ):
        sent = await opened.send(outgoing())
        assert kinds(sent) == ["deferred"]
        assert not opened.usable
        assert upstream.mails == []


async def test_an_idle_goodbye_makes_the_session_unusable() -> None:
    script: Script = {"DOT": b"250 taken\r\n421 4.4.2 idle too long\r\n"}
    async with FakeUpstream(script) as upstream, session(upstream) as opened:
        assert kinds(await opened.send(outgoing())) == ["delivered"]
        assert not opened.usable
        assert not await opened.probe()


async def test_probe_tells_a_live_session_from_a_dead_one() -> None:
    async with FakeUpstream({"RSET": [None, DROP]}) as upstream, session(upstream) as opened:
        assert await opened.probe()
        assert opened.usable
        assert not await opened.probe()
        assert not opened.usable


async def test_sessions_end_after_messages_per_connection() -> None:
    async with FakeUpstream() as upstream, session(upstream, limits={"messages_per_connection": 2}) as opened:
        await opened.send(outgoing())
        assert opened.usable
        await opened.send(outgoing())
        assert opened.sent == 2
        assert not opened.usable


async def test_close_says_quit_and_survives_a_dead_peer() -> None:
    async with FakeUpstream() as upstream:
        async with session(upstream):
            pass
        assert upstream.commands[-1] == "QUIT"
    async with FakeUpstream({"QUIT": DROP}) as upstream:
        async with session(upstream) as opened:
            pass
        await opened.close()


async def test_cancellation_closes_the_session() -> None:
    async with FakeUpstream({"DOT": SILENCE}) as upstream, session(upstream) as opened:
        task = asyncio.create_task(opened.send(outgoing()))
        await upstream.silent.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not opened.usable
        assert opened.in_doubt is not None and kinds(opened.in_doubt) == ["uncertain"]


async def test_cancellation_ahead_of_the_dot_leaves_nothing_in_doubt() -> None:
    script = {"MAIL": SILENCE}
    async with FakeUpstream(script) as upstream, session(upstream) as opened:
        task = asyncio.create_task(opened.send(outgoing()))
        await upstream.silent.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not opened.usable and opened.in_doubt is None


async def test_of_a_cancelled_mail_only_what_was_taken_at_rcpt_is_in_doubt() -> None:
    script = {"RCPT": ["550 5.1.1 nobody", None], "DOT": SILENCE}
    async with FakeUpstream(script) as upstream, session(upstream) as opened:
        task = asyncio.create_task(opened.send(outgoing("no@example.net", "yes@example.net")))
        await upstream.silent.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert opened.in_doubt is not None and kinds(opened.in_doubt) == ["rejected", "uncertain"]


BIG = b"Subject: big\r\n\r\n" + b".dot\r\nx" * 700_000 + b"\r\n"


@pytest.mark.parametrize("tls", ["none", "starttls"])
async def test_a_big_mail_arrives_octet_for_octet(tls: str) -> None:
    async with FakeUpstream(tls=tls) as upstream:  # type: ignore[arg-type]
        sent = await send(upstream, outgoing(content=BIG))
        assert kinds(sent) == ["delivered"]
        assert upstream.mails[0].content == BIG


@pytest.mark.parametrize("content", [b"", b".\r\n", BIG[15:], b"x" * (1 << 16) + b"\r\n"])
async def test_what_goes_in_front_of_a_content_arrives_in_front_of_it(content: bytes) -> None:
    front = b"DKIM-Signature: v=1;\r\n\tb=\r\nX-Two: 2\r\n"
    whole = front + b"\r\n" + content
    async with FakeUpstream(extensions=(*EXTENSIONS, f"SIZE {len(whole)}")) as upstream:
        sent = await send(upstream, replace(outgoing(content=b"\r\n" + content), front=front))
        assert kinds(sent) == ["delivered"]
        assert upstream.mails[0].content == whole
        assert f"SIZE={len(whole)}" in upstream.mails[0].sender_parameters
    async with FakeUpstream(extensions=(*EXTENSIONS, f"SIZE {len(whole) - 1}")) as upstream:
        sent = await send(upstream, replace(outgoing(content=b"\r\n" + content), front=front))
        assert kinds(sent) == ["rejected"]


async def test_a_peer_that_stops_reading_content_defers() -> None:
    """The dot cannot have left: this is no uncertainty."""
    async with FakeUpstream({"content": STALL}) as upstream, session(upstream, timeouts=short("data")) as opened:
        sent = await opened.send(outgoing(content=BIG * 3))
        assert kinds(sent) == ["deferred"]
        assert sent.stage is Stage.DATA
        assert not opened.usable


async def test_a_refusal_in_the_middle_of_content_counts() -> None:
    async with FakeUpstream({"content": Drop("552 5.3.4 too much")}) as upstream, session(upstream) as opened:
        sent = await opened.send(outgoing(content=BIG * 3))
        assert sent.outcomes[0].kind.value in ("rejected", "deferred")
        assert sent.stage is Stage.DATA
        assert not opened.usable


async def test_a_drop_in_the_middle_of_content_defers() -> None:
    async with FakeUpstream({"content": DROP}) as upstream, session(upstream) as opened:
        sent = await opened.send(outgoing(content=BIG * 3))
        assert kinds(sent) == ["deferred"]
        assert sent.stage is Stage.DATA
        assert not opened.usable


async def test_many_sessions_at_once_keep_their_mails_apart() -> None:
    async with FakeUpstream() as upstream:

        async def one(n: int) -> None:
            async with session(upstream) as opened:
                for m in range(5):
                    sent = await opened.send(outgoing(content=b"Subject: %d-%d\r\n\r\n" % (n, m)))
                    assert kinds(sent) == ["delivered"]

        await asyncio.gather(*(one(n) for n in range(10)))
        assert len({mail.content for mail in upstream.accepted}) == 50
