"""Bounces in a mailbox, with a real Dovecot: each is handled once, however the mailbox is reached or broken off."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from pydantic import SecretStr

from relayd.config.models import Mailbox
from relayd.core.feedback import Applied, FeedbackKind
from relayd.inbound.mailboxes import LEASE, Mailboxes
from relayd.spool.state import StateDB
from tests.endtoend.client import mail, send_one
from tests.endtoend.conftest import MakeDaemon
from tests.inbound.test_daemon import SENDER, metrics
from tests.support import dovecot as dovecot_support
from tests.support.bounces import letter, report
from tests.support.clock import Clock
from tests.support.daemon import Daemon, Secret, local
from tests.support.dovecot import PASSWORD, USERNAME, Dovecot
from tests.support.fake_upstream import authority, ca_file

pytestmark = pytest.mark.skipif(dovecot_support.PROGRAM is None, reason="Dovecot is not installed")


@pytest.fixture
def dovecot() -> Iterator[Dovecot]:
    with Dovecot(authority()) as running:
        yield running


def reading(dovecot: Dovecot, **others: Any) -> dict[str, Any]:
    """A daemon that reads the mailbox once an hour, or as IDLE tells."""
    mailbox = {
        "name": "returns",
        "host": "localhost",
        "port": dovecot.imaps,
        "ca_file": str(ca_file()),
        "username": USERNAME,
        "password": Secret(PASSWORD),
        "poll": "1h",
    }
    settings = {"listeners": [local()], "web": {"bind": ["127.0.0.1:0"]}}
    return settings | {"bounces": {"notify": "none", "mailboxes": [mailbox | others.pop("mailbox", {})]}} | others


async def sent(daemon: Daemon, subject: str) -> str:
    """One mail that was delivered, to SUBJECT@example.org."""
    number = await send_one(daemon.port, SENDER, f"{subject}@example.org", content=mail(subject))
    await daemon.wait_for_event("delivered", id=number)
    return number


def bounce(subject: str) -> bytes:
    return report(f"{subject}@example.org", original=mail(subject), message_id=f"<report-{subject}@mx.example.org>")


async def test_what_lies_there_and_what_comes_is_read_once(make_daemon: MakeDaemon, dovecot: Dovecot) -> None:
    daemon = make_daemon(reading(dovecot))
    dovecot.put(letter(to=USERNAME))
    await daemon.start()
    await daemon.wait_for_event("delivered", upstream="@inbound")
    number = await sent(daemon, "hello")
    dovecot.put(bounce("hello"))  # IDLE tells: the next look by itself is in an hour
    assert (await daemon.wait_for_event("bounced", id=number))["class"] == "user-unknown"
    await daemon.until(lambda: [flag for flag in dovecot.flags() if "Seen" not in flag] == [], "all are marked")
    found = await metrics(daemon)
    assert found['relayd_mailbox_fetched_total{mailbox="returns"}'] == 2
    assert (await daemon.cli("inbound", "list", "--json")).json[0]["subject"] == "A question"

    await daemon.restart()
    another = await sent(daemon, "another")
    dovecot.put(bounce("another"))
    await daemon.wait_for_event("bounced", id=another)
    assert (await metrics(daemon))['relayd_mailbox_fetched_total{mailbox="returns"}'] == 1
    assert PASSWORD not in daemon.everything_said()


@pytest.mark.parametrize("capabilities", [None, "IMAP4rev1 UIDPLUS", "IMAP4rev1"])
async def test_it_moves_what_it_has_read(make_daemon: MakeDaemon, capabilities: str | None) -> None:
    """Over STARTTLS; with MOVE and without, with IDLE and without."""
    with Dovecot(authority(), capabilities=capabilities) as dovecot:
        mailbox = {"port": dovecot.imap, "tls": "starttls", "done_folder": "Done & 済み", "poll": "1s"}
        daemon = make_daemon(reading(dovecot, mailbox=mailbox))
        await daemon.start()
        number = await sent(daemon, "hello")
        dovecot.put(bounce("hello"))
        await daemon.wait_for_event("bounced", id=number)
        await daemon.until(lambda: all("Deleted" in flags for flags in dovecot.flags()), "moved")
        # without UIDPLUS the original stays, deleted: an EXPUNGE would take along what others have marked
        assert len(dovecot.flags()) == (capabilities == "IMAP4rev1")
        [flags] = dovecot.flags('"Done &- &bggwfw-"')
        assert "Seen" in flags


async def test_the_same_mails_under_new_numbers_change_nothing(make_daemon: MakeDaemon, dovecot: Dovecot) -> None:
    dovecot.recreate("Returns")
    daemon = make_daemon(reading(dovecot, mailbox={"folder": "Returns", "poll": "1s"}))
    await daemon.start()
    number = await sent(daemon, "hello")
    dovecot.put(bounce("hello"), folder="Returns")
    await daemon.wait_for_event("bounced", id=number)
    await daemon.stop()
    dovecot.recreate("Returns")
    dovecot.put(bounce("hello"), folder="Returns")
    await daemon.restart()
    await daemon.wait_for_event("delivered", upstream="@inbound")
    assert (await metrics(daemon))['relayd_inbound_facts_total{kind="bounce",result="duplicate"}'] == 1
    assert daemon.events("bounced") == []


async def test_it_comes_back_after_the_server_was_away(make_daemon: MakeDaemon, dovecot: Dovecot) -> None:
    daemon = make_daemon(reading(dovecot), constants={"relayd.inbound.mailboxes:FIRST_PAUSE": 0.1})
    await daemon.start()
    await daemon.wait_for_log("mailbox opened")
    dovecot.stop()
    await daemon.wait_for_log("mailbox cannot be read")
    number = await sent(daemon, "hello")
    dovecot.start()
    dovecot.put(bounce("hello"))
    await daemon.wait_for_event("bounced", id=number)
    assert (await metrics(daemon))['relayd_mailbox_failures_total{mailbox="returns"}'] >= 1


@pytest.mark.parametrize(
    ("mailbox", "reason"),
    [
        ({"password": Secret("wrong but secret")}, "AUTHENTICATE was refused"),
        ({"ca_file": "other-ca.pem"}, "the server's certificate is not good"),
        ({"folder": "Nowhere"}, "SELECT .* was refused"),
        ({"tls": "implicit", "port": 1}, "ConnectionRefusedError"),
    ],
    ids=["password", "certificate", "folder", "port"],
)
async def test_what_is_wrong_is_said_without_secrets(
    make_daemon: MakeDaemon, dovecot: Dovecot, mailbox: dict[str, Any], reason: str
) -> None:
    daemon = make_daemon(reading(dovecot, mailbox=mailbox))
    trustme.CA().cert_pem.write_to_path(str(daemon.directory / "other-ca.pem"))
    await daemon.start()
    line = await daemon.wait_for_log("mailbox cannot be read", mailbox="returns")
    assert re.search(reason, line["reason"]), line
    said = daemon.everything_said()
    assert PASSWORD not in said and "wrong but secret" not in said


async def test_one_worker_reads_and_another_takes_over(
    dovecot: Dovecot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers share state.db; the first one is cut off as by kill -9, without giving its lease back."""
    monkeypatch.setattr("relayd.inbound.mailboxes.RENEW", 0.1)
    clock = Clock(time.time_ns() // 1_000_000)  # it stands: nobody loses a lease because this machine is slow
    config = Mailbox(
        name="returns",
        host="localhost",
        port=dovecot.imaps,
        ca_file=ca_file(),
        username=USERNAME,
        password=SecretStr(PASSWORD),
        poll=1.0,
    )
    state = StateDB(tmp_path / "state.db")
    await state.open()
    kept: list[tuple[str, bytes]] = []
    workers = {}
    for name in ("first", "second"):

        async def keep(mailbox: str, host: str, address: str, content: bytes, name: str = name) -> int:
            kept.append((name, content))
            return len(kept)

        workers[name] = Mailboxes(state, keep, Counts(), clock)
    try:
        await workers["first"].apply([config], 86400.0)
        dovecot.put(letter(to="one"))
        await until(lambda: kept == [("first", letter(to="one"))])
        await workers["second"].apply([config], 86400.0)
        dovecot.put(letter(to="two"))
        await until(lambda: kept[1:] == [("first", letter(to="two"))])
        monkeypatch.setattr(state, "release", _keeps_its_lease)
        await workers["first"].stop()
        clock.advance(LEASE / 1000)
        dovecot.put(letter(to="three"))
        await until(lambda: kept[2:] == [("second", letter(to="three"))])
        assert len(kept) == 3
    finally:
        for worker in workers.values():
            await worker.stop()
        await state.close()


async def _keeps_its_lease(name: str, owner: str) -> None:
    """A worker that was killed gives nothing back."""


class Counts:
    """An observer that does not care."""

    def read(self, kind: str) -> None: ...
    def fact(self, kind: FeedbackKind, applied: Applied) -> None: ...
    def unmatched(self, kind: str) -> None: ...
    def filed(self) -> None: ...
    def fetched(self, mailbox: str) -> None: ...
    def mailbox_failed(self, mailbox: str) -> None: ...


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - what the condition looks at has no event of its own
            await asyncio.sleep(0.02)
