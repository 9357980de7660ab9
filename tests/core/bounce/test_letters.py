"""Bounces without a usable report, as mail programs word them: who is meant, and why."""

# ruff: noqa: E501 - mails, written as they look
from __future__ import annotations

import pytest

from relayd.core.bounce.explain import explain
from relayd.core.bounce.verdict import Action, Kind

RETURNED = "Received: from a.example by b.example; Thu, 1 Jan 2026 00:00:00 +0900\nMessage-ID: <m1@ours.example>\nTo: x@b.example\nSubject: Hello\n\nHello\n"


def bounce(
    letter: str, subject: str = "failure notice", author: str = "MAILER-DAEMON@mx.example", more: str = ""
) -> bytes:
    text = f"From: {author}\nTo: sender@ours.example\nSubject: {subject}\n{more}\n{letter}"
    return text.replace("\n", "\r\n").encode()


LETTERS: list[tuple[str, bytes, str, str, str, int | None]] = [
    (
        "qmail",
        bounce(
            "Hi. This is the qmail-send program at mx.example.\nI'm afraid I wasn't able to deliver your message to the "
            "following addresses.\nThis is a permanent error; I've given up.\n\n<taro@b.example>:\n192.0.2.1 does not like "
            "recipient.\nRemote host said: 550 5.1.1 <taro@b.example>... User Unknown\nGiving up on 192.0.2.1.\n\n"
            "--- Below this line is a copy of the message.\n\n" + RETURNED
        ),
        "taro@b.example", "user-unknown", "5.1.1", 550,
    ),
    (
        "exim",
        bounce(
            "This message was created automatically by mail delivery software.\n\nA message that you sent could not be "
            "delivered to one or more of its\nrecipients. This is a permanent error. The following address(es) failed:\n\n"
            "  taro@b.example\n    SMTP error from remote mail server after RCPT TO:<taro@b.example>:\n    host mx.b.example"
            " [192.0.2.9]: 552 5.2.2 Over quota\n\n------ This is a copy of the message, including all the headers. ------"
            "\n\n" + RETURNED,
            "Mail delivery failed: returning message to sender", more="X-Failed-Recipients: taro@b.example\n",
        ),
        "taro@b.example", "mailbox-full", "5.2.2", 552,
    ),
    (
        "exchange 2003",
        bounce(
            "Your message\n\n  To:      taro@b.example\n  Subject: Hello\n\ndid not reach the following recipient(s):\n\n"
            "taro@b.example on Thu, 1 Jan 2026 00:00:00 +0900\n    The recipient name is not recognized\n\tThe MTS-ID of "
            "the original message is: c=jp\n",
            "Undeliverable: Hello", "System Administrator <postmaster@b.example>",
        ),
        "taro@b.example", "user-unknown", "5.1.1", None,
    ),
    (
        "domino",
        bounce(
            "Your message\n\n  Subject: Hello\n\nwas not delivered to:\n\n  taro@b.example\n\nbecause:\n\n  User taro "
            "(taro@b.example) not listed in Domino Directory\n",
            "DELIVERY FAILURE: User taro not listed in Domino Directory", "Postmaster@b.example",
        ),
        "taro@b.example", "user-unknown", "5.1.1", None,
    ),
    (
        "gmail, old",
        bounce(
            "Delivery to the following recipient failed permanently:\n\n     taro@b.example\n\nTechnical details of permanent "
            "failure:\nGoogle tried to deliver your message, but it was rejected by the server for the recipient domain "
            "b.example by mx.b.example. [192.0.2.9].\n\nThe error that the other server returned was:\n550 5.2.1 Mailbox "
            "disabled\n\n----- Original message -----\n\n" + RETURNED,
            "Delivery Status Notification (Failure)",
        ),
        "taro@b.example", "mailbox-disabled", "5.2.1", 550,
    ),
    (
        "sendmail 5",
        bounce(
            "   ----- Transcript of session follows -----\n550 b.example (smtp)... 550 Host unknown\n554 <taro@b.example>... "
            "550 Host unknown (Authoritative answer from name server)\n\n   ----- Unsent message follows -----\n" + RETURNED,
            "Returned mail: Host unknown",
        ),
        "taro@b.example", "host-unknown", "5.1.2", 554,
    ),
    (
        "dragonfly",
        bounce(
            "This is the DragonFly Mail Agent v0.13 at df.example.\n\nThere was an error delivering your mail to "
            "<taro@b.example>.\n\nmx.b.example [192.0.2.9] did not like our RCPT TO:\n550 5.1.1 <taro@b.example>: Recipient "
            "address rejected: User unknown\n\nMessage headers follow.\n\n" + RETURNED,
            "Mail delivery failed",
        ),
        "taro@b.example", "user-unknown", "5.1.1", 550,
    ),
    (
        "x2, yahoo",
        bounce(
            "Message from b.example.\nUnable to deliver message to the following address(es).\n\n<taro@b.example>:\nThis "
            "account is over quota.\n\n--- Original message follows.\n\n" + RETURNED,
            "Delivery failure",
        ),
        "taro@b.example", "mailbox-full", "5.2.2", None,
    ),
    (
        "au",
        bounce(
            "次のあて先へのメッセージはエラーのため送信できませんでした。\n\n送信先メールアドレスが見つかりませんでした。\n\n"
            "The user(s) account is temporarily limited.\n\n<taro@ezweb.example>\n",
            "Mail System Error - Returned Mail", "Postmaster@ezweb.example",
        ),
        "taro@ezweb.example", "mailbox-disabled", "5.2.1", None,
    ),
    (
        "opensmtpd, delayed",
        bounce(
            "    Hi!\n\n    This is the MAILER-DAEMON, please DO NOT REPLY to this e-mail.\n\n    A message is delayed for "
            "more than 4 hours for the following\n    list of recipients:\n\ntaro@b.example: Network error on destination "
            "MXs\n\n    Below is a copy of the original message:\n\n" + RETURNED,
            "Delivery status notification: delayed", "Mailer Daemon <MAILER-DAEMON@o.example>",
        ),
        "taro@b.example", "network-error", "4.4.2", None,
    ),
    (
        "mimecast-like sentence",
        bounce(
            "Unable to deliver message to: <taro@b.example>\nDelivery failed for the following reason:\nmx[192.0.2.1] "
            "responded with failure: 552 sorry, mailbox taro@b.example is over quota temporarily (#5.2.2)\n\n",
            "Message delivery has failed",
        ),
        "taro@b.example", "mailbox-full", "5.2.2", 552,
    ),
    (
        "postfix, what its smtpd tells the postmaster",
        bounce(
            "Transcript of session follows.\n\n Out: 220 mx ESMTP\n In:  MAIL FROM:<a@ours.example>\n Out: 250 2.1.0 Ok\n In:"
            "  RCPT TO:<taro@b.example>\n Out: 250 2.1.5 Ok\n In:  DATA\n Out: 354 End data with .\n Out: 451 4.3.0 Error: "
            "queue file write error\n In:  QUIT\n",
            "Postfix SMTP server: errors from mx", "Mail Delivery System <MAILER-DAEMON@mx.example>",
        ),
        "taro@b.example", "system-error", "4.3.0", 451,
    ),
    (
        "biglobe",
        bounce(
            "   ----- The following addresses had delivery problems -----\ntaro@b.example\n\n   ----- Non-delivered information "
            "-----\nThe number of messages in recipient's mailbox exceeded the local limit.\n",
            "Returned mail",
        ),
        "taro@b.example", "mailbox-full", "5.2.2", None,
    ),
    (
        "interscan",
        bounce(
            "****** Message from InterScan Messaging Security Suite ******\n\nSent >>> RCPT TO:<taro@b.example>\nReceived <<< 550 "
            "5.1.1 <taro@b.example>... User unknown\n\nUnable to deliver message to <taro@b.example>.\n",
            "Mail could not be delivered", '"InterScan MSS" <postmaster@x.example>',
        ),
        "taro@b.example", "user-unknown", "5.1.1", 550,
    ),
    (
        "notes",
        bounce(
            "------- Failure Reasons  --------\n\nUser not listed in public Name & Address Book\ntaro@b.example\n\n\n------- Returned "
            "Message --------\n\n" + RETURNED,
            "DELIVERY FAILURE", "Postmaster <postmaster@x.example>",
        ),
        "taro@b.example", "user-unknown", "5.1.1", None,
    ),
    (
        "james",
        bounce(
            "Message details:\n  Subject: Hi\n  MAIL FROM: sender@ours.example\n  RCPT TO: taro@b.example\n  Number of lines: 64\n\nError "
            "message below:\n552 - Requested mail action aborted: exceeded storage allocation\n",
            "[BOUNCE]", "postmaster@x.example",
        ),
        "taro@b.example", "mailbox-full", "5.2.2", 552,
    ),
    (
        "au's mail for phones",
        bounce(
            "Your mail sent on: Thu, 29 Apr 2010 11:04:47 +0900\n\nCould not be delivered to: <taro@ezweb.example>\n\nAs their mailbox is "
            "full.\n",
            "Re: Hi", "no-reply@app.auone-net.example",
        ),
        "taro@ezweb.example", "mailbox-full", "5.2.2", None,
    ),
    (
        "gmail, japanese",
        bounce(
            "** アドレス不明 **\n\ntaro@b.example が見つからないか、メールを受信できないため、メッセージは taro@b.example に配信されませんでした。\n\nリモート "
            "サーバーからの応答:\n550 5.1.1 The email account that you tried to reach does not exist.\n",
            "Delivery Status Notification (Failure)", more="X-Failed-Recipients: taro@b.example\n",
        ),
        "taro@b.example", "user-unknown", "5.1.1", 550,
    ),
    (
        "docomo, by sendmail",
        bounce(
            "   ----- The following addresses had permanent fatal errors -----\n<taro@docomo.example>\n    (reason: 550 Unknown user "
            "taro@docomo.example)\n\n   ----- Transcript of session follows -----\n... while talking to mx.docomo.example.:\n>>> DATA\n<<< 550 "
            "Unknown user taro@docomo.example\n554 5.0.0 Service unavailable\n",
            "Returned mail: see transcript for details",
        ),
        "taro@docomo.example", "filtered", "5.7.1", 550,
    ),
    (
        "qq",
        bounce("抱歉，您的邮件被退回来了……\n\n收件人邮件地址：taro@b.example\n退信原因：\n550 5.1.1 Mailbox not found\n", "系统退信", "PostMaster@qq.example"),
        "taro@b.example", "user-unknown", "5.1.1", 550,
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "recipient", "cls", "status", "code"), [each[1:] for each in LETTERS], ids=[each[0] for each in LETTERS]
)
def test_letter(content: bytes, recipient: str, cls: str, status: str, code: int | None) -> None:
    (verdict,) = explain(content)
    assert (verdict.kind, verdict.recipient, verdict.cls, verdict.status, verdict.reply_code) == (
        Kind.BOUNCE, recipient, cls, status, code,
    )  # fmt: skip


def test_a_delay_is_no_failure() -> None:
    verdict = explain(next(content for name, content, *_ in LETTERS if name == "opensmtpd, delayed"))[0]
    assert verdict.action is Action.DELAYED
    assert not verdict.hard


def test_the_returned_mail_names_its_message_id() -> None:
    assert explain(LETTERS[0][1])[0].message_id == "<m1@ours.example>"


def test_several_recipients_have_their_own_reasons() -> None:
    content = bounce(
        "A message that you sent could not be delivered to one or more of its recipients.\nThe following address(es) failed:"
        "\n\n  a@b.example\n    after RCPT TO:<a@b.example>: 550 5.1.1 User unknown\n  c@d.example\n    after RCPT "
        "TO:<c@d.example>: 552 5.2.2 Mailbox full\n\n",
        "Mail delivery failed",
    )
    assert [(each.recipient, each.cls.value, each.hard) for each in explain(content)] == [
        ("a@b.example", "user-unknown", True),
        ("c@d.example", "mailbox-full", False),
    ]


@pytest.mark.parametrize("charset", ["iso-2022-jp", "shift_jis", "euc-jp", "utf-8"])
@pytest.mark.parametrize("named", [True, False])
def test_japanese_letters_in_any_charset(charset: str, named: bool) -> None:
    letter = "以下のあて先にメールを配信できませんでした。\n\n<taro@b.example>\nメールボックスがいっぱいです。\n"
    said = charset if named else "us-ascii"
    head = f"From: MAILER-DAEMON@mx.example\r\nSubject: mail\r\nContent-Type: text/plain; charset={said}\r\n\r\n"
    (verdict,) = explain(head.encode() + letter.encode(charset).replace(b"\n", b"\r\n"))
    assert (verdict.recipient, verdict.cls) == ("taro@b.example", "mailbox-full")


def test_a_charset_that_is_not_the_one_named() -> None:
    head = b"From: Postmaster@ezweb.example\nSubject: Returned Mail\nContent-Type: text/plain; charset=ISO-2022-JP\n\n"
    letter = "宛先が見つかりませんでした。\n<taro@ezweb.example>\n".encode("euc_jp")
    assert explain(head + letter)[0].recipient == "taro@ezweb.example"


def test_a_bounce_wrapped_by_a_gateway_is_opened() -> None:
    inner = (
        "From: MAILER-DAEMON@in.example\nSubject: Returned mail: User unknown\nContent-Type: multipart/report; "
        'report-type=delivery-status; boundary="i"\n\n--i\n\nThe following addresses had permanent errors\n\n--i\nContent-Type: '
        "message/delivery-status\n\nReporting-MTA: dns; in.example\n\nFinal-Recipient: rfc822; taro@b.example\nAction: failed\n"
        "Status: 5.1.1\n\n--i--\n"
    )
    content = (
        'From: MAILER-DAEMON@gw.example\nSubject: Returned mail\nContent-Type: multipart/mixed; boundary="o"\n\n--o\nContent-Type:'
        f" text/plain\n\nThe following addresses had permanent delivery errors\n\n--o\nContent-Type: message/rfc822\n\n{inner}\n--o--\n"
    )
    (verdict,) = explain(content.encode())
    assert (verdict.recipient, verdict.cls, verdict.status) == ("taro@b.example", "user-unknown", "5.1.1")


ORDINARY = [
    b"From: taro@b.example\r\nSubject: Lunch?\r\n\r\nAt noon?\r\n",
    b"From: taro@b.example\r\nSubject: Re: delivery\r\n\r\nYour parcel could not be delivered to hanako@c.example.\r\n",
    b"From: shop@b.example\r\nSubject: Delivery status of your order\r\n\r\nIt could not be delivered to hanako@c.example today.\r\n",
    b"From: hanako@b.example\r\nSubject: Fwd: Undelivered Mail\r\n\r\n> <taro@b.example>: host mx said: 550 5.1.1 User unknown\r\n",
    b"From: Parcels <bounce@b.example>\r\nSubject: Delivery failed\r\n\r\nIt could not be delivered to hanako@c.example.\r\n",
    b"From: Mail Delivery <admin@b.example>\r\nSubject: Undelivered\r\n\r\nYou have 5 undelivered mails on hanako@c.example.\r\n",
    b"Return-Path: <>\r\nFrom: a@b.example\r\nSubject: Report\r\n\r\nDelivery status: bounced 1% hanako@c.example\r\n",
    b"From: shop@b.example\r\nSubject: Your delivery status\r\n\r\nYour order is on its way to 1-2-3 Chiyoda.\r\n",
    b"",
    b"\r\n\r\n",
    b"no header at all",
]


@pytest.mark.parametrize("content", ORDINARY)
def test_ordinary_mail_is_none(content: bytes) -> None:
    assert [each.kind for each in explain(content)] == [Kind.NOT_A_REPORT]
