"""A real Postfix takes the mail and reports later, and a user's vacation(1) answers: what relayd makes of all that."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from tests.endtoend.client import Client, id_of, mail
from tests.support import postfix as postfix_support
from tests.support.daemon import Daemon, local
from tests.support.remote_postfix import (
    AWAY,
    BIG,
    DEAD,
    FULL,
    HERE,
    NEXT_SIZE,
    NOBODY,
    ONWARD,
    VACATION,
    RemotePostfix,
)

DOMAIN = "bounce.example.com"
VERP, KEPT = "app@verp.example.com", "app@example.com"
"""Senders: one whose mail leaves with our return paths, one whose reports come to the domain's postmaster."""


class Fate(NamedTuple):
    """What becomes of the mail to an address, as `relayd message show` and `relayd why` tell it."""

    event: str
    cls: str
    action: str
    words: str
    """In the reply."""
    sentence: str
    """How what `why` says begins."""
    options: str = ""
    size: int = 0


FATES = {
    NOBODY: Fate("bounced", "user-unknown", "failed", "5.1.1 unknown user", "There is no such mailbox."),
    FULL: Fate("bounced", "mailbox-full", "failed", "5.2.2", "The mailbox is full.", size=1000),
    BIG: Fate(
        "bounced", "message-too-big", "failed", "5.3.4 message size", "The mail is too large", size=NEXT_SIZE * 2
    ),
    DEAD: Fate("bounced", "network-error", "failed", "4.4.1 connect to", "The recipient's server could not be reached"),
    HERE: Fate(
        "confirmed", "delivered", "delivered", "to mailbox", "The recipient's system confirmed", " NOTIFY=SUCCESS"
    ),
    ONWARD: Fate("confirmed", "delivered", "relayed", "2.0.0 Kept", "The receiving side passed", " NOTIFY=SUCCESS"),
}


@pytest.fixture
def remote() -> Iterator[RemotePostfix]:
    """Not started yet: first it must know where relayd takes reports."""
    reason = postfix_support.why_not()
    if reason:
        pytest.skip(reason)
    yield RemotePostfix(DOMAIN, KEPT)


def returning(remote: RemotePostfix) -> dict[str, Any]:
    """Two ways to the same mail server: with return paths of ours, and with the sender's own."""
    way = {"host": "127.0.0.1", "port": remote.port, "tls": "none"}
    return {
        "listeners": [local(), {"name": "mx", "role": "inbound", "bind": ["127.0.0.1:0"], "tls": "none"}],
        "upstreams": {"verp": way | {"return_path": "verp"}, "keep": way | {"return_path": "keep"}},
        "routes": [{"match": {"sender_domain": "verp.example.com"}, "upstream": "verp"}, {"upstream": "keep"}],
        "bounces": {"notify": "none", "domain": DOMAIN},
        "blocks": {"rules": {"mailbox-full": {"after": 2}}},
    }


async def send(daemon: Daemon, sender: str, recipient: str, *, size: int = 0, options: str = "") -> str:
    """One mail; its id."""
    async with Client(daemon.port) as client:
        for command in (f"MAIL FROM:<{sender}>", f"RCPT TO:<{recipient}>{options}", "DATA"):
            answer = await client.say(command)
            assert answer[0] in (250, 354), answer
        subject = f"{sender}-{recipient}".replace("@", "-at-")
        content = mail(subject, sender, size=size).replace(b"someone@example.org", recipient.encode())
        client.writer.write(content + b".\r\n")
        return id_of(await client.reply())


async def came_true(daemon: Daemon, ids: list[str], recipient: str, fate: Fate) -> None:
    """Wait for the reports about the mails to an address, and see what relayd made of them."""
    for number in ids:
        event = await daemon.wait_for_event(fate.event, id=number, recipient=recipient)
        assert (event["class"], event["action"]) == (fate.cls, fate.action), event
        assert event["source"] == ("bounce" if fate.action == "failed" else "delivery-report")
        assert fate.words in event["reply"]
    told = (await daemon.cli("why", recipient, "--json")).json["mails"]
    assert sorted(each["id"] for each in told) == sorted(ids)
    for each in told:
        assert each["state"] == ("bounced" if fate.action == "failed" else "delivered")
        assert each["class"] == fate.cls
        assert each["sentence_en"].startswith(fate.sentence), each["sentence_en"]
        assert each["sentence_ja"]


@pytest.mark.skipif(VACATION is None, reason="vacation is not installed (scripts/test installs it as root)")
async def test_what_postfix_and_vacation_report(make_daemon: Any, remote: RemotePostfix) -> None:
    daemon: Daemon = make_daemon(returning(remote))
    await daemon.start()
    remote.returns = daemon.port_of("mx")
    with remote:
        away = await send(daemon, VERP, AWAY)
        sent = {
            (sender, recipient): await send(daemon, sender, recipient, size=fate.size, options=fate.options)
            for sender in (VERP, KEPT)
            for recipient, fate in FATES.items()
        }
        await daemon.until(lambda: remote.mailbox(AWAY).exists(), "the mail is in the mailbox")
        answer = f"From: Away <{AWAY}>\nSubject: Away from my mail\n\nI am back on Monday.\n"
        await asyncio.to_thread(remote.answer_automatically, AWAY, answer)
        replied = await daemon.wait_for_event("replied", id=away)
        assert (replied["class"], replied["source"]) == ("vacation", "auto-reply")
        assert replied["reply"] == "I am back on Monday."
        for recipient, fate in FATES.items():
            await came_true(daemon, [sent[sender, recipient] for sender in (VERP, KEPT)], recipient, fate)
        for sender in (VERP, KEPT):  # late before it was given up
            late = daemon.events("postponed", id=sent[sender, DEAD])
            assert [(event["class"], event["action"]) for event in late] == [("network-error", "delayed")]
        # the block that comes last: behind the second failure of its kind
        await daemon.wait_for_log("address blocked", **{"class": "mailbox-full"})
        blocks = (await daemon.cli("block", "list", "--json")).json
        assert {block["address"]: block["class"] for block in blocks} == {
            NOBODY: "user-unknown",
            FULL: "mailbox-full",
        }
        figures = (await daemon.cli("stats", "--by", "upstream", "--json")).json["lines"]
        assert {each["upstream"]: (each["accepted"], each["delivered"], each["bounced"]) for each in figures} == {
            "verp": (7, 3, 4),
            "keep": (6, 2, 4),
        }, "bounces correct the figures"
        stopped = await send(daemon, VERP, NOBODY)
        assert (await daemon.wait_for_event("suppressed", id=stopped))["class"] == "user-unknown"
        assert (await daemon.cli("inbound", "list", "--json")).json == [], "nothing was left unmatched"
    assert await daemon.stop() == 0
    assert daemon.audit().clean
