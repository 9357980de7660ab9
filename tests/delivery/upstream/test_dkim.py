"""Signatures as others see them: dkimpy verifies, not our own code.

dkimpy needs PyNaCl for Ed25519, so there its canonical forms and header rules are checked with `cryptography`.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import threading
from pathlib import Path

import dkim
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from relayd.config.models import DKIMKey
from relayd.core.headers import scan
from relayd.delivery.dkim import DKIMKeyError, Signer, SigningPool, load_key, load_keys
from tests.support.dkim_keys import config, private_key, txt_record

NOW = 1_700_000_000_000
BESIDE = Path(__file__).resolve().parents[4] / "shared" / "corpora"
CORPUS = Path(os.environ.get("RELAYD_CORPORA", BESIDE)) / "mime"
MAIL = b"From: Shop <info@shop.test>\r\nTo: b@example.net\r\nSubject: hello\r\n\r\nHello.\r\n"


@pytest.fixture(scope="module")
def signer() -> Signer:
    return Signer(load_keys([config("shop.test", "rsa"), config("shop.test", "ed25519")]), lambda: NOW)


def dns(name: bytes, timeout: int = 5) -> bytes | None:
    kind = name.decode().split(".", 1)[0]
    return txt_record("rsa" if kind == "rsa" else "ed25519") if kind in ("rsa", "ed25519") else None


def verified(signed: bytes) -> list[str]:
    """The algorithms of all signatures, each one verified."""
    block = signed.split(b"\r\n\r\n", 1)[0]
    return [check(signed, index) for index in range(len(re.findall(rb"(?m)^DKIM-Signature:", block)))]


def check(signed: bytes, index: int) -> str:
    verifier = dkim.DKIM(signed)
    field = [value for name, value in verifier.headers if name.lower() == b"dkim-signature"][index]
    tags = dkim.parse_tag_value(field)
    if tags[b"a"] == b"rsa-sha256":
        assert verifier.verify(idx=index, dnsfunc=dns)
        return "rsa-sha256"
    dkim.validate_signature_fields(tags)
    policy = dkim.CanonicalizationPolicy.from_c_value(tags[b"c"])
    assert base64.b64decode(tags[b"bh"]) == hashlib.sha256(policy.canonicalize_body(verifier.body)).digest()
    names = [name.lower() for name in re.split(rb"\s*:\s*", tags[b"h"])]
    hasher = dkim.HashThrough(hashlib.sha256())
    canonical = policy.canonicalize_headers(verifier.headers)
    dkim.hash_headers(hasher, policy, canonical, names, (b"DKIM-Signature", field), tags)
    key = private_key("ed25519")
    assert isinstance(key, Ed25519PrivateKey)
    key.public_key().verify(base64.b64decode(tags[b"b"]), hasher.digest())
    return "ed25519-sha256"


BOTH = ["rsa-sha256", "ed25519-sha256"]

SHAPES = {
    "plain": MAIL,
    "empty body": MAIL.partition(b"Hello")[0],
    "no body at all": b"From: info@shop.test\r\nSubject: x\r\n",
    "only empty lines": MAIL.partition(b"Hello")[0] + b"\r\n" * 50,
    "trailing empty lines": MAIL + b"\r\n" * 50,
    "no CRLF at the end": MAIL[:-2],
    "8-bit": MAIL + "schöne Grüße\r\n".encode() + b"\xff\xfe raw\r\n",
    "ISO-2022-JP": b"From: info@shop.test\r\nSubject: =?ISO-2022-JP?B?GyRCRnxLXDhsGyhC?=\r\n\r\n"
    + "日本語のメール\r\n".encode("iso-2022-jp"),
    "raw UTF-8 header": "From: Schön <info@shop.test>\r\nSubject: Grüße\r\n\r\nx\r\n".encode(),
    "white space": b"From:info@shop.test\r\nSubject:  a \t b  \r\n\t c\t\r\nTo: \r\n b@x.test\r\n\r\n"
    b"  a \t b \r\n\t\r\n \r\nend\t\r\n",
    "folded": b'From: "A\r\n B"\r\n <info@shop.test>\r\nReferences: <1@x>\r\n\t<2@x>\r\n  <3@x>\r\n\r\nx\r\n',
    "duplicates": b"Subject: one\r\nFrom: info@shop.test\r\nSubject: two\r\nTo: a@x\r\nTo: b@x\r\n\r\nx\r\n",
    "empty fields": b"From: info@shop.test\r\nSubject:\r\nTo: \r\n\r\nx\r\n",
    "trace above": b"Received: from x by y; Thu, 1 Jan 1970 00:00:00 +0000\r\n" + MAIL,
    "long lines": MAIL + b"x" * 5000 + b"  \r\n",
    "dots": MAIL + b".\r\n..\r\n.x\r\n",
    "many fields": b"From: info@shop.test\r\n" + b"".join(b"To: r%d@x.test\r\n" % n for n in range(100)) + b"\r\nx\r\n",
}


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_of_mail_verifies(signer: Signer, name: str) -> None:
    content = SHAPES[name]
    assert verified(signer.sign(content, "shop.test") + content) == BOTH


def test_the_corpus_verifies(signer: Signer) -> None:
    if not CORPUS.exists():
        pytest.skip("the corpora are not here")
    count = 0
    for file in sorted(CORPUS.iterdir()):
        content = re.sub(rb"\r\n|\r|\n", b"\r\n", file.read_bytes())
        content += b"" if content.endswith(b"\r\n") else b"\r\n"
        signed = signer.sign(content, "shop.test") + content
        if signed == content:
            assert b"from" not in [name for name, _, _ in scan(content).fields], file
            continue
        try:
            dkim.DKIM(signed)
        except dkim.MessageFormatError:
            continue  # its header is none for the verifier
        if scan(content).body == scan(content).end < len(content):
            continue  # a header that ends in nonsense: where the body begins is anybody's guess
        assert verified(signed) == BOTH, file
        count += 1
    assert count >= 30


FIELD = st.tuples(
    st.sampled_from(["To", "Subject", "X-Other", "Date", "CC", "list-unsubscribe", "MIME-Version"]),
    st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=40),
)
BODY = st.binary(max_size=200).map(lambda octets: re.sub(rb"[\r\n]", b" \r\n", octets))


@settings(deadline=None, max_examples=60)
@given(st.lists(FIELD, max_size=8), BODY, st.booleans())
def test_random_mail_verifies(signer: Signer, fields: list[tuple[str, str]], body: bytes, fold: bool) -> None:
    header = "From: info@shop.test\r\n"
    for name, value in fields:
        header += f"{name}: " + (value.replace("  ", "\r\n\t") if fold else value) + "\r\n"
    # a line of white space alone continues nothing for some, and ends the header for others
    assume(not re.search(r"(?m)^[ \t]+\r$", header))
    # a body leaves with CRLF at its end; without one dkimpy takes white space that was all of it for text
    content = header.encode("utf-8") + b"\r\n" + body + (b"\r\n" if body else b"")
    assert verified(signer.sign(content, "shop.test") + content) == BOTH


def broken(signer: Signer, before: bytes, after: bytes, content: bytes = MAIL) -> bool:
    """Whether this change breaks every signature."""
    signed = signer.sign(content, "shop.test") + content
    assert verified(signed) == BOTH
    changed = signed.replace(before, after, 1)
    assert changed != signed
    failures = 0
    for index in range(2):
        try:
            check(changed, index)
        except (InvalidSignature, AssertionError, dkim.DKIMException):
            failures += 1
    return failures == 2


def test_what_is_covered_cannot_be_changed(signer: Signer) -> None:
    content = (
        b"List-Unsubscribe: <https://shop.test/u/1>\r\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n"
        b"Message-ID: <1@shop.test>\r\nDate: Thu, 1 Jan 1970 00:00:00 +0000\r\nX-Free: 1\r\n" + MAIL
    )
    for before, after in (
        (b"Hello.", b"Hallo."),
        (b"Subject: hello", b"Subject: hallo"),
        (b"shop.test/u/1", b"shop.test/u/2"),
        (b"=One-Click", b"=Two-Click"),
        (b"<1@shop.test>", b"<2@shop.test>"),
        (b"Jan 1970", b"Jan 1971"),
        # oversigned: another From on top, which some programs show instead
        (b"List-Unsubscribe:", b"From: evil@x.test\r\nList-Unsubscribe:"),
    ):
        assert broken(signer, before, after, content), before
    signed = signer.sign(content, "shop.test") + content
    assert verified(signed.replace(b"X-Free: 1", b"X-Free: 2")) == BOTH
    assert verified(b"Received: from a by b; now\r\nReturn-Path: <x@y>\r\n" + signed) == BOTH


def test_tags_and_folding(signer: Signer) -> None:
    content = b"Received: from x by y; now\r\nReturn-Path: <a@b>\r\n" + MAIL
    signature = signer.sign(content, "shop.test")
    assert signature.endswith(b"\r\n")
    assert signature.count(b"DKIM-Signature:") == 2
    assert max(len(line) for line in signature.split(b"\r\n")) <= 78
    tags = dkim.parse_tag_value(signature[len(b"DKIM-Signature:") : signature.rindex(b"DKIM-Signature:")])
    assert tags[b"t"] == b"1700000000"
    assert (tags[b"d"], tags[b"s"], tags[b"c"], tags[b"a"]) == (b"shop.test", b"rsa", b"relaxed/relaxed", b"rsa-sha256")
    assert b"l" not in tags
    names = re.sub(rb"\s", b"", tags[b"h"]).split(b":")
    assert names.count(b"from") == 2
    assert not {b"received", b"return-path"} & set(names)


def test_the_key_of_the_from_domain_or_of_the_nearest_parent() -> None:
    keys = [load_key(config("shop.test", "ed25519", "a")), load_key(config("mail.shop.test", "ed25519", "b"))]
    signer = Signer(keys, lambda: NOW)
    chosen = {
        domain: [key.selector for key in signer.keys_for(domain)]
        for domain in ("shop.test", "x.shop.test", "mail.shop.test", "a.b.mail.shop.test", "test", "", "othershop.test")
    }
    assert chosen == {
        "shop.test": ["a"],
        "x.shop.test": ["a"],
        "mail.shop.test": ["b"],
        "a.b.mail.shop.test": ["b"],
        "test": [],
        "": [],
        "othershop.test": [],
    }
    assert b"d=shop.test;" in signer.sign(MAIL, "x.shop.test")


def test_without_key_or_from_nothing_is_signed(signer: Signer) -> None:
    assert signer.sign(MAIL, "other.test") == b""
    assert signer.sign(MAIL, "") == b""
    assert signer.sign(b"Subject: x\r\n\r\nx\r\n", "shop.test") == b""


async def test_the_pool_signs_big_mail_in_a_thread_with_the_same_result(signer: Signer) -> None:
    big = MAIL + b"line of text \t x\r\n" * 100_000
    pool = SigningPool(signer)
    try:
        assert await pool.signed(MAIL, "shop.test") == (b"", signer.sign(MAIL, "shop.test") + MAIL)
        front, content = await pool.signed(big, "shop.test")
        assert front == signer.sign(big, "shop.test")
        assert content is big  # there is no second copy of it
        assert await pool.signed(MAIL, "other.test") == (b"", MAIL)
    finally:
        pool.close()
    assert await pool.signed(big, "shop.test") == (signer.sign(big, "shop.test"), big)


async def test_a_long_header_is_signed_in_a_thread_however_small_the_mail(
    signer: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    where: list[bool] = []
    sign = signer.sign

    def watched(content: bytes, domain: str) -> bytes:
        where.append(threading.current_thread() is threading.main_thread())
        return sign(content, domain)

    monkeypatch.setattr(signer, "sign", watched)
    pool = SigningPool(signer)
    header, empty, body = MAIL.partition(b"\r\n\r\n")
    long = header + b"\r\nX: y" * 4000 + empty + body
    try:
        assert b"".join(await pool.signed(long, "shop.test")) == sign(long, "shop.test") + long
        assert b"".join(await pool.signed(MAIL + b"x" * 20_000, "shop.test")).endswith(b"x" * 20_000)
    finally:
        pool.close()
    assert where == [False, True]


def test_keys_that_cannot_sign_are_named(tmp_path: Path) -> None:
    bad = tmp_path / "bad.pem"
    for text in ("", "no key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"):
        bad.write_text(text)
        with pytest.raises(DKIMKeyError, match=r"bad\.pem"):
            load_key(DKIMKey(domain="x.test", selector="s", key=bad))
    with pytest.raises(DKIMKeyError, match=r"missing\.pem"):
        load_key(DKIMKey(domain="x.test", selector="s", key=tmp_path / "missing.pem"))


def test_a_key_shows_no_secret() -> None:
    assert repr(load_key(config("shop.test", "rsa"))) == "LoadedKey(rsa._domainkey.shop.test, rsa-sha256)"
