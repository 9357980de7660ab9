"""Reports with fields: RFC 3464 and its misreadings, RFC 5965, RFC 3834, RFC 8098, and the notices of SES."""

# ruff: noqa: E501 - mails, written as they look
from __future__ import annotations

import json

import pytest

from relayd.core.bounce.explain import examine, explain, explain_reply
from relayd.core.bounce.report import parse, typed_address
from relayd.core.bounce.verdict import Action, Kind
from relayd.core.classes import CLASSES, Blocks, ReplyClass

RETURNED = "Message-ID: <m1@ours.example>\nX-Relay: 7\nTo: taro@b.example\nSubject: Hi\n"


def report(
    fields: str, letter: str = "It failed.", kind: str = "message/delivery-status", returned: str = RETURNED
) -> bytes:
    text = (
        "From: MAILER-DAEMON@mx.example\nSubject: Undelivered Mail Returned to Sender\nMIME-Version: 1.0\n"
        'Content-Type: multipart/report; report-type=delivery-status;\n boundary="b/1"\n\nfor old readers\n\n--b/1\n\n'
        f"{letter}\n\n--b/1\nContent-Type: {kind}\n\n{fields}\n--b/1\nContent-Type: text/rfc822-headers\n\n{returned}\n--b/1--\n"
    )
    return text.replace("\n", "\r\n").encode()


ONE = "Reporting-MTA: dns; mx.example\n\nFinal-Recipient: rfc822; taro@b.example\nAction: {}\nStatus: {}\n"


@pytest.mark.parametrize(
    ("action", "status", "kind", "cls", "hard"),
    [
        ("failed", "5.1.1", Kind.BOUNCE, "user-unknown", True),
        ("failed", "4.4.7", Kind.BOUNCE, "expired", False),
        ("delayed", "4.4.1", Kind.BOUNCE, "network-error", False),
        ("delivered", "2.0.0", Kind.DELIVERY_REPORT, "delivered", False),
        ("relayed", "2.0.0", Kind.DELIVERY_REPORT, "delivered", False),
        ("expanded", "2.0.0", Kind.DELIVERY_REPORT, "delivered", False),
        ("Failed (really)", "5.2.2 (full)", Kind.BOUNCE, "mailbox-full", False),
    ],
)
def test_actions(action: str, status: str, kind: Kind, cls: str, hard: bool) -> None:
    (verdict,) = explain(report(ONE.format(action, status)))
    assert (verdict.recipient, verdict.kind, verdict.cls, verdict.hard) == ("taro@b.example", kind, cls, hard)
    assert verdict.message_id == "<m1@ours.example>"
    assert verdict.action.value == action.partition(" ")[0].lower()


def test_the_words_of_the_server_come_out() -> None:
    fields = (
        ONE.format("failed", "5.0.0")
        + "Remote-MTA: dns; MX.b.example\nDiagnostic-Code: smtp; 552 5.2.2 <taro@b.example>:\n    Over quota\n"
    )
    (verdict,) = explain(report(fields))
    assert (verdict.status, verdict.reply_code, verdict.remote_mta) == ("5.2.2", 552, "mx.b.example")
    assert verdict.diagnostic == "552 5.2.2 <taro@b.example>: Over quota"
    assert verdict.cls == "mailbox-full"


@pytest.mark.parametrize(
    "fields",
    [
        "Final-Recipient: rfc822; a@b.example\nAction: failed\nStatus: 5.1.1\n\nFinal-Recipient: rfc822; c@d.example\nAction: failed\nStatus: 5.2.2\n",
        "Final-Recipient: rfc822; a@b.example\nAction: failed\nStatus: 5.1.1\nFinal-Recipient: rfc822; c@d.example\nAction: failed\nStatus: 5.2.2\n",
        "Reporting-MTA: dns; x\nFinal-Recipient : rfc822;a@b.example\n\nAction: failed\n\nStatus: 5.1.1\n\nFinal-Recipient: c@d.example\nStatus: 5.2.2\n",
        "Action: failed\nFinal-Recipient: RFC822; <a@b.example>\nStatus: 5.1.1\n\nAction: failed\nFinal-Recipient: LOCAL;c@d.example\nStatus: 5.2.2\n",
        "Original-Recipient: rfc/822;a@b.example\nStatus: 5.1.1\nAction: failed\n\nOriginal-Recipient: rfc822;c@d.example\nStatus: 5.2.2\nAction: failed\n",
    ],
)  # fmt: skip
def test_blocks_however_they_are_parted(fields: str) -> None:
    verdicts = explain(report(fields))
    assert [(each.recipient, each.status) for each in verdicts] == [("a@b.example", "5.1.1"), ("c@d.example", "5.2.2")]


@pytest.mark.parametrize(
    ("value", "address"),
    [
        ("rfc822; Taro@B.EXAMPLE", "Taro@b.example"),
        ("rfc822;<taro@b.example>", "taro@b.example"),
        ("taro@b.example", "taro@b.example"),
        ('rfc822; "ta ro"@b.example', '"ta ro"@b.example'),
        ("utf-8; \\x{592A}@b.example", "太@b.example"),
        ("rfc822; @", ""),
        ("", ""),
        ("x-unix; |/bin/cat", ""),
    ],
)
def test_typed_addresses(value: str, address: str) -> None:
    assert typed_address(value) == address


def test_domino_reports_its_own_name_for_a_recipient() -> None:
    fields = "Final-Recipient: rfc822;taro@inner.example\nAction: failed\nStatus: 5.0.0\nDiagnostic-Code: X-Notes; Error transferring to in.example; Maximum hop count exceeded.\n"
    letter = "Your message\n\n  Subject: Hi\n\nwas not delivered to:\n\n  taro@b.example\n\nbecause:\n\n  Maximum hop count exceeded.\n"
    (verdict,) = explain(report(fields, letter))
    assert (verdict.recipient, verdict.cls) == ("taro@b.example", "network-error")


def test_feedback_in_a_part_without_its_type() -> None:
    content = feedback("abuse").replace(b"message/feedback-report", b"text/plain").replace(b"feedback-report", b"x")
    assert [(each.kind, each.recipient) for each in explain(content)] == [(Kind.COMPLAINT, "taro@b.example")]


def test_number_of_recipients_is_bounded() -> None:
    fields = "\n".join(f"Final-Recipient: rfc822; a{n}@b.example\nAction: failed\nStatus: 5.1.1\n" for n in range(500))
    assert len(parse(fields).blocks) <= 100


def test_fields_in_the_letter() -> None:
    letter = (
        "An error occurred while trying to deliver the mail to the following recipients:\ntaro@b.example\n\nTechnical report:\n\n"
        "Reporting-MTA: dsn; a.example\n\nAction: failed\nFinal-Recipient: rfc822; taro@b.example\nDiagnostic-Code: smtp; 550 5.1.1"
        " <taro@b.example>... User Unknown\nStatus: 5.1.1\n"
    )
    content = f"From: MAILER-DAEMON@a.example\nSubject: Delivery Status Notification (Failure)\n\n{letter}".encode()
    (verdict,) = explain(content)
    assert (verdict.recipient, verdict.status, verdict.reply_code) == ("taro@b.example", "5.1.1", 550)


def test_parts_by_a_boundary_that_is_not_named() -> None:
    content = report(ONE.format("failed", "5.1.1")).replace(b' boundary="b/1"', b" bo")
    assert explain(content)[0].recipient == "taro@b.example"


@pytest.mark.parametrize("encoding", ["base64", "quoted-printable", "x-uuencode"])
def test_transfer_encodings(encoding: str) -> None:
    import base64
    import binascii
    import quopri

    plain = ONE.format("failed", "5.1.1").encode()
    if encoding == "base64":
        body = base64.encodebytes(plain)
    elif encoding == "quoted-printable":
        body = quopri.encodestring(plain)
    else:
        lines = [binascii.b2a_uu(plain[n : n + 45]) for n in range(0, len(plain), 45)]
        body = b"begin 644 report\n" + b"".join(lines) + b"`\nend\n"
    content = report(body.decode(), kind=f"message/delivery-status\nContent-Transfer-Encoding: {encoding}")
    (verdict,) = explain(content)
    assert (verdict.recipient, verdict.status) == ("taro@b.example", "5.1.1")


def feedback(kind: str) -> bytes:
    text = (
        'From: fbl@isp.example\nSubject: FW: Hi\nContent-Type: multipart/report; report-type=feedback-report; boundary="f"\n\n--f\n\n'
        f"An abuse report.\n\n--f\nContent-Type: message/feedback-report\n\nFeedback-Type: {kind}\nUser-Agent: Test/1\nVersion: 1\n"
        f"Original-Rcpt-To: <taro@b.example>\n\n--f\nContent-Type: message/rfc822\n\n{RETURNED}\nbody\n--f--\n"
    )
    return text.encode()


@pytest.mark.parametrize(
    ("kind", "cls"),
    [
        ("abuse", "complaint"),
        ("fraud", "complaint"),
        ("opt-out", "complaint"),
        ("auth-failure", "authentication-failed"),
        ("not-spam", "delivered"),
    ],
)
def test_complaints(kind: str, cls: str) -> None:
    findings = examine(feedback(kind))
    (verdict,) = findings.verdicts
    assert (verdict.kind, verdict.recipient, verdict.cls, verdict.hard) == (
        Kind.COMPLAINT,
        "taro@b.example",
        cls,
        False,
    )
    assert verdict.message_id == "<m1@ours.example>"
    assert verdict.diagnostic.startswith(f"Feedback-Type: {kind}")


def test_a_complaint_in_the_form_of_outlook() -> None:
    content = (
        'From: staff@hotmail.com\nSubject: complaint about message from 192.0.2.1\nContent-Type: multipart/mixed; boundary="f"\n\n--f\n'
        "Content-Type: message/rfc822\n\nX-HmXmrOriginalRecipient: taro@outlook.example\nMessage-ID: <m1@ours.example>\nTo: x\n\nHi\n--f--\n"
    )
    (verdict,) = explain(content.encode())
    assert (verdict.kind, verdict.recipient) == (Kind.COMPLAINT, "taro@outlook.example")


@pytest.mark.parametrize(
    "header",
    [
        "Auto-Submitted: auto-replied\nSubject: Re: Hi",
        "Auto-Submitted: auto-replied (vacation)\nSubject: Re: Hi",
        "Auto-Submitted: auto-replied\nReturn-Path: <>\nSubject: Hi",
        "X-Autoreply: yes\nSubject: Re: Hi",
        "Precedence: auto_reply\nSubject: Re: Hi",
        "Subject: Automatic reply: Hi",
        "Subject: Out of Office: Hi",
        "Subject: =?utf-8?b?6Ieq5YuV6L+U5L+h?= Hi",
        "Subject: 【自動返信】Hi",
        "Subject: Re: Hi\nIn-Reply-To: <m1@ours.example>",
    ],
)
def test_auto_replies(header: str) -> None:
    content = f"From: Taro <taro@b.example>\nTo: sender@ours.example\n{header}\n\nI am out of the office until Monday.\n".encode()
    (verdict,) = explain(content)
    assert (verdict.kind, verdict.recipient, verdict.cls) == (Kind.AUTO_REPLY, "taro@b.example", "vacation")


def test_an_answer_by_a_person_is_ordinary() -> None:
    content = b"From: taro@b.example\nSubject: Re: Hi\nIn-Reply-To: <m1@ours.example>\nAuto-Submitted: no\n\nThanks!\n"
    assert explain(content)[0].kind is Kind.NOT_A_REPORT


def test_a_read_receipt_proves_delivery() -> None:
    content = (
        'From: taro@b.example\nSubject: Read: Hi\nContent-Type: multipart/report; report-type=disposition-notification; boundary="r"\n\n--r\n\n'
        "It was read.\n\n--r\nContent-Type: message/disposition-notification\n\nFinal-Recipient: rfc822; taro@b.example\nOriginal-Message-ID: "
        "<M1@ours.example>\nDisposition: manual-action/MDN-sent-manually; displayed\n\n--r--\n"
    )
    (verdict,) = explain(content.encode())
    assert (verdict.kind, verdict.action, verdict.recipient) == (
        Kind.DELIVERY_REPORT,
        Action.DELIVERED,
        "taro@b.example",
    )
    assert verdict.message_id == "<M1@ours.example>"


def test_notices_of_ses() -> None:
    def mail(value: object) -> bytes:
        return (
            b"From: no-reply@sns.amazonaws.com\nSubject: AWS Notification Message\n\n"
            + json.dumps(value, separators=(",", ":")).encode()
            + b"\n\n--\nIf you wish"
        )

    about = {"commonHeaders": {"messageId": "<m1@ours.example>"}}
    failed = {
        "emailAddress": "taro@b.example",
        "action": "failed",
        "status": "5.1.1",
        "diagnosticCode": "smtp; 550 5.1.1 user unknown",
    }
    (verdict,) = explain(mail({"notificationType": "Bounce", "bounce": {"bouncedRecipients": [failed]}, "mail": about}))
    assert (verdict.recipient, verdict.cls, verdict.message_id) == (
        "taro@b.example",
        "user-unknown",
        "<m1@ours.example>",
    )
    complained = {"complainedRecipients": [{"emailAddress": "taro@b.example"}]}
    (verdict,) = explain(mail({"notificationType": "Complaint", "complaint": complained, "mail": about}))
    assert (verdict.kind, verdict.recipient) == (Kind.COMPLAINT, "taro@b.example")
    assert explain(mail({"notificationType": "Bounce", "bounce": [], "mail": 7}))[0].kind is Kind.NOT_A_REPORT


@pytest.mark.parametrize(
    ("text", "action", "cls", "status", "hard"),
    [
        ("550 5.1.1 No such user", "failed", "user-unknown", "5.1.1", True),
        ("552-5.2.2 The email account is over quota\n552 5.2.2 Sorry", "failed", "mailbox-full", "5.2.2", False),
        ("450 4.2.0 Greylisted", "delayed", "greylisted", "4.2.0", False),
        ("250 2.0.0 Ok", "delivered", "delivered", "2.0.0", False),
        ("550 User unknown", "failed", "user-unknown", "5.1.1", True),
    ],
)
def test_bare_replies(text: str, action: str, cls: str, status: str, hard: bool) -> None:
    verdict = explain_reply(text)
    assert (verdict.action, verdict.cls, verdict.status, verdict.hard) == (action, cls, status, hard)


@pytest.mark.parametrize("text", ["", "hello", "99 what", "700 no"])
def test_what_is_no_reply(text: str) -> None:
    with pytest.raises(ValueError, match="reply"):
        explain_reply(text)


def test_every_class_has_its_row() -> None:
    assert set(CLASSES) == set(ReplyClass)
    for cls, facts in CLASSES.items():
        assert facts.cmc_status in {*range(1, 12), 99}
        assert facts.anymail_reason in {
            "invalid",
            "bounced",
            "timed_out",
            "blocked",
            "spam",
            "unsubscribed",
            "other",
            "",
        }
        assert facts.sentence_en.endswith(".")
        assert facts.sentence_ja.endswith("。")
        assert not facts.hard or facts.blocks is Blocks.AT_ONCE, cls


def test_json_has_the_promised_fields() -> None:
    value = explain(report(ONE.format("failed", "5.1.1")))[0].as_json()
    assert list(value) == [
        "recipient", "kind", "action", "class", "hard", "status", "reply_code", "diagnostic", "remote_mta", "cmc_status",
        "anymail_reason", "sentence_en", "sentence_ja", "message_id",
    ]  # fmt: skip
    assert (value["class"], value["cmc_status"], value["anymail_reason"]) == ("user-unknown", 2, "bounced")
