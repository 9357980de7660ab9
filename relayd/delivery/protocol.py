"""aiosmtplib's protocol with strict replies, several for one write, one timer, and nothing believed before its time.

It moves octets and counts replies. What replies mean is smtp.py's and core/classify.py's.
"""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import Coroutine, Sequence
from typing import Any, cast

from aiosmtplib.errors import SMTPException, SMTPReadTimeoutError, SMTPServerDisconnected
from aiosmtplib.protocol import COMMAND_INJECTION_REGEX, FlowControlMixin, SMTPProtocol
from aiosmtplib.response import SMTPResponse

from relayd.delivery.dialogue import Dialogue
from relayd.delivery.dots import CHUNK, piece, stuffed

MAX_LINE = 8192
"""Octets of one reply line (RFC 5321 4.5.3.1.5 asks for 512; real ones are longer)."""
MAX_LINES = 200
MAX_REPLY = 65536
_GROUPED = 4096

RawReply = tuple[int, bytes]
"""Code and text, lines joined by LF."""

# two-to-five-hundreds only: a 1yz reply has no place in SMTP
_CODES = {b"%d" % code: code for code in range(200, 600)}


class MalformedReplyError(SMTPException):
    """The peer broke the protocol: no code, mixed codes, a line or reply without end, a reply that nobody asked for."""


class ReplyProtocol(SMTPProtocol):
    """One connection to an upstream. One coroutine at a time uses it.

    A failure is kept in `fault` and ends the connection at once; replies that came before it stay valid.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, greeting: bool) -> None:
        super().__init__(loop=loop)
        self.dialogue = Dialogue(loop.time)
        self.fault: SMTPException | None = None
        self.stray: RawReply | None = None
        """A reply that answers no command: the connection cannot be trusted any further."""
        self.ended = False
        """421 was said, or the connection is gone."""
        self._input = b""
        self._code = 0
        self._lines: list[bytes] = []
        self._length = 0
        # the greeting is the one reply without a command; behind implicit TLS it is asked for after the handshake
        self._awaited = 1 if greeting else 0
        self._replies: list[RawReply] = []
        self._waiter: asyncio.Future[None] | None = None
        self._lost: asyncio.Future[None] = loop.create_future()
        self._timeout = 0.0
        self._deadline = math.inf
        self._last = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._unsent_at_timeout = False
        self._dotted = False

    # connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        FlowControlMixin.connection_lost(self, exc)
        self.transport = None
        self._fail(SMTPServerDisconnected("the upstream closed the connection"))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._lost.done():
            self._lost.set_result(None)

    def eof_received(self) -> bool:
        self._fail(SMTPServerDisconnected("the upstream closed the connection"))
        return False

    def abort(self) -> None:
        """End the connection now; what is still in our buffer is not sent."""
        self.ended = True
        if self.transport is not None:
            cast(asyncio.WriteTransport, self.transport).abort()

    async def finish(self, timeout: float) -> None:
        """Close in good order, within `timeout` seconds."""
        self.ended = True
        if self.transport is not None:
            # closed twice, the TLS transport of Python 3.11.2 (Debian 12) breaks when it is aborted
            if not self.transport.is_closing():
                self.transport.close()
            await asyncio.wait([self._lost], timeout=timeout)
            self.abort()

    @property
    def clean(self) -> bool:
        """Nothing is pending in either direction: the next command's reply will be its own."""
        return not (self.ended or self.fault or self.stray or self._awaited or self._input or self._lines)

    @property
    def unsent(self) -> int:
        """Octets that we know have not left this process."""
        return 0 if self.transport is None else cast(asyncio.WriteTransport, self.transport).get_write_buffer_size()

    def _fail(self, fault: SMTPException) -> None:
        if self.fault is None:
            self.fault = fault
            if self._awaited or not isinstance(fault, SMTPServerDisconnected):
                self.dialogue.note(str(fault))
        self.abort()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        # who waits for room to write has no more reason to: the peer has said what there was to say
        for waiter in self._drain_waiters:
            if not waiter.done():
                waiter.set_result(None)

    # time: one timer a connection, moved on only when it fires

    def _arm(self, timeout: float) -> None:
        self._timeout = timeout
        self._deadline = deadline = min(self._loop.time() + timeout, self._last)
        if deadline < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = deadline
            self._timer = self._loop.call_at(deadline, self._tick)

    def _disarm(self) -> None:
        self._deadline = self._last = math.inf

    def _tick(self) -> None:
        self._timer, self._timer_at = None, math.inf
        if self._deadline is math.inf or self.ended:
            return
        if self._loop.time() >= self._deadline - 0.001:
            self._unsent_at_timeout = self.unsent > 0
            self._fail(SMTPReadTimeoutError("no answer in time"))
            return
        self._timer_at = self._deadline
        self._timer = self._loop.call_at(self._deadline, self._tick)

    # replies

    def data_received(self, data: bytes) -> None:
        if self.fault is not None:
            return
        if self._input:
            data = self._input + data
        awaited = self._awaited
        *lines, self._input = data.split(b"\n")
        for line in lines:
            if not self._line(line[:-1] if line[-1:] == b"\r" else line):
                return
        if len(self._input) > MAX_LINE:
            self._fail(MalformedReplyError("a reply line without end"))
        elif 0 < self._awaited < awaited and not self.ended:
            self._arm(self._timeout)  # some of a group came: the rest has its time from now on

    def _line(self, line: bytes) -> bool:
        """One line without its end; False when the connection is no good any more."""
        code = _CODES.get(line[:3])
        kind = line[3:4]
        if code is None or kind not in (b" ", b"-", b"") or len(line) > MAX_LINE:
            long = len(line) > MAX_LINE
            self._fail(MalformedReplyError("a reply line too long" if long else "a reply without a reply code"))
            return False
        if self._lines:
            self._length += len(line)
            if code != self._code or len(self._lines) >= MAX_LINES or self._length > MAX_REPLY:
                self._fail(
                    MalformedReplyError("a reply of mixed codes" if code != self._code else "a reply without end")
                )
                return False
            self._lines.append(line[4:])
            if kind != b"-":
                text, self._lines = b"\n".join(self._lines), []
                self._reply(code, text)
        elif kind == b"-":
            self._code, self._lines, self._length = code, [line[4:]], len(line)
        else:
            self._reply(code, line[4:])
        return True

    def _reply(self, code: int, text: bytes) -> None:
        self.dialogue.received(code, text)
        if code == 421:
            # RFC 5321 3.8: whatever it answers, the connection is over
            self.ended = True
        if not self._awaited:
            self.stray = self.stray or (code, text)
            self._wake()
            return
        # in a group nobody needs more of a reply than this; EHLO, the only long one, comes alone
        self._replies.append((code, text[:_GROUPED] if self._awaited > 1 else text))
        self._awaited -= 1
        if self.ended:
            self._wake()
        elif self._awaited == 0 and self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _begin(self, replies: int, timeout: float, total: float = math.inf) -> bool:
        """From now on so many replies are expected; False, with a fault, when one is there already."""
        self._replies = []
        if not self.clean:
            self._fail(
                MalformedReplyError("a reply that nobody asked for")
                if not self.ended
                else SMTPServerDisconnected("the upstream ended the session")
            )
            return False
        self._awaited = replies
        if total is not math.inf:
            self._last = self._loop.time() + total
        self._arm(timeout)
        return True

    async def _wait(self) -> list[RawReply]:
        if self._awaited and not self.ended:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._disarm()
        return self._replies

    def exchange(
        self, octets: bytes, replies: int, timeout: float, total: float = math.inf
    ) -> Coroutine[Any, Any, list[RawReply]]:
        """Send commands, and gather their replies when it is awaited: fewer than asked for only behind a 421 or when
        `fault` says why.

        `timeout` seconds for each reply, `total` for all. Never raises for what the peer does.
        """
        if self._begin(replies, timeout, total):
            self.dialogue.sent(octets)
            self._put(octets)
        return self._wait()

    def _put(self, octets: bytes | memoryview) -> None:
        transport = self.transport
        if transport is None or transport.is_closing():
            self._fail(SMTPServerDisconnected("the upstream closed the connection"))
            return
        transport.write(octets)  # type: ignore[attr-defined] # aiosmtplib says BaseTransport; cast() is a call for each

    async def exchange_many(self, commands: Sequence[bytes], timeout: float, total: float = math.inf) -> list[RawReply]:
        """Like `exchange` for more commands than fit one window: replies are taken while the rest is still written.

        Reading never waits for writing, so neither side can block the other (RFC 2920 3.1).
        """
        if not self._begin(len(commands), timeout, total):
            return []
        batch: list[bytes] = []
        size = 0
        for command in commands:
            batch.append(command)
            size += len(command)
            if size >= CHUNK // 4:
                await self._put_many(batch)
                batch, size = [], 0
                if self.ended or self.fault:
                    break
        await self._put_many(batch)
        return await self._wait()

    async def _put_many(self, batch: list[bytes]) -> None:
        if batch and not (self.ended or self.fault):
            octets = b"".join(batch)
            self.dialogue.sent(octets)
            self._put(octets)
            await self._flush()

    async def _flush(self) -> None:
        """Wait until the transport takes more. The running deadline ends it where the peer stops reading."""
        try:
            if self._paused:
                await self._drain_helper()
            else:
                await asyncio.sleep(0)
        except OSError:
            self._fail(SMTPServerDisconnected("the upstream closed the connection"))

    # content

    async def content(
        self, octets: bytes, progress: float, dot: float, front: bytes = b""
    ) -> tuple[bool, RawReply | None]:
        """Send a message (CRLF line ends, CRLF at the end) with dots doubled and the final dot, and take the reply.

        `front`: header fields that go ahead of it.
        The first value says whether the final dot went out; the reply is None when none came (see `fault`).
        A refusal before the dot is a reply, too. `progress`: seconds for each piece; `dot`: for the reply.
        """
        if not self.clean:
            return False, self.stray
        self._dotted = False
        size = len(front) + len(octets)
        if size <= CHUNK:
            tail = stuffed(front + octets) + b".\r\n"
        else:
            if front:
                self._put(stuffed(front))
            rest = await self._pieces(octets, progress)
            if rest is None:
                return False, self.stray
            tail = rest + b".\r\n"
        self.dialogue.content(size)
        self._awaited, self._replies = 1, []
        self._arm(dot)
        self._put(tail)
        self._dotted = True
        replies = await self._wait()
        self._dotted = False
        if replies:
            return True, replies[0]
        # what is still in our buffer includes the dot: then the message is known not to be whole over there
        return not self._unsent_at_timeout, None

    @property
    def behind_dot(self) -> bool:
        """A whole message is over there, and no reply has come yet."""
        return self._dotted and not self.unsent

    async def _pieces(self, octets: bytes, progress: float) -> bytes | None:
        """Send all but the last piece; that one comes back (with dots doubled). None when the peer spoke or went."""
        view = memoryview(octets)
        last = max(len(octets) - 1, 0) // CHUNK * CHUNK
        for start in range(0, last, CHUNK):
            self._arm(progress)
            self._put(piece(octets, view, start))
            await self._flush()
            if self.stray is not None or self.ended or self.fault:
                self._disarm()
                return None
        self._disarm()
        return bytes(piece(octets, view, last))

    # what aiosmtplib's client calls while it connects

    async def read_response(self, timeout: float | None = None) -> SMTPResponse:
        """The reply that is awaited: the greeting.

        Raises SMTPServerDisconnected, SMTPReadTimeoutError, MalformedReplyError.
        """
        self._arm(timeout or math.inf)
        return self._single(await self._wait())

    def expect_greeting(self) -> None:
        """The TLS handshake is done, the greeting follows."""
        self._awaited, self._replies = 1, []

    async def execute_command(self, *args: bytes, timeout: float | None = None) -> SMTPResponse:
        """Send one command and take its reply. Raises like `read_response`, ValueError for control characters."""
        for arg in args:
            if COMMAND_INJECTION_REGEX.search(arg):
                raise ValueError("a command must not hold control characters")
        return self._single(await self.exchange(b" ".join(args) + b"\r\n", 1, timeout or math.inf))

    def _single(self, replies: list[RawReply]) -> SMTPResponse:
        if replies:
            code, text = replies[0]
            return SMTPResponse(code, text.decode("utf-8", "replace"))
        raise self.fault or SMTPServerDisconnected("the upstream closed the connection")

    async def start_tls(
        self, tls_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> SMTPResponse:
        """STARTTLS and the handshake. The refusal, if any, is the reply; raises as `execute_command` and `secure`."""
        response = await self.execute_command(b"STARTTLS", timeout=timeout)
        if response.code == 220:
            await self.secure(tls_context, server_hostname, timeout)
        return response

    async def secure(self, context: ssl.SSLContext, name: str | None, timeout: float | None) -> None:
        """Put TLS under the connection.

        Raises MalformedReplyError when plain octets came ahead of it (they could be injected: CVE-2021-38371),
        and ssl.SSLError or OSError for a failed handshake.
        """
        if not self.clean or self.transport is None:
            self._fail(MalformedReplyError("plain text where TLS was to begin"))
            raise self.fault or SMTPServerDisconnected("the upstream closed the connection")
        try:
            transport = await self._loop.start_tls(
                cast(asyncio.WriteTransport, self.transport),
                self,
                context,
                server_side=False,
                server_hostname=name,
                ssl_handshake_timeout=timeout,
            )
        except BaseException:
            self.abort()
            raise
        if transport is None:
            raise ConnectionResetError("the connection ended in the TLS handshake")
        self.transport = transport
        self._over_ssl = True
