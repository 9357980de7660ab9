"""Trial: texts that try to break out, from clients and from an upstream, looked for wherever they come out again.

A whole daemon. Clients put them into EHLO, addresses, parameters, header fields and what a proxy says; a hostile upstream
puts them into its replies, which end up in reports to senders, both logs, metrics, and what commands print.
"""

# ruff: noqa: E501 - lists of words are read best in few lines
from __future__ import annotations

import asyncio
import contextlib
import email
import email.policy
import itertools
import re
import urllib.request
from collections import Counter
from typing import Any

from tests.support.cli_commands import hostile_commands
from tests.support.daemon import PATIENCE, Daemon, local, smtp_upstream
from tests.support.fake_upstream import Action, FakeUpstream
from tests.support.log_lines import STEERING
from tests.torture.trial import Context, Figures, Trial

MAILS = 15
"""In one round."""
COMMANDS = 1
"""Messages that commands are asked about, and commands with hostile arguments, in one round."""
_ATOMS = (
    b"\x1b[2J", b"\x1b]0;owned\x07", b"\0", b"\r", b"\n", b"\r\n", b"\x9b31m", b"\xc2\x9b31m", b"\xe2\x80\xae", b"\xe2\x80\xa8", b"\xc2\x85",
    b"\xff\xfe", b"\xed\xa0\x80", b"\xf0\x9f\x92\xa9", b"\x08\x08", b"\x7f", b"%s%n", b"{0}", b"${x}", b"\\n", b'"', b"<b>", b"Bcc: x@example.com",
    b"\xd9\xa1", b"5.1.\xd9\xa1", b"--=_relayd_", b"\n\nevil", b".\r\n", b"Status: 2.0.0", b"a" * 1500, b"\t", b"'", b"\xe6\x97\xa5\xe6\x9c\xac",
)  # fmt: skip
_BARE = re.compile(rb"\r(?!\n)|(?<!\r)\n")
_WIRE = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
"""What has no place in a command or a report (RFC 5321 4.1.2, RFC 5322 2.2)."""


class Hostile(FakeUpstream):
    """Answers RCPT, DATA and the dot with anything that is still a reply, more or less."""

    def __init__(self, context: Context) -> None:
        super().__init__()
        self._rng = context.rng

    def action(self, step: str) -> Action | None:
        if step not in ("RCPT", "DATA", "DOT") or self._rng.random() < 0.3:
            return None
        code = self._rng.choice((b"550", b"550", b"554 5.7.1", b"553 5.1.3", b"452 4.2.2"))
        lines = [breakout(self._rng).replace(b"\n", b"\n" + code[:3] + b" ") for _ in range(self._rng.randrange(1, 3))]
        parts = [code[:3] + b"-" + line + b"\r\n" for line in lines[:-1]] + [code + b" " + lines[-1] + b"\r\n"]
        return b"".join(parts)


def breakout(rng: Any) -> bytes:
    """A text that tries."""
    return b"".join(rng.choice(_ATOMS) for _ in range(rng.randrange(1, 6)))


class Client:
    """Sends mails in which everything that may be chosen is hostile."""

    def __init__(self, context: Context, daemon: Daemon) -> None:
        self._rng = context.rng
        self._daemon = daemon
        self._numbers = itertools.count()
        self.answers: Counter[str] = Counter()

    def text(self, *without: bytes) -> bytes:
        """Hostile, but for what would end the line, or the value."""
        made = breakout(self._rng)
        for octets in (b"\r", b"\n", *without):
            made = made.replace(octets, b"")
        return made[:200]

    async def one(self) -> None:
        """One session with one mail. Steps that are refused are tried again in an honest way."""
        number, rng = next(self._numbers), self._rng
        reader, writer = await asyncio.open_connection("127.0.0.1", self._daemon.port)
        try:
            async with asyncio.timeout(PATIENCE):
                if rng.random() < 0.1:
                    writer.write(b"PROXY UNKNOWN " + self.text() + b"\r\n")
                await _reply(reader)
                await self._either(reader, writer, b"EHLO " + self.text(), b"EHLO honest")
                await self._say(
                    reader, writer, b"XCLIENT ADDR=127.0.0.1 HELO=" + self.text(b" ") + b" NAME=" + self.text(b" ")
                )
                await self._either(reader, writer, b"EHLO " + self.text(), b"EHLO honest")
                sender = b'"%b"@example.com' % self.text(b'"', b"\\", b"\xff\xfe", b"\xed\xa0\x80")[:50]
                await self._either(
                    reader,
                    writer,
                    b"MAIL FROM:<%b> SMTPUTF8 ENVID=%b" % (sender, self.text(b" ")),
                    b"MAIL FROM:<back@example.com>",
                )
                recipient = b'"%b"@hostile.example' % self.text(b'"', b"\\", b"\xff\xfe", b"\xed\xa0\x80")[:50]
                honest = b"RCPT TO:<person%d@hostile.example>" % number
                await self._either(
                    reader, writer, b"RCPT TO:<%b> ORCPT=rfc822;%b" % (recipient, self.text(b" ")), honest
                )
                await self._say(reader, writer, honest)
                if (await self._say(reader, writer, b"DATA")).startswith("354"):
                    names = (
                        b"Subject",
                        b"From",
                        b"Message-ID",
                        b"X-Relay-Campaign",
                        b"X-Label",
                        b"To",
                        b"Content-Type",
                    )
                    fields = b"".join(name + b": " + self.text() + b"\r\n" for name in names)
                    answer = await self._say(reader, writer, fields + b"\r\n" + self.text() + b"\r\n.")
                    self.answers[answer[:3]] += 1
        except ConnectionError:
            self.answers["closed"] += 1
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _either(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, hostile: bytes, honest: bytes
    ) -> None:
        if not (await self._say(reader, writer, hostile)).startswith("2"):
            await self._say(reader, writer, honest)

    async def _say(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: bytes) -> str:
        writer.write(line + b"\r\n")
        return await _reply(reader)


async def _reply(reader: asyncio.StreamReader) -> str:
    text = ""
    while line := await reader.readline():
        text += line.decode()
        if line[3:4] != b"-":
            assert not STEERING.search(text.replace("\r\n", "\n")), f"a reply steers: {text!r}"
            return text
    raise ConnectionResetError


def _judge_reports(context: Context, upstream: FakeUpstream) -> None:
    for mail in upstream.mails:
        raw = mail.content
        context.promise(not _BARE.search(raw), f"a bare newline in a report: {raw[:400]!r}")
        context.promise(max(map(len, raw.split(b"\r\n"))) <= 998, "a line of a report is too long")
        head, _, rest = raw.partition(b"\r\n\r\n")
        status = rest.partition(b"delivery-status\r\n")[2].partition(b"\r\n--=_")[0]
        for part in (head, status):
            context.promise(not _WIRE.search(part), f"a control character in a report: {part!r}")
        context.promise(b"\nBcc:" not in head and b"\nBcc:" not in status, f"a field was injected: {raw[:400]!r}")
        message = email.message_from_bytes(raw, policy=email.policy.default)
        first = next(message.iter_parts(), None)
        context.promise(first is not None, f"a report that is none: {raw[:400]!r}")
        if first is not None:
            text = first.get_content().replace("\r\n", "\n")
            context.promise(not STEERING.search(text), f"a report's text steers: {text!r}")


def _judge_wire(context: Context, upstream: FakeUpstream) -> None:
    for line in upstream.commands:
        context.promise(not STEERING.search(line.replace("\t", "")), f"in a command: {line!r}")
    for octets in upstream.heard:
        context.promise(not _BARE.search(octets), "a bare newline reached the upstream")


async def _judge_words(context: Context, daemon: Daemon) -> None:
    """Logs, metrics and what commands print."""
    said = daemon.everything_said()
    found = STEERING.search(said)
    context.promise(not found, f"in a log: {found and said[max(0, found.start() - 80) :][:160]!r}")
    context.promise(not daemon.log(level="error"), f"errors in the log: {daemon.log(level='error')[:2]}")
    url = f"http://127.0.0.1:{daemon.port_of('web')}/metrics"
    with await asyncio.to_thread(urllib.request.urlopen, url) as answer:
        context.promise(not STEERING.search(answer.read().decode()), "the metrics steer")
    ids = sorted({event["id"] for event in daemon.events("accepted")})
    asked: list[tuple[str, ...]] = [("queue", "list"), ("upstream", "show", "hostile"), ("stats",)]
    for one in context.rng.sample(ids, min(COMMANDS, len(ids))):
        asked += [
            ("message", "show", one),
            ("message", "show", one, "--json"),
            ("bounce", "explain", "--reply", said[:300]),
        ]
    for command in (*asked, *context.rng.sample(hostile_commands(), COMMANDS)):
        done = await daemon.cli(*command)
        found = STEERING.search(done.out + done.err)
        context.promise(not found, f"{command[:2]} steers: {found}")
        fell = "Traceback" in done.err or "internal error" in done.err
        context.promise(not fell, f"{command[:2]} fell: {done.err[-500:]}")


async def _rounds(context: Context) -> Figures:
    async with Hostile(context) as hostile, FakeUpstream() as honest:
        config = {
            "listeners": [local(proxy_protocol=["127.0.0.0/8"])],
            "upstreams": {
                "hostile": smtp_upstream(hostile, storm={"replies": 0}),
                "honest": smtp_upstream(honest),
            },
            "routes": [
                {"match": {"recipient_domain": "hostile.example"}, "upstream": "hostile"},
                {"upstream": "honest"},
            ],
            "web": {"bind": ["127.0.0.1:0"]},
            "log": {"format": "json", "level": "debug"},
        }
        async with Daemon(context.directory, config) as daemon:
            client = Client(context, daemon)
            for _ in context.rounds():
                for _ in range(MAILS):
                    await client.one()
                await daemon.until(lambda: len(honest.mails) >= client.answers["250"] // 4, "reports come")
                _judge_reports(context, honest)
                _judge_wire(context, hostile)
                await _judge_words(context, daemon)
            bounced = len(daemon.events("bounced"))
            await daemon.stop()
            context.promise(daemon.audit().clean, "the audit is not clean")
            figures = {f"answered {code}": number for code, number in sorted(client.answers.items())}
            return {"mails": client.answers.total(), "bounced": bounced, "reports read": len(honest.mails)} | figures


TRIAL = Trial(
    "injection", 3, "No text of a peer breaks out of its place: on the wire, in reports, logs, terminals.", _rounds
)
