"""The little of IMAP4rev1 (RFC 3501) that reading a mailbox of bounces takes: find, fetch, mark, move, wait by IDLE.

Which mails are fetched and what is done with them is mailboxes.py's. asyncio streams, no threads: an IDLE that is cut
off by a shutdown ends at once.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

T = TypeVar("T")

LINE_MAX = 4 * 1024**2
"""Octets of a line: a search that finds half a million mails."""
ANSWER_MAX = 32 * 1024**2
"""Octets of all that comes for one command besides the mail that was asked for; each line counts as LINE_COST more."""
LINE_COST = 200
UID_MAX = 2**32 - 1
PATIENCE = 60.0
"""Seconds to wait for the next line of an answer."""

_LITERAL = re.compile(rb"\{(\d{1,10})\}$")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class ImapError(Exception):
    """The server refused, broke off or made no sense. The words hold no secret and no control characters."""


@dataclass(slots=True)
class _Answer:
    """What came back for one command: the untagged responses, each with its literals taken out, and the last line."""

    untagged: list[tuple[bytes, list[bytes]]] = field(default_factory=list)
    last: bytes = b""


def folder_name(name: str) -> str:
    """A folder as the protocol writes it: modified UTF-7, quoted (RFC 3501 5.1.3). Raises ImapError."""
    if _CONTROL.search(name):
        raise ImapError("the name of a folder has control characters")
    out: list[str] = []
    plain: list[str] = []

    def shift() -> None:
        if plain:
            coded = base64.b64encode("".join(plain).encode("utf-16-be")).decode().rstrip("=").replace("/", ",")
            out.append(f"&{coded}-")
            plain.clear()

    for letter in name:
        if " " <= letter <= "~":
            shift()
            out.append("&-" if letter == "&" else letter)
        else:
            plain.append(letter)
    shift()
    return _quoted("".join(out))


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def date_text(at: int) -> str:
    """A day for SEARCH, from milliseconds since the epoch."""
    day = datetime.fromtimestamp(at // 1000, UTC)
    return f"{day.day}-{_MONTHS[day.month - 1]}-{day.year}"


class ImapClient:
    """One connection. Used by one coroutine at a time; every method raises ImapError, OSError or TimeoutError."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._number = 0
        self._room = ANSWER_MAX
        self.capabilities: frozenset[str] = frozenset()
        self.uidvalidity = 0
        """Of the folder that is open: where it changes, UIDs mean other mails than before."""

    @classmethod
    async def connect(cls, host: str, port: int, context: ssl.SSLContext | None, *, starttls: bool) -> ImapClient:
        """Connect, secure and read the greeting. Without a `context` nothing is secured."""
        implicit = context is not None and not starttls
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection(
                host,
                port,
                limit=LINE_MAX,
                ssl=context if implicit else None,
                server_hostname=host if implicit else None,
            )
        client = cls(reader, writer)
        try:
            await client._greet()
            if context is not None and starttls:
                await client._starttls(context, host)
        except BaseException:
            client.abort()
            raise
        return client

    def abort(self) -> None:
        """Cut the connection off."""
        self._writer.transport.abort()

    async def logout(self) -> None:
        """Take leave, where that is possible, and close, even if it is cancelled meanwhile. Raises nothing else."""
        try:
            with contextlib.suppress(ImapError, OSError, TimeoutError):
                async with asyncio.timeout(5):
                    await self._command("LOGOUT")
        finally:
            self.abort()

    # -- before a folder is open

    async def _greet(self) -> None:
        line, _ = await self._response()
        if not line.upper().startswith((b"* OK", b"* PREAUTH")):
            raise ImapError(f"no greeting: {_shown(line)}")
        await self._learn()

    async def _learn(self) -> None:
        answer = await self._command("CAPABILITY")
        words = [line.split()[2:] for line, _ in answer.untagged if line.upper().startswith(b"* CAPABILITY ")]
        self.capabilities = frozenset(word.decode("ascii", "replace").upper() for each in words for word in each)

    async def _starttls(self, context: ssl.SSLContext, host: str) -> None:
        if "STARTTLS" not in self.capabilities:
            raise ImapError("the server does not offer STARTTLS")
        await self._command("STARTTLS")
        if self._reader._buffer:  # type: ignore[attr-defined]
            # somebody on the way speaks in the server's place: it would be taken for what came under TLS
            raise ImapError("the server spoke on before TLS")
        async with asyncio.timeout(PATIENCE):
            await self._writer.start_tls(context, server_hostname=host)
        await self._learn()

    async def login(self, username: str, password: str) -> None:
        """By AUTHENTICATE PLAIN where offered, which takes any text, else by LOGIN."""
        if "AUTH=PLAIN" in self.capabilities:
            token = base64.b64encode(f"\0{username}\0{password}".encode()).decode()
            if "SASL-IR" in self.capabilities:
                await self._command(f"AUTHENTICATE PLAIN {token}", secret=True)
            else:
                await self._command("AUTHENTICATE PLAIN", secret=True, then=token)
        elif "LOGINDISABLED" in self.capabilities:
            raise ImapError("the server takes no login here: it may want TLS")
        elif not f"{username}{password}".isascii() or _CONTROL.search(f"{username}{password}"):
            raise ImapError("the server takes no such user name or password")
        else:
            await self._command(f"LOGIN {_quoted(username)} {_quoted(password)}", secret=True)
        await self._learn()

    async def make(self, folder: str) -> None:
        """See that the folder is there."""
        name = folder_name(folder)
        answer = await self._command(f'LIST "" {name}')
        if not any(line.upper().startswith(b"* LIST ") for line, _ in answer.untagged):
            await self._command(f"CREATE {name}")

    async def select(self, folder: str) -> None:
        """Open the folder."""
        answer = await self._command(f"SELECT {folder_name(folder)}")
        lines = [line for line, _ in answer.untagged]
        found = re.search(rb"\[UIDVALIDITY (\d{1,10})\]", b"\n".join(lines), re.IGNORECASE)
        if found is None:
            raise ImapError("the server does not say UIDVALIDITY")
        if answer.last.upper().find(b"[READ-ONLY]") >= 0:
            raise ImapError(f"the folder {_CONTROL.sub(' ', folder)} may only be read")
        self.uidvalidity = int(found[1])

    # -- in the folder

    async def search(self, after: int, since: int) -> list[int]:
        """UIDs of mails behind `after` that arrived on the day of `since` (ms) or later, in order."""
        answer = await self._command(f"UID SEARCH UID {after + 1}:* SINCE {date_text(since)}")
        found: set[int] = set()
        for line, _ in answer.untagged:
            if line.upper().startswith(b"* SEARCH"):
                found.update(int(word) for word in line.split()[2:] if word.isdigit() and len(word) <= 10)
        # "n:*" always holds the last mail, even where its UID is below n
        return sorted(uid for uid in found if after < uid <= UID_MAX)

    async def fetch(self, uid: int, most: int) -> bytes | None:
        """The first `most` octets of a mail, without marking it; None where it is gone."""
        answer = await self._command(f"UID FETCH {uid} BODY.PEEK[]<0.{most}>", literal_max=most)
        for line, literals in answer.untagged:
            if re.match(rb"\* \d+ FETCH ", line, re.IGNORECASE) and re.search(
                rb"\bUID %d\b" % uid, line, re.IGNORECASE
            ):
                if literals:
                    return literals[0]
                if re.search(rb'BODY\[\]<0> ""', line, re.IGNORECASE):
                    return b""
        return None

    async def mark_seen(self, uid: int) -> None:
        """Set \\Seen."""
        await self._command(f"UID STORE {uid} +FLAGS.SILENT (\\Seen)")

    async def move(self, uid: int, folder: str) -> None:
        """Move a mail, marked as seen, to another folder. Where the server can only copy, the original is deleted."""
        await self.mark_seen(uid)
        name = folder_name(folder)
        if "MOVE" in self.capabilities:
            await self._command(f"UID MOVE {uid} {name}")
            return
        await self._command(f"UID COPY {uid} {name}")
        await self._command(f"UID STORE {uid} +FLAGS.SILENT (\\Deleted)")
        if "UIDPLUS" in self.capabilities:  # a plain EXPUNGE would take along what others have marked
            await self._command(f"UID EXPUNGE {uid}")

    async def wait(self, seconds: float) -> None:
        """Return after `seconds`, or earlier where the server offers IDLE (RFC 2177) and has new mail."""
        if "IDLE" not in self.capabilities:
            await asyncio.sleep(seconds)
            return
        self._room = ANSWER_MAX
        tag = self._send("IDLE")
        line, _ = await self._response()
        while not line.startswith(b"+"):
            if line.startswith(tag):
                raise ImapError(f"IDLE was refused: {_shown(line)}")
            line, _ = await self._response()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    line = await self._line()
                    if re.match(rb"\* \d+ EXISTS", line, re.IGNORECASE):
                        break
                    if line.upper().startswith(b"* BYE"):
                        raise ImapError(f"the server said goodbye: {_shown(line)}")
        self._writer.write(b"DONE\r\n")
        await self._collect(tag, 0)

    # -- commands and answers

    def _send(self, text: str) -> bytes:
        self._number += 1
        tag = f"r{self._number}"
        self._writer.write(f"{tag} {text}\r\n".encode())
        return f"{tag} ".encode()

    async def _command(
        self, text: str, *, secret: bool = False, then: str | None = None, literal_max: int = 65536
    ) -> _Answer:
        self._room = ANSWER_MAX + literal_max
        tag = self._send(text)
        await self._in_time(self._writer.drain)
        if then is not None:
            line, _ = await self._response()
            if not line.startswith(b"+"):
                raise ImapError(f"{text.split(maxsplit=1)[0]} was refused: {_shown(line)}")
            self._writer.write(f"{then}\r\n".encode())
        answer = await self._collect(tag, literal_max)
        status = answer.last[len(tag) :].split(b" ", 1)[0].upper()
        if status != b"OK":
            # what a server says to a wrong password may repeat it
            words = "" if secret else f": {_shown(answer.last[len(tag) :])}"
            raise ImapError(f"{' '.join(text.split()[: 1 if secret else 2])} was refused{words}")
        return answer

    async def _collect(self, tag: bytes, literal_max: int) -> _Answer:
        answer = _Answer()
        while True:
            line, literals = await self._response(literal_max)
            if line.startswith(tag):
                answer.last = line
                return answer
            answer.untagged.append((line, literals))

    async def _response(self, literal_max: int = 65536) -> tuple[bytes, list[bytes]]:
        """One response: its line, literals replaced by their {length}, and the literals."""
        line, literals = await self._in_time(self._line), []
        while found := _LITERAL.search(line):
            size = int(found[1])
            if size > literal_max:
                raise ImapError(f"the server sent {size} octets where at most {literal_max} were asked for")
            literals.append(await self._in_time(lambda size=size: self._exactly(size)))  # type: ignore[misc]
            more = await self._in_time(self._line)
            line += b" " + more
            if not _LITERAL.search(more):
                break
        return line, literals

    async def _in_time(self, work: Callable[[], Awaitable[T]]) -> T:
        try:
            async with asyncio.timeout(PATIENCE):
                return await work()
        except TimeoutError:
            raise ImapError(f"the server was silent for {PATIENCE:g} s") from None

    def _take(self, octets: int) -> None:
        self._room -= octets
        if self._room < 0:
            raise ImapError("the server sends without end")

    async def _line(self) -> bytes:
        try:
            line = await self._reader.readuntil(b"\n")
            self._take(len(line) + LINE_COST)
            return line.rstrip(b"\r\n")
        except asyncio.IncompleteReadError:
            raise ImapError("the server closed the connection") from None
        except asyncio.LimitOverrunError:
            raise ImapError("the server sent a line without end") from None

    async def _exactly(self, size: int) -> bytes:
        self._take(size)
        try:
            return await self._reader.readexactly(size)
        except asyncio.IncompleteReadError:
            raise ImapError("the server closed the connection") from None


def _shown(line: bytes) -> str:
    return _CONTROL.sub(" ", line[:200].decode("utf-8", "replace"))
