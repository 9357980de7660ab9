"""Reports: well-formed for a strict reader and for the standard library's, honest, and closed to injection."""

from __future__ import annotations

import email
import email.policy
import re
import zlib
from dataclasses import replace
from email.message import EmailMessage

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.core.dsn import Fate, Kind, compose, status, wanted
from relayd.core.ids import format_id
from relayd.core.mail import Envelope, Message, Notify, Origin, Recipient, Ret
from relayd.core.reply import Reply, parse_reply

NOW = 1_700_000_500_000
CONTENT = (
    b"Received: from app ([192.0.2.9])\r\n\tby relay.example.com with ESMTP id x; Tue, 14 Nov 2023 22:13:20 +0000\r\n"
    b"From: shop@example.com\r\nTo: customer@example.net\r\nSubject: Order\r\nMessage-ID: <o1@example.com>\r\n"
    b"\r\nThank you.\r\n-- \r\nShop\r\n"
)
MESSAGE = Message(
    id=8_000_000_000_000_000,
    accepted_at=1_700_000_000_000,
    envelope=Envelope("shop@example.com", envid="QQ+2B314"),
    origin=Origin("submission", "192.0.2.9"),
    size=len(CONTENT),
    message_id="<o1@example.com>",
    subject="ご注文",
)
UNKNOWN = Fate(
    Recipient("customer@example.net", orcpt="rfc822;Customer+2Bx@Example.net"),
    Reply(550, "5.1.1", "No such user\nhere"),
    "mx.acme.example",
    attempted_at=1_700_000_400_000,
)

FIELD = re.compile(r"([A-Za-z0-9-]+): (\S(?:[^\r\n]|\r\n[\t ](?=\S))*)\r\n")
ORDER_MESSAGE = ["Original-Envelope-Id", "Reporting-MTA", "Arrival-Date"]
ORDER_RECIPIENT = [
    "Original-Recipient",
    "Final-Recipient",
    "Action",
    "Status",
    "Remote-MTA",
    "Diagnostic-Code",
    "Last-Attempt-Date",
    "Final-Log-ID",
    "Will-Retry-Until",
]


def read(report: bytes) -> tuple[EmailMessage, list[dict[str, str]]]:
    """Check all that holds of any report; the message, and the groups of the status part."""
    assert report.endswith(b"--\r\n")
    assert report.count(b"\r\n") == report.count(b"\n") == report.count(b"\r")
    assert b"\0" not in report
    assert max(map(len, report.split(b"\r\n"))) <= 998
    assert not re.search(rb"\r\n[\t ]+\r\n", report.partition(b"\r\n\r\n")[0])
    message = email.message_from_bytes(report, policy=email.policy.SMTP)
    assert isinstance(message, EmailMessage)
    assert [part.defects for part in message.walk()] == [[] for _ in message.walk()]
    assert message.get_content_type() == "multipart/report"
    assert message.get_param("report-type") == "delivery-status"
    assert message["Auto-Submitted"] == "auto-replied"
    assert message["From"].addresses[0].username == "MAILER-DAEMON"
    for name in ("Date", "Message-ID", "Subject", "To"):
        assert len(message.get_all(name) or []) == 1
    parts = list(message.iter_parts())
    assert parts[0].get_content_type() == "text/plain"
    assert parts[1].get_content_type() in ("message/delivery-status", "message/global-delivery-status")
    return message, [strictly(group) for group in raw_status(report).split("\r\n\r\n")]


def raw_status(report: bytes) -> str:
    """The body of the status part, as it stands."""
    match = re.search(rb'boundary="([^"]+)"', report)
    assert match is not None
    part = report.split(b"--" + match[1])[2]
    head, _, body = part.partition(b"\r\n\r\n")
    assert (b"global-delivery-status" in head) == (not body.isascii())
    return body.removesuffix(b"\r\n").decode().removesuffix("\r\n")


def strictly(group: str) -> dict[str, str]:
    """RFC 3464 2.1.1: nothing but well-formed fields, each once."""
    fields = FIELD.findall(group + "\r\n")
    assert sum(len(name) + len(value) + 4 for name, value in fields) == len(group) + 2
    names = [name for name, _ in fields]
    order = ORDER_RECIPIENT if "Action" in names else ORDER_MESSAGE
    assert names == [name for name in order if name in names]
    return {name: re.sub(r"\r\n[\t ]", " ", value) for name, value in fields}


def text_of(message: EmailMessage) -> str:
    part = next(iter(message.iter_parts()))
    assert isinstance(part, EmailMessage)
    return str(part.get_content())


def test_failure_report() -> None:
    report = compose(Kind.FAILED, MESSAGE, [UNKNOWN], CONTENT, hostname="relay.example.com", now=NOW)
    assert report.isascii()
    message, groups = read(report)
    assert message["To"] == "shop@example.com"
    assert message["In-Reply-To"] == "<o1@example.com>"
    assert groups == [
        {
            "Original-Envelope-Id": "QQ+314",
            "Reporting-MTA": "dns; relay.example.com",
            "Arrival-Date": "Tue, 14 Nov 2023 22:13:20 +0000",
        },
        {
            "Original-Recipient": "rfc822; Customer+x@Example.net",
            "Final-Recipient": "rfc822; customer@example.net",
            "Action": "failed",
            "Status": "5.1.1",
            "Remote-MTA": "dns; mx.acme.example",
            "Diagnostic-Code": "smtp; 550 5.1.1 No such user here",
            "Last-Attempt-Date": "Tue, 14 Nov 2023 22:20:00 +0000",
            "Final-Log-ID": format_id(MESSAGE.id),
        },
    ]
    returned = list(message.iter_parts())[2]
    assert returned.get_content_type() == "message/rfc822"
    assert CONTENT in report
    text = text_of(message)
    english, japanese = text.split("-" * 40)
    for half in (english, japanese):
        assert "customer@example.net" in half
        assert "550 5.1.1 No such user here" in half
        assert "mx.acme.example" in half
        assert "ご注文" in half
    assert "could not be delivered" in english
    assert "配信できませんでした" in japanese


def test_delay_report_says_until_when() -> None:
    fate = Fate(
        Recipient("customer@example.net"),
        Reply(451, "4.4.2", "The upstream closed the connection"),
        attempted_at=NOW,
        retry_until=NOW + 86_400_000,
    )
    message, (_, group) = read(compose(Kind.DELAYED, MESSAGE, [fate], CONTENT, hostname="relay.example.com", now=NOW))
    assert group["Action"] == "delayed"
    assert group["Status"] == "4.4.2"
    assert group["Will-Retry-Until"] == "Wed, 15 Nov 2023 22:21:40 +0000"
    assert group["Diagnostic-Code"] == "X-relayd; 451 4.4.2 The upstream closed the connection"
    assert "Remote-MTA" not in group
    assert "Original-Recipient" not in group
    assert list(message.iter_parts())[2].get_content_type() == "text/rfc822-headers"
    assert "We try until Wed, 15 Nov 2023 22:21:40 +0000." in text_of(message)


@pytest.mark.parametrize("kind", [Kind.RELAYED, Kind.DELIVERED])
def test_success_reports(kind: Kind) -> None:
    fates = [Fate(Recipient(f"{n}@example.net"), Reply(250, "2.0.0", "Ok"), "mx.acme.example") for n in range(3)]
    message, groups = read(compose(kind, MESSAGE, fates, CONTENT, hostname="relay.example.com", now=NOW))
    assert [group["Action"] for group in groups[1:]] == [kind.value] * 3
    assert [group["Final-Recipient"] for group in groups[1:]] == [f"rfc822; {n}@example.net" for n in range(3)]
    assert list(message.iter_parts())[2].get_content_type() == "text/rfc822-headers"


@pytest.mark.parametrize(
    ("ret", "content", "expected"),
    [
        (None, CONTENT, "message/rfc822"),
        (Ret.FULL, CONTENT, "message/rfc822"),
        (Ret.HDRS, CONTENT, "text/rfc822-headers"),
        (Ret.FULL, CONTENT + b"x\r\n" * 60_000, "text/rfc822-headers"),
        (Ret.FULL, CONTENT + b"x" * 998 + b"\r\n", "message/rfc822"),
        (Ret.FULL, CONTENT + b"x" * 999 + b"\r\n", "text/rfc822-headers"),
        (Ret.FULL, CONTENT + b"nul\0\r\n", "text/rfc822-headers"),
        (Ret.FULL, CONTENT + b"bare\rcr\r\n", "text/rfc822-headers"),
        (Ret.FULL, CONTENT.replace(b"Order", "注文".encode()), "message/rfc822"),
        (Ret.HDRS, CONTENT.replace(b"Order", "注文".encode()), "text/rfc822-headers"),
        (Ret.HDRS, CONTENT.replace(b"Order", b"x" * 5000 + b"\0\ry"), "text/rfc822-headers"),
        (Ret.FULL, b"\r\nno header\r\n", "message/rfc822"),
        (Ret.HDRS, b"", "text/rfc822-headers"),
        (Ret.FULL, None, None),
    ],
)
def test_what_is_returned(ret: Ret | None, content: bytes | None, expected: str | None) -> None:
    given_ = replace(MESSAGE, envelope=replace(MESSAGE.envelope, ret=ret))
    report = compose(Kind.FAILED, given_, [UNKNOWN], content, hostname="relay.example.com", now=NOW)
    message, _ = read(report)
    parts = list(message.iter_parts())
    assert [part.get_content_type() for part in parts[2:]] == ([expected] if expected else [])
    assert report.isascii() == (content is None or content.isascii())
    assert (message["Content-Transfer-Encoding"] == "8bit") == (not report.isascii())
    if expected == "text/rfc822-headers":
        assert b"Thank you" not in report


def test_utf8_addresses_in_a_utf8_message() -> None:
    given_ = replace(MESSAGE, envelope=Envelope("店@example.com", smtputf8=True))
    fate = Fate(
        Recipient("客@例え.jp", orcpt="utf-8;\\x{5BA2}@\\x{4F8B}\\x{3048}.jp"),
        Reply(550, "5.1.1", "不明"),
        "mx.例え.jp",
    )
    content = CONTENT.replace(b"shop@", "店@".encode())
    message, (_, group) = read(compose(Kind.FAILED, given_, [fate], content, hostname="relay.example.com", now=NOW))
    parts = list(message.iter_parts())
    assert parts[1].get_content_type() == "message/global-delivery-status"
    assert parts[2].get_content_type() == "message/global"
    assert group["Final-Recipient"] == "utf-8; 客@例え.jp"
    assert group["Original-Recipient"] == "utf-8; 客@例え.jp"
    assert group["Diagnostic-Code"] == "smtp; 550 5.1.1 不明"
    assert group["Remote-MTA"] == "dns; mx.??.jp"


def test_utf8_words_in_an_ascii_message_are_written_in_ascii() -> None:
    fate = Fate(Recipient("customer@example.net", orcpt="utf-8;\\x{5BA2}@a.jp"), Reply(550, "5.1.1", "不明"), "mx.jp")
    report = compose(Kind.FAILED, MESSAGE, [fate], CONTENT, hostname="relay.example.com", now=NOW)
    assert report.isascii()
    message, (_, group) = read(report)
    assert group["Diagnostic-Code"] == "smtp; 550 5.1.1 \\x{4E0D}\\x{660E}"
    assert group["Original-Recipient"] == "utf-8; \\x{5BA2}@a.jp"
    assert "550 5.1.1 不明" in text_of(message)


def test_digits_of_other_scripts_are_no_status_code() -> None:
    """Else a report about ASCII mail would be 8-bit, and would not get out where that is not taken."""
    reply = parse_reply(550, "5.1.\u0661 \u0665.1.1 no such user")
    assert reply.enhanced == ""
    fate = Fate(Recipient("customer@example.net"), reply, "mx.example.net")
    odd = Fate(Recipient("other@example.net"), Reply(550, "5.1.\u0661", "no"), "mx.example.net")
    report = compose(Kind.FAILED, MESSAGE, [fate, odd], CONTENT, hostname="relay.example.com", now=NOW)
    assert report.isascii()
    assert report.count(b"Status: 5.0.0\r\n") == 2


hostile = st.one_of(
    st.text(max_size=80),
    st.lists(
        st.sampled_from(
            [
                "\r\n",
                "\n",
                "\r",
                "\0",
                "Bcc: x@y",
                "--=_relayd_",
                ".",
                " ",
                "\t",
                "é",
                "\u2028",
                "\x1b[2J",
                "5.1.\u0661 ",
                "a" * 1100,
            ]
        ),
        max_size=8,
    ).map("".join),
)


@given(st.tuples(hostile, hostile, hostile, hostile), st.booleans(), st.sampled_from(Kind))
def test_nothing_gets_in(texts: tuple[str, str, str, str], utf8: bool, kind: Kind) -> None:
    address, reply, orcpt, envid = texts
    given_ = replace(
        MESSAGE,
        envelope=Envelope((address or "x").replace("\ud800", ""), smtputf8=utf8, envid=envid),
        subject=reply,
        message_id=address,
    )
    fate = Fate(Recipient(address, orcpt=orcpt), parse_reply(550, reply), remote=envid, attempted_at=0, retry_until=0)
    raw = Fate(Recipient(address, orcpt="rfc822;" + orcpt), Reply(450, reply, reply), remote=address)
    report = compose(kind, given_, [fate, raw], CONTENT, hostname=reply or "h", now=NOW)
    assert report.count(b"\r\n") == report.count(b"\n") == report.count(b"\r")
    assert b"\0" not in report
    assert b"\x1b" not in report
    assert report.isascii() or utf8 or not address.isascii()
    assert max(map(len, report.split(b"\r\n"))) <= 998
    names = [line.partition(b":")[0] for line in report.partition(b"\r\n\r\n")[0].split(b"\r\n") if line[:1] != b"\t"]
    assert set(names) <= {
        b"From", b"To", b"Subject", b"Date", b"Message-ID", b"In-Reply-To", b"References", b"Auto-Submitted",
        b"MIME-Version", b"Content-Type", b"Content-Transfer-Encoding",
    }  # fmt: skip
    message = email.message_from_bytes(report, policy=email.policy.SMTP)
    assert len(message.get_payload()) == 3
    assert re.search(rb"(?<!=)\r\nBcc", report) is None  # behind "=" it is a soft break of quoted-printable


@pytest.mark.parametrize(
    ("kind", "reply", "expected"),
    [
        (Kind.FAILED, Reply(550, "5.1.1", ""), "5.1.1"),
        (Kind.FAILED, Reply(550, "", ""), "5.0.0"),
        (Kind.FAILED, Reply(451, "4.4.2", ""), "4.4.2"),
        (Kind.FAILED, Reply(451, "", ""), "4.0.0"),
        (Kind.FAILED, None, "5.0.0"),
        (Kind.FAILED, Reply(550, "9.9.9\r\nX", ""), "5.0.0"),
        (Kind.DELAYED, Reply(451, "4.4.2", ""), "4.4.2"),
        (Kind.DELAYED, Reply(535, "5.7.8", ""), "4.7.8"),
        (Kind.DELAYED, None, "4.0.0"),
        (Kind.RELAYED, Reply(250, "2.0.0", ""), "2.0.0"),
        (Kind.DELIVERED, Reply(250, "", ""), "2.0.0"),
    ],
)
def test_status(kind: Kind, reply: Reply | None, expected: str) -> None:
    assert status(kind, reply) == expected


F, D, S, N = Notify.FAILURE, Notify.DELAY, Notify.SUCCESS, Notify.NEVER


@pytest.mark.parametrize(
    ("notify", "kinds"),
    [
        (frozenset(), {Kind.FAILED, Kind.DELAYED}),
        (frozenset({N}), set()),
        (frozenset({F}), {Kind.FAILED}),
        (frozenset({D}), {Kind.DELAYED}),
        (frozenset({S}), {Kind.RELAYED, Kind.DELIVERED}),
        (frozenset({S, F}), {Kind.RELAYED, Kind.DELIVERED, Kind.FAILED}),
        (frozenset({S, F, D}), set(Kind)),
    ],
)
def test_wanted(notify: frozenset[Notify], kinds: set[Kind]) -> None:
    assert {kind for kind in Kind if wanted(notify, kind)} == kinds


def test_no_report_goes_to_the_null_sender() -> None:
    with pytest.raises(ValueError, match="sender"):
        compose(Kind.FAILED, replace(MESSAGE, envelope=Envelope("")), [UNKNOWN], None, hostname="h", now=NOW)
    with pytest.raises(ValueError, match="recipient"):
        compose(Kind.FAILED, MESSAGE, [], None, hostname="h", now=NOW)


def test_addresses_with_spaces_stay_what_they_are() -> None:
    fate = replace(UNKNOWN, recipient=Recipient('"a  b"@example.net'))
    _, (_, group) = read(compose(Kind.FAILED, MESSAGE, [fate], None, hostname="h", now=NOW))
    assert group["Final-Recipient"] == 'rfc822; "a  b"@example.net'


def test_the_delimiter_is_in_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zlib, "crc32", lambda _: 7)
    content = CONTENT + b"--=_relayd_00000007--\r\n"
    report = compose(Kind.FAILED, MESSAGE, [UNKNOWN], content, hostname="h", now=NOW)
    assert b'boundary="=_relayd_00000008"' in report
    message, _ = read(report)
    assert len(list(message.iter_parts())) == 3
