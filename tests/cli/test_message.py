"""relayd message show: the whole history, and the kept mail itself, octet for octet."""

from __future__ import annotations

import subprocess
import sys

import pytest

from relayd.core.event import Event, EventKind
from relayd.core.ids import format_id
from relayd.spool.sqlite import SqliteStore
from relayd.spool.store import Change, Settlement
from tests.cli.conftest import Site, now_ms, put, wait_for
from tests.support.mail import CONTENT


def test_the_history_tells_every_reply_and_the_failed_dialogue(spool: Site) -> None:
    done = spool.run("message", "show", spool.ids["late"])
    assert done.code == 0
    assert "450 4.2.0 Greylisted" in done.out
    assert "> RCPT TO:<greylisted@example.org>" in done.out
    assert "accepted" in done.out
    assert "deferred" in done.out
    assert "logged in as shop" in done.out


def test_trouble_of_the_upstream_is_told_in_words(site: Site) -> None:
    async def trouble(store: SqliteStore) -> None:
        waiting = wait_for(0, "a@example.org")
        message = await put(store, waiting)
        site.ids["stuck"] = format_id(message.id)
        reply = "535 5.7.8 Wrong password"
        event = Event(
            now_ms(),
            message.id,
            0,
            EventKind.DEFERRED,
            "a@example.org",
            message.envelope.sender,
            {"upstream": "acme", "reply": reply, "due": now_ms(), "upstream_trouble": True},
        )
        await store.settle(Settlement(message.id, (Change(waiting, event),)))

    site.fill(trouble)
    out = site.run("message", "show", site.ids["stuck"]).out
    assert "by acme (535 5.7.8 Wrong password) (the upstream's own trouble, no attempt counted) next try" in out
    assert "True" not in out


def test_every_recipient_has_its_own_outcome(spool: Site) -> None:
    found = spool.run("message", "show", spool.ids["mixed"], "--json").json
    assert [(each["recipient"], each["state"]) for each in found["recipients"]] == [
        ("good@example.org", "delivered"),
        ("bad@example.org", "bounced"),
    ]
    assert [each["recipients"] for each in found["attempts"]] == [["good@example.org"], ["bad@example.org"]]
    assert found["events"][0]["event"] == "accepted"
    assert found["origin"]["credential"] == "shop"
    assert found["sender"] == "info@example.co.jp"


def test_japanese_is_shown_as_it_is(spool: Site) -> None:
    assert "日本語の件名" in spool.run("message", "show", spool.ids["fresh"]).out


@pytest.mark.parametrize(
    ("option", "expected"), [("--content", CONTENT), ("--headers", CONTENT.partition(b"\r\n\r\n")[0])]
)
def test_the_kept_mail_reaches_a_file_as_it_is(spool: Site, option: str, expected: bytes) -> None:
    command = [sys.executable, "-m", "relayd", "-c", str(spool.config), "message", "show", spool.ids["fresh"], option]
    done = subprocess.run(command, capture_output=True, check=True)
    assert done.stdout.removesuffix(b"\r\n") == expected.removesuffix(b"\r\n")
    assert done.stderr == b""


def test_a_mail_of_any_octets_survives_the_command(site: Site) -> None:
    content = bytes(range(256)) + b"\r\n"
    ids = []

    async def one(store: SqliteStore) -> None:
        ids.append(format_id((await put(store, wait_for(0, "a@b.example"), content=content)).id))

    site.fill(one)
    command = [sys.executable, "-m", "relayd", "-c", str(site.config), "message", "show", ids[0], "--content"]
    assert subprocess.run(command, capture_output=True, check=True).stdout == content


@pytest.mark.parametrize("message", ["0000000000000", "7zzzzzzzzzzzz"])
def test_an_unknown_message(spool: Site, message: str) -> None:
    done = spool.run("message", "show", message)
    assert (done.code, done.out) == (1, "")
    assert "no message" in done.err


def test_what_is_no_id(spool: Site) -> None:
    done = spool.run("message", "show", "4F2A1\x1b[2J")
    assert done.code == 2
    assert "is not a message id" in done.err
    assert "\x1b" not in done.err
