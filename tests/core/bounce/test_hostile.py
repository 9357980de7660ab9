"""No input, however hostile, raises, takes long, or needs much memory."""

# ruff: noqa: E501 - mails, written as they look
from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.core.bounce import mime
from relayd.core.bounce.explain import examine, explain
from relayd.core.bounce.verdict import Kind
from tests.core.bounce.test_letters import LETTERS
from tests.core.bounce.test_reports import ONE, feedback, report

SEEDS = [content for _, content, *_ in LETTERS] + [
    report(ONE.format("failed", "5.1.1") + "Diagnostic-Code: smtp; 550 5.1.1 no\n"),
    feedback("abuse"),
    b'From: a@b.example\nSubject: AWS\n\n{"notificationType":"Bounce","bounce":{"bouncedRecipients":[{"emailAddress":"a@b.c"}]}}',
]
PIECES = [
    b"\r\n\r\n", b"--b/1", b"--b/1--\r\n", b"Content-Type: message/rfc822\r\n\r\n", b"Content-Transfer-Encoding: base64\r\n",
    b"Final-Recipient: rfc822; ", b"Status: ", b"<", b">", b"@", b"\x00", b"\xff\xfe", b"\x1b$B", b"begin 644 x\r\n", b"{", b"[" * 50,
    b'Content-Type: multipart/mixed; boundary="b/1"\r\n', b"550 5.1.1 ", b": ", b"\n", b"=?utf-8?B?", b"a@b.example",
]  # fmt: skip


def check(content: bytes) -> None:
    findings = examine(content)
    assert findings.verdicts
    for verdict in findings.verdicts:
        assert verdict.kind in Kind
        shown = verdict.diagnostic + verdict.recipient + verdict.message_id + verdict.remote_mta
        assert not any(ord(letter) < 32 for letter in shown)
        shown.encode()  # no half of a pair: it goes to logs, files and databases
        verdict.as_json()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_mutated_bounces(data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(1, 8))):
        place = data.draw(st.integers(0, len(content)))
        match data.draw(st.sampled_from(["insert", "cut", "repeat", "octets"])):
            case "insert":
                content[place:place] = data.draw(st.sampled_from(PIECES))
            case "cut":
                del content[place : place + data.draw(st.integers(0, 200))]
            case "repeat":
                content[place:place] = content[place : place + 60] * data.draw(st.integers(1, 20))
            case "octets":
                content[place:place] = data.draw(st.binary(max_size=20))
    check(bytes(content))


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=2000))
def test_any_octets(content: bytes) -> None:
    check(content)


HEAD = b"From: MAILER-DAEMON@mx.example\r\nSubject: failure notice\r\n"
SIZE = 4 << 20
HOSTILE = {
    "nothing but a letter": b"a" * SIZE,
    "at signs": HEAD + b"\r\n" + b"a@" * (SIZE // 2),
    "addresses": HEAD + b"\r\nThe following address(es) failed:\r\n" + b"<a@b.example>: no\r\n" * (SIZE // 20),
    "angle brackets": HEAD + b"\r\n" + b"<" * SIZE,
    "quotes": HEAD + b"\r\n" + b'"' * SIZE,
    "spaces": HEAD + b"\r\nunable to deliver" + b" " * SIZE,
    "lines": HEAD + b"\n" * SIZE,
    "carriage returns": HEAD + b"\r" * SIZE,
    "fields": b"A: b\r\n" * (SIZE // 6),
    "one long field": b"Subject: " + b"=?utf-8?B?" * (SIZE // 10) + b"\r\n\r\n",
    "folded field": b"Subject: a\r\n" + b" a\r\n" * (SIZE // 4),
    "parameters": b"Content-Type: multipart/mixed" + b"; a=b" * (SIZE // 5) + b"\r\n\r\n",
    "parts": b"Content-Type: multipart/mixed; boundary=x\r\n\r\n" + b"--x\r\n" * (SIZE // 5),
    "depth": b"".join(b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (n, n) for n in range(20000)),
    "mails in mails": b"Content-Type: message/rfc822\r\n\r\n" * (SIZE // 32),
    "almost boundaries": b"Content-Type: multipart/mixed; boundary=x\r\n\r\n" + b"--xx\r\n" * (SIZE // 6),
    "base64": b"Content-Transfer-Encoding: base64\r\n\r\n" + b"QUFB" * (SIZE // 4),
    "quoted-printable": b"Content-Transfer-Encoding: quoted-printable\r\n\r\n" + b"=41" * (SIZE // 3),
    "uuencoded": b"From: daemon@x\r\n\r\nbegin 644 a\r\n" + b"M" * SIZE,
    "escapes": HEAD + b"Content-Type: text/plain; charset=iso-2022-jp\r\n\r\n" + b"\x1b$B" * (SIZE // 3),
    "octets": HEAD + b"\r\n" + bytes(range(128, 256)) * (SIZE // 128),
    "tags": HEAD + b"Content-Type: text/html\r\n\r\n" + b"<style>" * (SIZE // 7),
    "open tags": HEAD + b"Content-Type: text/html\r\n\r\n" + b"<br" * (SIZE // 3),
    "json": b"From: a@b\r\n\r\n" + b'{"notificationType":' + b'{"a":' * (SIZE // 5),
    "brackets": b'From: a@b\r\n\r\n{"notificationType":' + b"[" * SIZE,
    "codes": HEAD + b"\r\nunable to deliver\r\n" + b"550 5.1.1 " * (SIZE // 10),
    "words": HEAD
    + b"\r\nunable to deliver to <a@b.example>: "
    + b"user mailbox account not unknown host " * (SIZE // 38),
    "dashes": HEAD + b"\r\n" + b"-" * SIZE,
    "report fields": report("Final-Recipient: rfc822; a@b.example\nAction: failed\n" * 50000),
    "report folds": report("Diagnostic-Code: smtp; 550\n" + " user\n" * 300000),
    "sentences": HEAD + b"\r\n" + b"unable to deliver mail to message to user to " * (SIZE // 46),
    "references": HEAD + b"Content-Type: text/html\r\n\r\n" + b"&lt;" * (SIZE // 4),
    "utf-7": HEAD + b"Content-Type: text/plain; charset=utf-7\r\n\r\n" + b"+AAA\xff" * (SIZE // 5),
    "punycode": HEAD + b"Content-Type: text/plain; charset=punycode\r\n\r\n" + b"\xffa-" * (SIZE // 3),
}


@pytest.mark.timeout(30)  # what is quadratic in 4 MiB does not end in time
@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_mail(content: bytes) -> None:
    check(content)


def test_memory_is_bounded() -> None:
    content = HEAD + b"\r\n" + b"<a@b.example>: no such user\r\n" * (32 * 1024 * 1024 // 29)
    tracemalloc.start()
    try:
        explain(content)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20


@pytest.mark.parametrize("octets", [b"\x01", b"\xff\xfe", b"\x9b", b"\x7f"])
def test_controls_and_broken_octets_are_in_no_verdict(octets: bytes) -> None:
    odd = b"<a%sb@c.example>" % octets
    check(report(ONE.format("failed", "5.1.1")).replace(b"<order-1@example.com>", odd) + odd)
    check(HEAD + b"X-Failed-Recipients: " + odd + b"\r\nMessage-ID: " + odd + b"\r\n\r\nunable to deliver\r\n" + odd)
    check(b"From: " + odd + b"\r\nIn-Reply-To: " + odd + b"\r\nAuto-Submitted: auto-replied\r\n\r\nMessage-ID: " + odd)


def test_structure_is_bounded() -> None:
    root = mime.read(HOSTILE["parts"])
    assert sum(1 for _ in root.walk()) <= mime.MAX_PARTS + 1
    assert max(part.depth for part in mime.read(HOSTILE["depth"]).walk()) <= mime.MAX_DEPTH
