"""relayd sandbox: the mail that was kept instead of being sent."""

from __future__ import annotations

import asyncio
import contextlib
import mailbox
import subprocess
import sys

import pytest

from relayd.core.mail import Envelope, Recipient
from relayd.core.session import Outgoing
from relayd.delivery.sandbox import SandboxConnector
from tests.cli.conftest import Site, now_ms
from tests.support.mail import CONTENT


@pytest.fixture
def kept(site: Site) -> Site:
    """Two mails in the sandbox."""

    async def send() -> None:
        session = await SandboxConnector("sandbox", site.data / "sandbox.db", now_ms).open()
        for name in ("0akx8xt2m0000", "0akx8xt2m0001"):
            outgoing = Outgoing(name, Envelope("a\x1b@example.com"), (Recipient("b@example.org"),), CONTENT)
            await session.send(outgoing)
        await session.close()

    site.data.mkdir()
    asyncio.run(send())
    return site


def test_the_newest_mail_is_listed_first(kept: Site) -> None:
    found = kept.run("sandbox", "list", "--json").json
    assert [entry["message"] for entry in found] == ["0akx8xt2m0001", "0akx8xt2m0000"]
    assert found[0]["subject"] == "Your order"
    assert found[0]["recipients"] == ["b@example.org"]
    done = kept.run("sandbox", "list", "--limit", "1")
    assert "0akx8xt2m0001" in done.out
    assert "0akx8xt2m0000" not in done.out
    assert "\x1b" not in done.out


@pytest.mark.parametrize("key", ["1", "0akx8xt2m0000", "0AKX8XT2M0000"])
def test_a_mail_is_found_by_number_and_by_message_id(kept: Site, key: str) -> None:
    done = kept.run("sandbox", "show", key)
    assert done.code == 0
    assert "Thank you." in done.out
    assert "\x1b" not in done.out
    assert kept.run("sandbox", "show", key, "--json").json["content"] == CONTENT.decode()


def test_the_content_reaches_a_file_as_it_is(kept: Site) -> None:
    command = [sys.executable, "-m", "relayd", "-c", str(kept.config), "sandbox", "show", "1", "--content"]
    assert subprocess.run(command, capture_output=True, check=True).stdout == CONTENT


def test_export_to_eml_and_mbox(kept: Site) -> None:
    folder = kept.directory / "out"
    assert kept.run("sandbox", "export", str(folder)).code == 0
    assert sorted(path.read_bytes() for path in folder.iterdir()) == [CONTENT, CONTENT]
    file = kept.directory / "all.mbox"
    done = kept.run("sandbox", "export", str(file), "--format", "mbox")
    assert "2 mails written" in done.out
    with contextlib.closing(mailbox.mbox(file)) as box:
        assert [mail["subject"] for mail in box] == ["Your order", "Your order"]


def test_clear_asks_and_forgets(kept: Site) -> None:
    assert kept.run("sandbox", "clear").code == 2
    assert len(kept.run("sandbox", "list", "--json").json) == 2
    assert "2 mails forgotten" in kept.run("sandbox", "clear", "--yes").out
    assert kept.run("sandbox", "list", "--json").json == []


def test_a_sandbox_that_was_never_used(site: Site) -> None:
    assert site.run("sandbox", "list").out == "The sandbox has no mail.\n"
    assert site.run("sandbox", "list", "--json").json == []
    assert site.run("sandbox", "show", "1").code == 1
    assert site.run("sandbox", "clear", "--yes").code == 0


def test_no_such_mail(kept: Site) -> None:
    done = kept.run("sandbox", "show", "77")
    assert done.code == 1
    assert "no mail 77" in done.err
