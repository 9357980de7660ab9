"""Mails that come back, as remote systems write them: reports of failure, complaints, auto-replies."""

from __future__ import annotations


def report(
    recipient: str,
    *,
    to: str = "bounces@example.com",
    status: str = "5.1.1",
    diagnostic: str = "550 5.1.1 <%s>: Recipient address rejected: User unknown",
    action: str = "failed",
    original: bytes = b"",
    message_id: str = "<report-1@mx.example.org>",
) -> bytes:
    """An RFC 3464 report of mx.example.org. `original` is the header that it returns."""
    text = diagnostic.replace("%s", recipient)
    return (
        f"Return-Path: <>\r\nFrom: MAILER-DAEMON@mx.example.org (Mail Delivery System)\r\nTo: {to}\r\n"
        "Subject: Undelivered Mail Returned to Sender\r\nDate: Sun, 22 Nov 2026 01:00:10 +0000\r\n"
        f"Message-ID: {message_id}\r\nAuto-Submitted: auto-replied\r\nMIME-Version: 1.0\r\n"
        'Content-Type: multipart/report; report-type=delivery-status; boundary="=_b"\r\n\r\n'
        "--=_b\r\nContent-Type: text/plain; charset=us-ascii\r\n\r\n"
        f"This is the mail system at host mx.example.org.\r\n\r\n<{recipient}>: {text}\r\n\r\n"
        "--=_b\r\nContent-Type: message/delivery-status\r\n\r\n"
        "Reporting-MTA: dns; mx.example.org\r\nArrival-Date: Sun, 22 Nov 2026 01:00:09 +0000\r\n\r\n"
        f"Final-Recipient: rfc822; {recipient}\r\nAction: {action}\r\nStatus: {status}\r\n"
        f"Remote-MTA: dns; store.example.org\r\nDiagnostic-Code: smtp; {text}\r\n\r\n"
        "--=_b\r\nContent-Type: text/rfc822-headers\r\n\r\n"
    ).encode() + (original.partition(b"\r\n\r\n")[0] + b"\r\n\r\n--=_b--\r\n")


def complaint(recipient: str, *, to: str = "abuse@bounce.example.com", original: bytes = b"") -> bytes:
    """An RFC 5965 report of feedback.example.net that somebody pressed the spam button."""
    return (
        f"From: <fbl@feedback.example.net>\r\nTo: {to}\r\nSubject: FW: complaint\r\n"
        "Date: Sun, 22 Nov 2026 02:00:00 +0000\r\nMessage-ID: <fbl-1@feedback.example.net>\r\nMIME-Version: 1.0\r\n"
        'Content-Type: multipart/report; report-type=feedback-report; boundary="=_c"\r\n\r\n'
        "--=_c\r\nContent-Type: text/plain\r\n\r\nThis is an email abuse report.\r\n\r\n"
        "--=_c\r\nContent-Type: message/feedback-report\r\n\r\n"
        "Feedback-Type: abuse\r\nUser-Agent: SomeGenerator/1.0\r\nVersion: 1\r\n"
        f"Original-Rcpt-To: <{recipient}>\r\n\r\n"
        "--=_c\r\nContent-Type: message/rfc822\r\n\r\n"
    ).encode() + (original + b"\r\n--=_c--\r\n")


def auto_reply(author: str, *, to: str) -> bytes:
    """Out of office, said as RFC 3834 wants it."""
    return (
        f"From: <{author}>\r\nTo: <{to}>\r\nSubject: Out of office: hello\r\nAuto-Submitted: auto-replied\r\n"
        "Date: Sun, 22 Nov 2026 01:00:10 +0000\r\nMessage-ID: <vacation-1@example.org>\r\n\r\n"
        "I am on holiday until Monday.\r\n"
    ).encode()


def letter(*, to: str, subject: str = "A question") -> bytes:
    """Ordinary mail."""
    return (
        f"From: Somebody <somebody@example.net>\r\nTo: <{to}>\r\nSubject: {subject}\r\n"
        "Date: Sun, 22 Nov 2026 01:00:10 +0000\r\nMessage-ID: <letter-1@example.net>\r\n\r\nHow do you do?\r\n"
    ).encode()
