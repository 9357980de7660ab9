"""One connection as octets: input, replies, time-outs and the ways it ends. What the octets mean is its subclasses'.

aiosmtpd's SMTP is a stream protocol with one timer per command, a drain per reply, and a handler that is cancelled
when the client goes. Here input is one buffer without a StreamReader in between, commands are obeyed where their octets
arrive and the session's task is woken only for what takes time, replies go out together when input is awaited, one
lazily re-armed timer serves the whole session, and nothing is ever cancelled because a client left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from relayd.core.reply import Reply
from relayd.listener import replies
from relayd.listener.deadlines import Deadlines, Phase
from relayd.listener.ends import Gone, Goodbye, Refused
from relayd.listener.observer import ListenerRefusal
from relayd.listener.turnstile import MUCH

if TYPE_CHECKING:
    from relayd.listener.server import ListenerServer

HIGH_WATER = 65536
"""Octets of unread input above which the client has to wait."""
LINE_MAX = 12288
"""Octets of the longest line of any command (AUTH, RFC 4954 4)."""
SKIP_MAX = 65536
"""Octets of an over-long line that are skipped before the client is shown out."""
REPLIES_MAX = 64
"""Replies that wait for being written together."""
LINGER = 2.0
"""Seconds for a client to read our last reply: closing at once, with its input unread, would destroy it."""

HURRY = 0.2
"""Seconds for the same where somebody else waits for the place."""


Work = Callable[[], Awaitable[Reply | None]]
"""What takes time, so that only the session's task can do it; its answer, where it has one, is said to the client."""


def begins_tls(octets: bytes) -> bool:
    """A TLS or SSLv2 hello, which comes where somebody takes a plain port for one with TLS. No command begins so."""
    return octets[:1] == b"\x16" or octets[:1] >= b"\x80"


class Stream(Deadlines):
    """A connection of one client. Owned by the ListenerServer until the socket is gone and the task has ended."""

    __slots__ = (
        "_eof",
        "_input",
        "_out",
        "_parked",
        "_position",
        "_queued",
        "_skipped",
        "_stop",
        "_waiter",
        "_writable",
        "reading",
        "task",
    )

    def __init__(self, server: ListenerServer) -> None:
        super().__init__(server)
        self.task: asyncio.Task[None] | None = None
        self._input = b""
        self._position = 0
        self._skipped = 0
        self._eof = False
        self.reading = True
        self._queued = False  # at the turnstile
        self._parked: asyncio.Future[Work] | None = None  # the task waits for something to do
        self._waiter: asyncio.Future[None] | None = None  # the task is at work, and waits for more input
        self._writable: asyncio.Future[None] | None = None
        self._stop: Exception | None = None
        self._out: list[bytes] = []

    # --- what asyncio calls

    def data_received(self, data: bytes) -> None:
        """Take input: obey it, wake the task if it waits for it, or make the client wait."""
        if self.phase is Phase.CLOSING:
            return
        if len(data) > MUCH and not self._queued:
            self._queued = True
            self.hold_back()
            self.server.turnstile.queue(self)
        if self._position < len(self._input):
            data = self._input[self._position :] + data
        self._input = data
        self._position = 0
        if self._parked is not None:
            self._obey_for(self._parked)
        elif self._waiter is not None:
            waiter, self._waiter = self._waiter, None
            if not waiter.done():
                waiter.set_result(None)
        elif len(data) > HIGH_WATER and self.reading:
            self.hold_back()

    def _obey_for(self, parked: asyncio.Future[Work]) -> None:
        """Obey input while the task waits: to wake it for a command costs more than most commands do."""
        if parked.done():  # the task was cancelled just now
            return
        try:
            work = self.obey()
        except Exception as reason:  # noqa: BLE001 - an end, or a fault: the task's run() tells them apart
            self._parked = None
            parked.set_exception(reason)
        else:
            if work is not None:
                self._parked = None
                parked.set_result(work)

    def obey(self) -> Work | None:
        """Obey the input that is there, and answer it.

        Returns what the task has to do before more of it can be obeyed; None when the client is to send more first.
        Raises Goodbye.
        """
        raise NotImplementedError

    def eof_received(self) -> bool:
        """The client sends no more: what it sent is still answered (not so over TLS, which cannot be half closed)."""
        self._eof = True
        if self.phase is Phase.CLOSING:
            return False
        self._fail(Gone())  # whoever waits has obeyed all that came before
        return self.wire.get_extra_info("ssl_object") is None

    def pause_writing(self) -> None:
        """The client does not read: replies wait."""
        self._paused = True

    def resume_writing(self) -> None:
        """It reads again."""
        self._paused = False
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        """The socket is gone. The session's task ends by itself: a commit under way must not be cancelled."""
        if self.lost:
            return
        self.lost = True
        self._out.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.interrupt(Gone())

    # --- input

    def _fail(self, reason: Exception) -> None:
        """Raise this in the task where it waits for input."""
        for future in (self._parked, self._waiter):
            if future is not None and not future.done():
                future.set_exception(reason)
        self._parked = self._waiter = None

    @property
    def pending(self) -> bool:
        """Whether input is there that no one has looked at."""
        return self._position < len(self._input)

    def discard_input(self) -> None:
        """Forget what was received in an earlier, less trusted state (RFC 3207 4.2)."""
        self._input = b""
        self._position = 0

    def hold_back(self) -> None:
        """Leave further input in the kernel, so that the client has to wait."""
        if not self.wire.is_closing():  # uvloop raises where asyncio shrugs
            self.reading = False
            self.wire.pause_reading()

    def go_on_reading(self) -> None:
        """Take input again."""
        if not self.reading and not self._queued and not self.wire.is_closing():
            self.reading = True
            self.wire.resume_reading()

    def read_in_turn(self) -> None:
        """Its turn has come, after it sent much at once (Turnstile): read on, unless what is there is much still."""
        self._queued = False
        if len(self._input) - self._position <= HIGH_WATER:
            self.go_on_reading()

    def take_input(self) -> bytes:
        """All input that is there."""
        data = self._input[self._position :] if self._position else self._input
        self.discard_input()
        return data

    def give_back(self, data: bytes, used: int) -> None:
        """Put back what was taken, but for its first octets. Nothing may have been awaited in between."""
        if used < len(data):
            self._input, self._position = data, used

    async def work(self) -> Work:
        """Wait for something to do that `obey` cannot. Raises Gone, or Goodbye when time is up or we are stopping."""
        self._check_end()
        parked: asyncio.Future[Work] = self.loop.create_future()
        self._parked = parked
        return await parked

    async def more(self) -> None:
        """Wait for input, having written the replies. Raises as `work` does."""
        self.flush()
        if self._paused:
            await self._until_writable()
            return  # for what has come meanwhile
        self._check_end()
        self._waiter = waiter = self.loop.create_future()
        await waiter

    def _check_end(self) -> None:
        if self._stop is not None:
            raise self._stop
        if self._eof:
            raise Gone
        self.go_on_reading()

    def next_line(self) -> bytes | None:
        """The next line with its line end; None when none is whole. Raises Refused for one that was too long."""
        data, position = self._input, self._position
        end = data.find(b"\n", position) + 1
        if not end:
            self._unfinished(data, position)
            return None
        if end == len(data):
            line = data[position:]
            self._input, self._position = b"", 0
        else:
            line = data[position:end]
            self._position = end
        if self._skipped or len(line) > LINE_MAX:
            self._skipped = 0
            self.line_taken()  # the next one has its own time
            raise Refused(replies.LINE_TOO_LONG, ListenerRefusal.COMMAND_LINE)
        return line

    def _unfinished(self, data: bytes, position: int) -> None:
        waiting = len(data) - position
        if not waiting:
            return
        if begins_tls(data[position : position + 1]):  # there may be no line end to wait for
            raise Goodbye(replies.TLS_TO_PLAIN, ListenerRefusal.PROTOCOL)
        if self._skipped or waiting > LINE_MAX:
            self._skipped += waiting
            self.discard_input()
            if self._skipped > SKIP_MAX:
                raise Goodbye(replies.LINE_TOO_LONG, ListenerRefusal.COMMAND_LINE)

    async def line(self) -> bytes:
        """The next line, for a task that is at work. It has to be whole in time, as those of commands."""
        line = self.next_line()
        if line is None:
            self.expect_line()
            while line is None:
                await self.more()
                line = self.next_line()
            self.line_taken()
        return line

    # --- replies

    def send(self, octets: bytes) -> None:
        """Queue a reply's octets; they go out when input is awaited, together with those of other commands."""
        self._out.append(octets)
        if len(self._out) > REPLIES_MAX:
            self.flush()

    def flush(self) -> None:
        """Write the replies that wait."""
        out = self._out
        if out and not self.lost and not self.wire.is_closing():
            self.wire.write(out[0] if len(out) == 1 else b"".join(out))
        out.clear()

    def rest(self) -> Work | None:
        """All input is obeyed: write the replies, and give the client its time for more. Returns as `obey` does."""
        if self._out:
            self.flush()
        if self.phase is Phase.OURS:
            self.expect_line()
        return self.read_by_client if self._paused else None

    async def read_by_client(self) -> None:
        """Wait until the client, which lets our replies pile up, has read enough of them.

        It has the time that a line may take, its next line included, or the next octets of a message.
        """
        if self.phase is Phase.OURS:
            self.expect_line()
        await self._until_writable()

    async def _until_writable(self) -> None:
        if not self._paused:
            return
        if self._stop is not None:
            raise self._stop
        self._writable = self.loop.create_future()
        try:
            await self._writable
        finally:
            self._writable = None

    # --- ends

    def interrupt(self, reason: Exception) -> None:
        """Raise this in the session's task where it waits for the client, or as soon as it does."""
        if self._stop is None or isinstance(reason, Gone):
            self._stop = reason
        if self._writable is not None and not self._writable.done():
            self._writable.set_exception(reason)
        self._fail(reason)

    def close(self, reply: Reply | None) -> None:
        """Send the last reply and close, leaving the client a moment to read it."""
        if self.lost or self.phase is Phase.CLOSING:
            return
        if self._paused or self.wire.is_closing():
            self.wire.abort()
            return
        if reply is not None:
            self._out.append(reply.wire())
        self.flush()
        self.phase = Phase.CLOSING
        self.discard_input()
        if reply is None or reply is replies.BYE or self._eof or not self.wire.can_write_eof():
            self.wire.close()
            if not self.wire.get_write_buffer_size() and self.wire.get_extra_info("ssl_object") is None:
                return  # nothing is left to wait for: the socket is gone in the next turn of the loop
        else:
            self.wire.write_eof()
            self.go_on_reading()
        self.end_within(LINGER)

    def hurry_out(self, reply: Reply) -> None:
        """Close without waiting for anything; the session's task ends once the socket is gone."""
        if self._paused or self.wire.is_closing():
            self.wire.abort()
            return
        self.wire.write(reply.wire())
        self.phase = Phase.CLOSING
        self.discard_input()
        self.wire.close()
        self.end_within(HURRY)
