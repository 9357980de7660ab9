"""Mail that no one here wrote goes in by SMTP, and comes out octet for octet behind our headers, its signature good."""

from __future__ import annotations

import asyncio
import os
import re
import smtplib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from dkim import MessageFormatError, rfc822_parse

from relayd.core.headers import facts, scan
from tests.real.checks import assert_dkimpy
from tests.real.conftest import SELECTORS
from tests.support import dkim_keys, opendkim
from tests.support.capture import Capture
from tests.support.daemon import Daemon, local
from tests.support.dns import ZoneServer

pytestmark = pytest.mark.asyncio(loop_scope="module")

CORPORA = Path(os.environ.get("RELAYD_CORPORA", Path(__file__).parents[3] / "shared" / "corpora"))
FILES = sorted((CORPORA / "mime").glob("*")) if (CORPORA / "mime").is_dir() else []
ADDED = {"dkim-signature", "received", "date", "message-id"}

HANDMADE = {
    "no header": b"Just a body.\r\nSecond line: with a colon\r\n",
    "empty": b"",
    "only an empty line": b"\r\n",
    "starts with white space": b" folded nothing\r\nFrom: a@example.com\r\n\r\nbody\r\n",
    "header only": b"From: a@example.com\r\nSubject: x\r\n",
    "mbox line": b"From a@example.com Mon Jan  1 00:00:00 2024\r\nFrom: a@example.com\r\n\r\nbody\r\n",
    "dots": b"From: a@example.com\r\n\r\n.\r\n..\r\n...\r\n.a\r\n",
    "trailing empty lines": b"From: a@example.com\r\n\r\nbody \t \r\n\r\n \r\n\r\n",
    "long line": b"From: a@example.com\r\n\r\n" + b"x" * 5000 + b"\r\n",
    "8-bit": "From: a@example.com\r\nSubject: 日本語\r\n\r\n本文\r\n".encode(),
    "NUL": b"From: a@example.com\r\n\r\na\0b\r\n",
    "odd folding": b"From:\r\n a@example.com\r\nSubject:  \t two \r\n\t lines \r\nX-Empty:\r\n\r\nbody\r\n",
    "many fields": b"From: a@example.com\r\n" + b"X-Field: value\r\n" * 2000 + b"\r\nbody\r\n",
    "iso-2022-jp": "From: a@example.com\r\n\r\n半角カナ、全角\r\n".encode("iso-2022-jp"),
}


def normalised(path: Path) -> bytes:
    """As SMTP carries it: CRLF line ends only, one at the end."""
    content = re.sub(rb"\r\n|\r|\n", b"\r\n", path.read_bytes())
    return content if content.endswith(b"\r\n") else content + b"\r\n"


def mails() -> Iterator[tuple[str, bytes]]:
    yield from HANDMADE.items()
    yield from ((path.name, normalised(path)) for path in FILES)


MAILS = dict(mails())
DOMAINS = sorted({"example.com", *(facts(content).from_domain for content in MAILS.values())} - {""})


@pytest.fixture(scope="module")
def capture() -> Iterator[Capture]:
    with Capture() as running:
        yield running


@pytest.fixture(scope="module")
def keys(dns: ZoneServer) -> ZoneServer:
    """A key for every domain that mail of the corpus comes from."""
    for domain in DOMAINS:
        for kind in ("rsa", "ed25519"):
            dns.zone[f"{kind}._domainkey.{domain}"] = dkim_keys.txt_record(kind)
    return dns


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def relay(tmp_path_factory: pytest.TempPathFactory, capture: Capture) -> AsyncIterator[Daemon]:
    """A daemon that hands on to the capture server directly: Postfix would mend some of what it gets."""
    config = {
        "listeners": [local()],
        "upstreams": {"capture": {"host": "127.0.0.1", "port": capture.port, "tls": "none"}},
        "routes": [{"upstream": "capture"}],
        "dkim": [
            {"domain": domain, "selector": kind, "key": str(dkim_keys.key_file(kind))}
            for domain in DOMAINS
            for kind in ("rsa", "ed25519")
        ],
    }
    async with Daemon(tmp_path_factory.mktemp("corpus"), config) as daemon:
        yield daemon


def submit(port: int, recipient: str, content: bytes) -> None:
    """Octet for octet: what the standard library's client would mend is stuffed here."""
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        client.ehlo("client.test")
        client.mail("app@example.com", ["BODY=8BITMIME"])
        client.rcpt(recipient)
        code, _ = client.docmd("DATA")
        assert code == 354
        client.send(re.sub(rb"(?m)^\.", b"..", content) + b".\r\n")
        code, text = client.getreply()
        assert code == 250, text


@pytest.mark.parametrize("name", MAILS)
async def test_comes_out_as_it_went_in(name: str, relay: Daemon, capture: Capture, keys: ZoneServer) -> None:
    content = MAILS[name]
    recipient = f"{re.sub('[^a-z0-9]', '-', name.lower())}@example.org"
    await asyncio.to_thread(submit, relay.port, recipient, content)
    [mail] = await asyncio.to_thread(capture.wait_for, lambda mail: recipient in mail.rcpts[0])
    arrived = mail.content
    assert arrived.endswith(content)

    ours = arrived[: len(arrived) - len(content)]
    block, original = scan(ours), facts(content)
    names = [field.decode() for field, _, _ in block.fields]
    assert b"".join(ours[start:end] for _, start, end in block.fields) == ours[: block.end]
    assert set(names) <= ADDED
    assert names.count("received") == 1
    assert names.count("date") == (0 if original.has_date else 1)
    assert names.count("message-id") == (0 if original.has_message_id else 1)
    # only a message without any header gets an empty line behind ours
    assert len(ours) - block.end == (2 if not scan(content).fields and scan(content).body == 0 and content else 0)
    assert names.count("dkim-signature") == (len(SELECTORS) if original.from_domain else 0)
    if original.from_domain:
        check_signatures(arrived, original.from_domain, keys)


def check_signatures(content: bytes, domain: str, dns: ZoneServer) -> None:
    """By both verifiers, as far as each reads the message at all."""
    if b"\0" not in content:  # opendkim's test mode reads lines as C strings
        found = {(verdict.domain, verdict.selector, verdict.result) for verdict in opendkim.verdicts(content, dns)}
        assert found >= {(domain, selector, "pass") for selector in SELECTORS}
    try:
        rfc822_parse(content)
    except MessageFormatError:
        return  # dkimpy knows no white space before the colon
    assert_dkimpy(content, dns)


async def test_the_corpus_is_there_or_said_to_be_missing() -> None:
    if not FILES:
        pytest.skip(f"no corpus in {CORPORA} (RELAYD_CORPORA names it)")
    assert len(FILES) > 50
