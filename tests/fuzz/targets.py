"""What is fuzzed: each target takes any octets and asserts what must hold of the answer. Seeds are ordinary input.

Random mutation without coverage is the trial `fuzz`; guided.py lets atheris search. What either finds becomes a test.
"""

# ruff: noqa: E501 - lists of words are read best in few lines
from __future__ import annotations

import contextlib
import re
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from relayd.config.document import parse_document
from relayd.config.load import examine
from relayd.core import headers, xtext
from relayd.core.address import AddressError, domain_of, parse
from relayd.core.author import author_domains
from relayd.core.bounce.explain import examine as examine_mail
from relayd.core.bounce.explain import explain_reply
from relayd.core.bounce.verdict import Kind as Verdicts
from relayd.core.dsn import Fate, Kind, compose
from relayd.core.lifecycle import Outcome, OutcomeKind
from relayd.core.mail import Envelope, Recipient
from relayd.core.proxy import SIGNATURE, ProxyError, parse_proxy, parse_xclient
from relayd.core.session import ConnectFailedError, Sent
from relayd.core.token import DAY, ReturnPaths, Token, derive_key, issue, verify
from relayd.core.words import decode
from relayd.domains import dmarc, spf
from relayd.inbound.imap import ImapClient, ImapError
from relayd.listener.content import hides_end
from relayd.listener.ends import Refused
from relayd.listener.parameters import parse_mail, parse_rcpt
from tests.fuzz.wire import dialogue, said, transaction
from tests.support.mail import CONTENT, make_message

NOW = 1_750_000_000_000
PACKET = b"\xff\xfe"
"""Parts the packets of a dialogue."""
SLOW = 0.4
"""Seconds of CPU for one input, some eight times what is allowed: counting coverage costs that much."""

_REPLIES = re.compile(rb"(?:(?:\d{3}-[^\r\n\x00-\x08\x1b]*\r\n)*\d{3}(?: [^\r\n\x00-\x08\x1b]*)?\r\n)*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_COMMANDS = re.compile(rb"(?:[^\r\n\0]*\r\n)*")
_BARE = re.compile(rb"\r(?!\n)|(?<!\r)\n")


@dataclass(frozen=True, slots=True)
class Target:
    """One thing that takes octets from outside."""

    one: Callable[[bytes], Awaitable[None]]
    """Try one input. Raises AssertionError, or whatever it should not, when it breaks."""
    seeds: Sequence[bytes]
    words: Sequence[bytes]
    """What mutation puts in besides noise."""


def _plain(*texts: str) -> None:
    for text in texts:
        assert not _CONTROL.search(text), f"not fit to be shown: {text!r}"
        text.encode()


async def _listener(data: bytes) -> None:
    """Every reply is well formed, none is an internal error, and what is submitted is whole and clean."""
    flags, *packets = data[:1] or b"\0", *data[1:].split(PACKET)
    written, door, _ = await dialogue(packets, normalise=bool(flags[0] & 1), proxy=bool(flags[0] & 2))
    assert _REPLIES.fullmatch(written), written
    assert b" 4.3.0 " not in written, written
    for mail in door.submissions:
        assert mail.recipients
        assert not _BARE.search(mail.content), mail.content
        assert not hides_end(mail.content)
        _plain(mail.envelope.sender, mail.helo, mail.peer, *(recipient.address for recipient in mail.recipients))
        for recipient in mail.recipients:
            parse(recipient.address, utf8=True)


async def _upstream(data: bytes) -> None:
    """An upstream may say anything: there is an outcome, no more than our commands went out, all words are plain."""
    first, _, rest = data.partition(PACKET)
    content = CONTENT + _BARE.sub(b"", first) + b"\r\n"
    written, result = await transaction(rest.split(PACKET), content)
    if isinstance(result, ConnectFailedError):
        outcomes: tuple[Outcome, ...] = (result.outcome,)
        texts = [result.transcript]
        assert result.outcome.kind is OutcomeKind.TROUBLE
        assert b"MAIL" not in written
    else:
        assert isinstance(result, Sent)
        outcomes, texts = result.outcomes, [result.transcript or ""]
        assert len(outcomes) == 2
    before, data_command, after = written.partition(b"DATA\r\n")
    assert _COMMANDS.fullmatch(before), before
    assert after.count(b"\r\n.\r\n") <= 1 or not data_command
    assert not _BARE.search(written)
    for outcome in outcomes:
        _plain(str(outcome.reply), *outcome.reply.text.split("\n"), outcome.reply.enhanced)
        _plain(*"\n".join(texts).split("\n"))
        assert outcome.reply.enhanced.isascii()
        fates = [Fate(Recipient("b@example.net"), outcome.reply, "mx.example.net", NOW)]
        report = compose(Kind.FAILED, make_message(), fates, CONTENT, hostname="relay.test", now=NOW)
        assert report.isascii()
        assert not _BARE.search(report)


async def _proxy(data: bytes) -> None:
    """However much of a header has come, the answer is the same or "more"; XCLIENT raises ValueError at most."""
    try:
        whole = parse_proxy(data)
    except ProxyError:
        whole = None
    else:
        if whole is not None:
            assert parse_proxy(data[: whole.length]) == whole
            assert all(parse_proxy(data[:size]) is None for size in range(max(1, whole.length - 3), whole.length))
    with contextlib.suppress(ValueError):
        said = parse_xclient(data.decode("utf-8", "replace"))
        _plain(said.helo or "", str(said.address))


async def _header(data: bytes) -> None:
    """The quick way finds what the careful one finds, what is shown is plain, and nothing is lost by surgery."""
    found = headers.facts(data, "X-Campaign", ("X-Label",))
    assert found == headers._facts(data, headers._walk(data), "X-Campaign", ("X-Label",))
    _plain(found.from_domain, found.subject, found.message_id, found.campaign or "", *found.labels.values())
    _plain(*found.co_authors, *author_domains(data), decode(data, 500))
    assert all(domain.isascii() for domain in (found.from_domain, *found.co_authors))
    put = b"".join(headers.assembly(data, prepend=b"Received: x\r\n", drop=("X-Campaign",)))
    assert put.startswith(b"Received: x\r\n")
    assert b"".join(headers.assembly(data)) == data
    assert headers.scan(put).fields[0][0] == b"received"


async def _bounce(data: bytes) -> None:
    """Any mail has a verdict, soon; nothing raises. DSN (RFC 3464), ARF (RFC 5965) and letters alike."""
    for verdict in examine_mail(data).verdicts:
        assert verdict.kind in Verdicts
        _plain(verdict.diagnostic, verdict.recipient, verdict.message_id, verdict.remote_mta, verdict.status)
        assert verdict.status.isascii()
        verdict.as_json()
    with contextlib.suppress(ValueError):  # it starts with no reply code
        explain_reply(data[:600].decode("utf-8", "replace"))


async def _parameters(data: bytes) -> None:
    """What MAIL and RCPT take is fit to be sent on, whatever the rest."""
    text = data.decode("utf-8", "replace")
    with contextlib.suppress(Refused):
        envelope, _ = parse_mail(text)
        _plain(envelope.sender, envelope.envid or "")
        assert not envelope.sender or parse(envelope.sender, utf8=True)
    with contextlib.suppress(Refused):
        recipient = parse_rcpt(text, "relay.test", utf8=True)
        parse(recipient.address, utf8=True)
        _plain(recipient.address, recipient.orcpt or "")
        fates = [Fate(recipient)]
        message = replace(make_message(), envelope=Envelope("a@example.com", envid=text[:100]))
        assert not _BARE.search(compose(Kind.FAILED, message, fates, None, hostname="relay.test", now=NOW))
    for read in (xtext.parse_orcpt, xtext.decode, xtext.decode_utf8):
        with contextlib.suppress(ValueError):
            read(text)
    with contextlib.suppress(AddressError):
        parse(text, utf8=True)
    domain_of(text)


_KEY = derive_key(b"a secret", "return path")
_ISSUED = issue(_KEY, Token(4711, 3), NOW + DAY)
_PATHS = ReturnPaths("bounce.example.com", b"a secret", DAY)


async def _token(data: bytes) -> None:
    """Nothing is good but what was issued, in whatever case."""
    text = data.decode("utf-8", "replace")
    for token, local in ((verify(_KEY, text, NOW), text), (_PATHS.read(text, NOW), text.rpartition("@")[0][2:])):
        assert token is None or (token == Token(4711, 3) and local.lower() == _ISSUED)
    found = _PATHS.find(data, NOW)
    assert found is None or _ISSUED.encode() in data.lower()
    _PATHS.is_role(text)


async def _config(data: bytes) -> None:
    """Every file is a configuration, or has faults with place and remedy; `!file` and `!env` find nothing here."""
    parse_document(data, Path("/nowhere"), {})
    with tempfile.TemporaryDirectory(prefix="relayd-fuzz-") as directory:
        path = Path(directory) / "relayd.yaml"
        path.write_bytes(data.replace(b"!file", b"!fill").replace(b"/", b"_"))
        examined = examine(path, {})
        assert examined.config is not None or examined.faults
        for fault in examined.faults:
            assert fault.remedy
            _plain(fault.written(path))


async def _imap(data: bytes) -> None:
    """A server may answer what it likes: there is a mail, or an error with plain words."""
    client = ImapClient(*said(data))
    with contextlib.suppress(ImapError, OSError):
        await client._greet()
    for ask in (
        lambda: client.select("INBOX"),
        lambda: client.search(6, NOW),
        lambda: client.fetch(7, 1000),
        client.logout,
    ):
        client._number = 0
        try:
            answer = await ask()
        except (ImapError, OSError) as error:
            _plain(str(error))
        else:
            assert not isinstance(answer, bytes) or len(answer) <= 1000


async def _dns(data: bytes) -> None:
    """TXT records of strangers: SPF (RFC 7208) and DMARC (RFC 7489)."""
    text = data.decode("utf-8", "replace")
    record = spf.read(text)
    wanted = ["include:_spf.example.com"]
    spf.lacking(record, wanted)
    spf.negated(record, wanted)
    spf.merge([text], wanted)
    spf.cost("example.com", text, {("example.com", "TXT"): [text]})
    dmarc.is_dmarc(text)
    dmarc.read(text)


_SMTP_WORDS = (
    b"\r\n", b"\r", b"\n", b".", b"\r\n.\r\n", b"\0", PACKET, b" ", b"<", b">", b"@", b":", b"=", b"\xc3\xa9", b'"', b"\\",
    b"EHLO a\r\n", b"MAIL FROM:<a@example.com>", b"RCPT TO:<b@example.net>", b"DATA\r\n", b"BDAT 5 LAST\r\n", b"BDAT 9\r\n",
    b"RSET\r\n", b"AUTH LOGIN\r\n", b"AUTH PLAIN AHNob3AAeA==\r\n", b"c2hvcA==\r\n", b"STARTTLS\r\n", b"XCLIENT ADDR=192.0.2.1\r\n",
    b" SIZE=5", b" BODY=8BITMIME", b" SMTPUTF8", b" RET=HDRS", b" ENVID=x+2B", b" NOTIFY=SUCCESS,FAILURE", b" ORCPT=rfc822;a+40b",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", SIGNATURE, b"QUIT\r\n", b"NOOP\r\n",
)  # fmt: skip
_REPLY_WORDS = (
    b"\r\n", b"\n", b"\r", b"-", b" ", b"\0", PACKET, b"\x1b[2J", b"\xff", b"\xd9\xa1", b"220 x", b"250 ok\r\n", b"250-", b"354 go\r\n",
    b"421 bye\r\n", b"450 4.2.0 later\r\n", b"550 5.1.1 no\r\n", b"334 \r\n", b"235 in\r\n", b"250-PIPELINING\r\n", b"250-SIZE 9\r\n",
    b"250-AUTH PLAIN LOGIN CRAM-MD5\r\n", b"250 AUTH LOGIN\r\n", b"999 x\r\n", b"2\r\n", b"5.1.\xd9\xa1",
)  # fmt: skip
_MAIL_WORDS = (
    b"\r\n", b"\r", b"\n", b" ", b"\t", b":", b"\0", b"From: a@example.com\r\n", b"from : b@example.net\r\n", b"Received: x\r\n",
    b"=?utf-8?B?5pel?=", b"=?-punycode?Q?a-b?=", b"=?iso-2022-jp?B?GyRCRnxLXBsoQg==?=", b"(", b")", b"<", b">", b",", b";", b'"', b"\\",
    b"X-Campaign: c\r\n", b"X-Label: l\r\n", b"\x1b$B", b"\xff", b"=?", b"?=", b"@", b"Message-ID: <a@b>\r\n",
    b"Content-Type: multipart/report; report-type=delivery-status; boundary=b\r\n", b"--b\r\n", b"--b--\r\n",
    b"Content-Type: message/delivery-status\r\n\r\n", b"Content-Type: message/feedback-report\r\n\r\n", b"Feedback-Type: abuse\r\n",
    b"Final-Recipient: rfc822; b@example.net\r\n", b"Action: failed\r\n", b"Status: 5.1.1\r\n", b"Diagnostic-Code: smtp; 550 5.1.1 no\r\n",
    b"Original-Rcpt-To: b@example.net\r\n", b"Content-Transfer-Encoding: base64\r\n", b"5.1.\xd9\xa1", b"550 ",
)  # fmt: skip
_YAML_WORDS = (
    b"\n", b"  ", b"- ", b": ", b"[", b"]", b"{", b"}", b", ", b"&a ", b"*a", b"!env X", b"|\n", b">", b"'", b'"', b"#", b"? ", b"1", b"-1",
    b"1e999", b"~", b"true", b"\t", b"---\n", b"\0", b"\xff", b"listeners:\n", b"upstreams:\n", b"routes:\n", b"name: x\n", b"tls: none\n",
    b"<<: ", b"10MiB", b"99999999999999999999d", b"0.0.0.0:25", b"::1", b"1.2.3.4/33", b"*@*", b"!!int ", b"!!python_object:x ",
)  # fmt: skip
_DIALOGUE = PACKET.join(
    (
        b"\0EHLO a\r\n",
        b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n",
        b"a: b\r\n\r\n..x\r\n.\r\nQUIT\r\n",
    )
)
_UPSTREAM = PACKET.join(
    (b".x\r\n.\r\n", b"220 x\r\n", b"250-x\r\n250-PIPELINING\r\n250 AUTH PLAIN\r\n", b"235 in\r\n", b"250 a\r\n250 b\r\n450 c\r\n354 d\r\n",
     b"250 2.0.0 taken\r\n", b"250 x\r\n", b"221 x\r\n")
)  # fmt: skip
_DSN = (
    b"From: MAILER-DAEMON@mx.example.net\r\nContent-Type: multipart/report; report-type=delivery-status; boundary=b\r\n\r\n"
    b"--b\r\n\r\n<b@example.net>: host mx[192.0.2.1] said: 550 5.1.1 no such user\r\n--b\r\nContent-Type: message/delivery-status\r\n\r\n"
    b"Reporting-MTA: dns; mx.example.net\r\n\r\nFinal-Recipient: rfc822; b@example.net\r\nAction: failed\r\nStatus: 5.1.1\r\n--b--\r\n"
)
_ARF = (
    b"From: fbl@example.net\r\nContent-Type: multipart/report; report-type=feedback-report; boundary=b\r\n\r\n--b\r\n\r\nA complaint.\r\n--b\r\n"
    b"Content-Type: message/feedback-report\r\n\r\nFeedback-Type: abuse\r\nVersion: 1\r\nOriginal-Rcpt-To: b@example.net\r\n--b\r\n"
    b"Content-Type: message/rfc822\r\n\r\nMessage-ID: <1@example.com>\r\n\r\nx\r\n--b--\r\n"
)
_IMAP = (
    b"* OK hello\r\n* CAPABILITY IMAP4rev1 IDLE MOVE\r\nr1 OK\r\n* OK [UIDVALIDITY 3857529045] x\r\nr1 OK [READ-WRITE]\r\n"
    b"* SEARCH 9 5 7\r\nr1 OK\r\n* 1 FETCH (UID 7 BODY[]<0> {5}\r\nhello)\r\nr1 OK\r\nr1 BYE\r\n"
)
_IMAP_WORDS = (
    b"\r\n", b"\n", b" ", b"{5}\r\n", b"{99999}\r\n", b"r1 OK\r\n", b"r1 NO [ALERT]\r\n", b"* BYE\r\n", b"* SEARCH ", b"4294967296", b"\0", b"\x1b[2J", b"\xff",
    b"* 1 FETCH (UID 7 BODY[]<0> ", b"+ go on\r\n", b"* CAPABILITY ", b"* 2 EXISTS\r\n", b")", b'""', b"9" * 50,
)  # fmt: skip
_YAML = (
    b"hostname: relay.test\nlisteners:\n  - {name: local, bind: ['127.0.0.1:2525'], tls: none, access: network, networks: [127.0.0.0_8]}\n"
    b"upstreams:\n  acme: {host: smtp.example.com, port: 587}\nroutes:\n  - {match: {sender: '*@example.com'}, upstream: acme}\n"
)
_V2 = SIGNATURE + b"\x21\x11\x00\x0c\xc0\x00\x02\x07\xc0\x00\x02\x01\x12\x67\x00\x19"

TARGETS: dict[str, Target] = {
    "listener": Target(_listener, (_DIALOGUE, b"\2" + _DIALOGUE[1:]), _SMTP_WORDS),
    "upstream": Target(_upstream, (_UPSTREAM,), _REPLY_WORDS),
    "proxy": Target(
        _proxy, (b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 25\r\n", _V2, b"ADDR=IPV6:2001:db8::7 PORT=1 HELO=a PROTO=ESMTP"), _SMTP_WORDS
    ),
    "header": Target(_header, (CONTENT,), _MAIL_WORDS),
    "bounce": Target(_bounce, (_DSN, _ARF), _MAIL_WORDS),
    "parameters": Target(
        _parameters, (b'FROM:<"a b"@example.com> SIZE=5 BODY=8BITMIME ENVID=x', b"TO:<b@example.net> NOTIFY=NEVER ORCPT=rfc822;b"), _SMTP_WORDS
    ),
    "token": Target(_token, (_ISSUED.encode(), b"b+" + _ISSUED.encode() + b"@bounce.example.com"), (b"a", b"7", b"@", b"b+", b"=", b"A")),
    "config": Target(_config, (_YAML,), _YAML_WORDS),
    "imap": Target(_imap, (_IMAP,), _IMAP_WORDS),
    "dns": Target(_dns, (b"v=spf1 include:_spf.example.com mx -all", b"v=DMARC1; p=none; pct=5"), (b" ", b";", b"=", b"include:", b"a:", b"~all", b"redirect=", b"%{d}", b"\xff")),
}  # fmt: skip


async def timed(target: Target, data: bytes) -> None:
    """Try one input, which must not take long either."""
    begun = time.process_time()
    await target.one(data)
    took = time.process_time() - begun
    assert took < SLOW, f"{took:.2f} s of CPU for {len(data)} octets"
