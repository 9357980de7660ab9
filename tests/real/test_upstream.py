"""Postfix as an upstream that says no: reports to the sender, deferral, and faults that are not the recipient's."""

from __future__ import annotations

import asyncio
import smtplib
import uuid
from pathlib import Path

import pytest
import trustme

from tests.real.checks import assert_signed, parsed
from tests.real.conftest import DOMAIN, SELECTORS, sections, upstream
from tests.support.capture import Captured
from tests.support.daemon import Daemon, Secret
from tests.support.dns import ZoneServer
from tests.support.postfix import BUSY, UNKNOWN, Postfix


def send(daemon: Daemon, sender: str, recipients: list[str], *, options: tuple[str, ...] = ()) -> None:
    """One mail by the local listener."""
    content = f"From: {sender}\r\nTo: list\r\nSubject: Order\r\nMessage-ID: <{uuid.uuid4()}@{DOMAIN}>\r\n\r\nHello.\r\n"
    with smtplib.SMTP("127.0.0.1", daemon.port_of("local"), timeout=30) as client:
        client.sendmail(sender, recipients, content.encode(), rcpt_options=options)


async def arrival(postfix: Postfix, recipient: str) -> Captured:
    """The mail to this recipient, once it came out behind Postfix."""
    [mail] = await asyncio.to_thread(
        postfix.capture.wait_for, lambda mail: any(f"<{recipient}>" in rcpt for rcpt in mail.rcpts)
    )
    return mail


async def test_each_recipient_has_its_own_fate(
    tmp_path: Path, postfix: Postfix, ca: trustme.CA, dns: ZoneServer
) -> None:
    sender, good = f"{uuid.uuid4()}@{DOMAIN}", f"{uuid.uuid4()}@example.org"
    async with Daemon(tmp_path, sections(tmp_path, postfix, ca) | {"retry": {"schedule": "1h*"}}) as daemon:
        await asyncio.to_thread(send, daemon, sender, [good, UNKNOWN, BUSY])
        await daemon.wait_for_event("delivered", recipient=good)
        bounced = await daemon.wait_for_event("bounced", recipient=UNKNOWN)
        assert bounced["class"] == "user-unknown"
        deferred = await daemon.wait_for_event("deferred", recipient=BUSY)
        assert "450 4.2.1" in deferred["reply"]
        # the report goes the same way, to the sender
        report = await arrival(postfix, sender)
        assert report.mail.startswith("<>")
        message = parsed(report.content)
        assert message.get_content_type() == "multipart/report"
        assert message["Auto-Submitted"] == "auto-replied"
        parts = list(message.iter_parts())
        status = parts[1].as_string()
        assert f"Final-Recipient: rfc822; {UNKNOWN}" in status
        assert "Status: 5.1.1" in status
        assert "Remote-MTA: dns; localhost" in status
        assert good not in status
        assert BUSY not in status
        assert parts[2].get_content_type() == "message/rfc822"
        assert daemon.audit().clean


async def test_success_is_reported_by_the_upstream_that_knows_dsn(
    tmp_path: Path, postfix: Postfix, ca: trustme.CA
) -> None:
    sender, good = f"{uuid.uuid4()}@{DOMAIN}", f"{uuid.uuid4()}@example.org"
    async with Daemon(tmp_path, sections(tmp_path, postfix, ca)) as daemon:
        await asyncio.to_thread(
            send, daemon, sender, [good], options=("NOTIFY=SUCCESS,FAILURE", f"ORCPT=rfc822;Original+2B{good}")
        )
        await daemon.wait_for_event("delivered", recipient=good)
        mail = await arrival(postfix, good)
        [rcpt] = mail.rcpts
        # the capture server offers DSN, so Postfix passes on what relayd passed on to it
        assert "NOTIFY=SUCCESS,FAILURE" in rcpt
        assert f"ORCPT=rfc822;Original+2B{good}" in rcpt


@pytest.mark.parametrize("fault", ["password", "authority", "name"])
async def test_the_upstreams_trouble_is_not_the_recipients(
    fault: str, tmp_path: Path, postfix: Postfix, ca: trustme.CA
) -> None:
    other = tmp_path / "other-ca.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    faults: dict[str, dict[str, object]] = {
        "password": {"password": Secret("wrong")},
        "authority": {"ca_file": str(other)},
        "name": {"tls_name": "somebody.else.test"},
    }
    config = sections(tmp_path, postfix, ca)
    right = config["upstreams"]["submission"]
    config["upstreams"]["submission"] = upstream(postfix, postfix.submission, **faults[fault])
    recipient = f"{uuid.uuid4()}@example.org"
    async with Daemon(tmp_path, config) as daemon:
        await asyncio.to_thread(send, daemon, f"app@{DOMAIN}", [recipient])
        event = await daemon.wait_for_event("deferred", recipient=recipient)
        assert event["class"] == ("login-refused" if fault == "password" else "tls-failed")
        assert not daemon.events("bounced")
        # mended, it goes out, and nothing was counted against it
        config["upstreams"]["submission"] = right
        daemon.write_config(config)
        await daemon.cli("reload")
        await daemon.wait_for_event("delivered", recipient=recipient)
        assert "wrong" not in daemon.everything_said().replace("wrong usage", "")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
async def test_the_upstream_by_either_protocol(
    host: str, tmp_path: Path, postfix: Postfix, ca: trustme.CA, dns: ZoneServer
) -> None:
    config = sections(tmp_path, postfix, ca)
    config["upstreams"] |= {
        "submission": upstream(postfix, postfix.submission, host=host),
        "smtps": upstream(postfix, postfix.smtps, host=host),
    }
    async with Daemon(tmp_path, config) as daemon:
        for name in ("submission", "smtps"):
            recipient = f"{uuid.uuid4()}@example.org"
            await asyncio.to_thread(send, daemon, f"app@{name}.{DOMAIN}", [recipient])
            event = await daemon.wait_for_event("delivered", recipient=recipient)
            assert event["upstream"] == name
            mail = await arrival(postfix, recipient)
            by_postfix = " ".join(str((parsed(mail.content).get_all("Received") or [])[0]).split())
            if host != "localhost":
                assert ("[IPv6:::1]" if host == "::1" else "[127.0.0.1]") in by_postfix
            assert_signed(mail.content, DOMAIN, SELECTORS, dns)


async def test_large_mail(tmp_path: Path, postfix: Postfix, ca: trustme.CA, dns: ZoneServer) -> None:
    recipient, sender = f"{uuid.uuid4()}@example.org", f"app@{DOMAIN}"
    line = b"A line of text that repeats itself, with  two spaces and a tab\there \r\n"
    content = f"From: {sender}\r\nTo: {recipient}\r\nSubject: Large\r\n\r\n".encode() + line * 150_000

    def submit(daemon: Daemon) -> None:
        with smtplib.SMTP("127.0.0.1", daemon.port_of("local"), timeout=60) as client:
            client.sendmail(sender, [recipient], content)

    async with Daemon(tmp_path, sections(tmp_path, postfix, ca)) as daemon:
        await asyncio.to_thread(submit, daemon)
        mail = await arrival(postfix, recipient)
    assert mail.content.endswith(content)
    assert_signed(mail.content, DOMAIN, SELECTORS, dns)
