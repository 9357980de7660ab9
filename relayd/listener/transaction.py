"""MAIL, RCPT, DATA, BDAT and RSET: one mail from its envelope to intake's answer.

Who may send what to whom is intake's decision; here are order, syntax, and the reception of content.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from relayd.core.mail import Envelope, Recipient
from relayd.core.reply import Reply
from relayd.intake.memory import SMALL
from relayd.listener import replies
from relayd.listener.content import ChunkReader, Content, DotReader, Fault, hides_end
from relayd.listener.ends import Goodbye, Refused
from relayd.listener.observer import ListenerRefusal
from relayd.listener.parameters import parse_mail, parse_rcpt
from relayd.listener.stream import Stream, Work

if TYPE_CHECKING:
    from relayd.intake.session import ClientSession
    from relayd.listener.server import ListenerServer

OVERSIZE_FACTOR = 4
"""A message that is refused already is read on to its end, but not beyond so many times the largest size."""
RECIPIENT = 256
"""Octets of memory that a recipient takes besides its address and parameters."""
SMALL_CHUNK = 1024
"""Chunks below so many octets count as commands without a mail: nobody sends a message by the octet."""

_SENDER_OK = replies.SENDER_OK.wire()
_RECIPIENT_OK = replies.RECIPIENT_OK.wire()
_START_MAIL = replies.START_MAIL.wire()

_FAULTS = {
    Fault.SIZE: (replies.TOO_BIG, ListenerRefusal.MESSAGE_SIZE),
    Fault.MEMORY: (replies.NO_MEMORY, ListenerRefusal.MEMORY),
    Fault.BARE_NEWLINE: (replies.BARE_NEWLINE, ListenerRefusal.BARE_NEWLINE),
    Fault.LINE: (replies.LONG_LINE, ListenerRefusal.LINE_LENGTH),
}


class _Chunk(NamedTuple):
    """What a BDAT command says of the octets behind it."""

    size: int
    last: bool
    wrong: Reply | None
    """Why they are refused; they come all the same."""


_NO_CHUNK = _Chunk(0, True, None)
"""Stands for the content of DATA."""


class Transaction(Stream):
    """The part of a connection that is about one mail."""

    __slots__ = (
        "_chunk",
        "_chunk_failed",
        "_chunks",
        "_content",
        "_envelope",
        "_incoming",
        "_recipients",
        "_reserved",
        "_tried",
        "client",
    )

    client: ClientSession

    def __init__(self, server: ListenerServer) -> None:
        super().__init__(server)
        self._envelope: Envelope | None = None
        self._recipients: list[Recipient] = []
        self._reserved = 0  # octets of memory, for the recipients
        self._tried = False  # a RCPT was refused
        self._content: Content | None = None  # of the open mail, or chunks that are refused
        self._incoming: DotReader | ChunkReader | None = None  # reads what comes now; None: commands come
        self._chunks: ChunkReader | None = None  # of all chunks of the open mail
        self._chunk = _NO_CHUNK  # what comes now; for DATA this
        self._chunk_failed = False

    # --- what the rest of the connection gives

    def unproductive(self) -> None:
        """Count a command that brings no mail forward. Raises Goodbye after too many."""
        raise NotImplementedError

    def mail_accepted(self) -> None:
        """A mail was kept: the counts of errors and unproductive commands begin again."""
        raise NotImplementedError

    # --- state

    @property
    def at_rest(self) -> bool:
        """No mail is open."""
        return self._envelope is None

    def reset_transaction(self) -> None:
        """Forget envelope, recipients and chunks."""
        if self._envelope is not None:
            self._envelope = None
            self.server.company.forget(self)
        self._recipients = []
        if self._reserved:
            self.server.door.memory.forget(self._reserved)
            self._reserved = 0
        self._tried = False
        self._chunks = self._incoming = None
        self._chunk_failed = False
        if self._content is not None:
            self._content.drop()
            self._content = None

    def smtp_RSET(self, arg: str) -> Reply:
        """RFC 5321 4.1.1.5."""
        self.unproductive()
        if arg:
            raise Refused(replies.NO_ARGUMENT)
        self.reset_transaction()
        return replies.OK

    # --- envelope

    def smtp_MAIL(self, arg: str) -> Reply | None:
        """RFC 5321 4.1.1.2."""
        self.unproductive()
        client = self.client
        if not client.helo:
            raise Refused(replies.HELLO_FIRST)
        if self._envelope is not None:
            raise Refused(replies.MAIL_OPEN)
        envelope, size = parse_mail(arg, esmtp=client.esmtp)
        refused = self.server.door.mail(client, envelope, size)
        if refused is not None:
            return refused
        self._envelope = envelope
        self.server.company.expect(self)
        self.send(_SENDER_OK)
        return None

    def smtp_RCPT(self, arg: str) -> Reply | None:
        """RFC 5321 4.1.1.3. Only recipients that are accepted bring a mail forward."""
        envelope, recipients = self._envelope, self._recipients
        if envelope is None:
            self.unproductive()
            raise Refused(replies.MAIL_FIRST)
        if self._chunks is not None or self._chunk_failed:
            self.unproductive()
            raise Refused(replies.CHUNKING)
        server, client = self.server, self.client
        try:
            recipient = parse_rcpt(arg, server.hostname, esmtp=client.esmtp, utf8=envelope.smtputf8)
        except Refused:
            self._tried = True
            self.unproductive()
            raise
        refused = server.door.rcpt(client, envelope, recipient, len(recipients))
        if refused is not None:
            self._tried = True
            self.unproductive()
            return refused
        octets = RECIPIENT + len(arg)
        if not server.door.memory.reserve(octets, self._reserved):
            self._tried = True
            self.unproductive()
            raise Refused(replies.NO_MEMORY, ListenerRefusal.MEMORY)
        self._reserved += octets
        recipients.append(recipient)
        server.company.expect(self)
        self.send(_RECIPIENT_OK)
        return None

    def _out_of_order(self) -> Reply | None:
        if self._envelope is None:
            return replies.MAIL_FIRST
        if not self._recipients:
            return replies.NO_RECIPIENT if self._tried else replies.RCPT_FIRST
        return None

    # --- content

    def smtp_DATA(self, arg: str) -> None:
        """RFC 5321 4.1.1.4. What was sent behind DATA without waiting for 354 is content, or else ends the session."""
        wrong = replies.NO_ARGUMENT if arg else self._out_of_order()
        if wrong is None and (self._chunks is not None or self._chunk_failed):
            wrong = replies.CHUNKING
        if wrong is not None:
            self.unproductive()
            if self.pending:  # it would be read as commands
                self.send(wrong.wire())
                raise Goodbye(replies.TOO_EARLY, ListenerRefusal.EARLY_TALKER)
            raise Refused(wrong)
        self.send(_START_MAIL)
        self._content = self._new_content()
        self._expect(DotReader(self._content), _NO_CHUNK)

    def smtp_BDAT(self, arg: str) -> None:
        """RFC 3030: a chunk of the message. Its octets are taken off the stream even where it is refused."""
        size, last = self._chunk_of(arg)
        if size < SMALL_CHUNK and not last:
            self.unproductive()
        wrong = replies.CHUNK_FAILED if self._chunk_failed else self._out_of_order()
        if wrong is not None:
            self.unproductive()
            self._content = Content(self.server.rules, _nothing_fits, self.server.door.memory.forget)
            reader = ChunkReader(self._content)
        elif self._chunks is None:
            self._content = self._new_content()
            self._chunks = reader = ChunkReader(self._content)
        else:
            reader = self._chunks
        reader.expect(size)
        self._expect(reader, _Chunk(size, last, wrong))

    def _chunk_of(self, arg: str) -> tuple[int, bool]:
        size, _, last = arg.partition(" ")
        well = size.isascii() and size.isdecimal() and len(size) <= 20 and last.upper() in ("", "LAST")
        if not well:  # nobody knows where the chunk ends, so nothing after it can be read as commands
            raise Goodbye(replies.BAD_CHUNK, ListenerRefusal.COMMAND)
        if int(size) > OVERSIZE_FACTOR * self.server.limits.message_size:
            raise Goodbye(replies.TOO_BIG, ListenerRefusal.MESSAGE_SIZE)
        return int(size), bool(last)

    def _new_content(self) -> Content:
        memory = self.server.door.memory
        return Content(self.server.rules, memory.reserve, memory.forget)

    def _expect(self, reader: DotReader | ChunkReader, chunk: _Chunk) -> None:
        self._incoming, self._chunk = reader, chunk
        self.begin_content()
        self._came_further()

    def _came_further(self) -> None:
        if self._envelope is not None:  # chunks may come without a mail
            self.server.company.expect(self)

    def receive(self) -> bool:
        """Take what is there of a message or chunk; whether that is the whole. Raises Goodbye for one without end."""
        reader, content = self._incoming, self._content
        assert reader is not None  # noqa: S101 - else commands come …
        assert content is not None  # noqa: S101 - … and a reader has its content
        data = self.take_input()
        self.progress(len(data))
        used = reader.feed(data)
        if used < 0:
            if content.received > OVERSIZE_FACTOR * self.server.limits.message_size:
                raise Goodbye(*_FAULTS[content.fault or Fault.SIZE])
            if content.received <= SMALL:
                self._came_further()
            else:
                self.server.company.forget(self)
            return False
        self.give_back(data, used)
        self._incoming = None
        self.end_content()
        return True

    def received(self) -> Work | None:
        """What follows a message or chunk that is whole. Raises Refused."""
        chunk, reader, content = self._chunk, self._chunks, self._content
        if chunk is _NO_CHUNK:
            return self._deliver
        if chunk.wrong is not None:
            self._content = None
            if chunk.last:
                self.reset_transaction()
            else:
                self._chunk_failed = not self.at_rest
            raise Refused(chunk.wrong)
        assert reader is not None  # noqa: S101 - BDAT has made it, …
        assert content is not None  # noqa: S101 - … with its content
        if chunk.last:
            reader.finish()
            return self._deliver
        if content.fault is not None:
            self._chunks, self._content, self._chunk_failed = None, None, True
            raise Refused(*_FAULTS[content.fault])
        self.send(b"250 2.0.0 %d octets received\r\n" % chunk.size)
        return None

    async def _deliver(self) -> Reply:
        """Hand a whole message to intake; returns what intake says. The mail is over, whatever that is."""
        envelope, recipients, content = self._envelope, self._recipients, self._content
        assert envelope is not None  # noqa: S101 - DATA and BDAT have checked the order …
        assert content is not None  # noqa: S101 - … and made the content
        self._content = None
        try:
            self.reset_transaction()
            if content.fault is not None:
                self.unproductive()
                raise Refused(*_FAULTS[content.fault])
            door, pieces = self.server.door, content.pieces()
            if content.has_nul:
                pieces = [await door.joiner.joined(pieces)]
                if await asyncio.to_thread(hides_end, pieces[0]):
                    self.unproductive()
                    raise Refused(replies.HIDDEN_END, ListenerRefusal.BARE_NEWLINE)
            first = pieces.pop(0) if pieces else b""
            reply = await door.submit(self.client, envelope, recipients, first, pieces)
        finally:
            content.drop()
        if reply.positive:
            self.client.mails += 1
            self.mail_accepted()
            if content.long_lines:
                self.server.observer.long_lines(self.server.listener.name, content.long_lines)
        else:
            self.unproductive()
        return reply


def _nothing_fits(octets: int, held: int) -> bool:
    return False
