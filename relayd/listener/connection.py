"""One SMTP connection: the command loop, EHLO, STARTTLS, XCLIENT, and the counts that end it.

Octets are stream.py's, time-outs deadlines.py's, beginning and end opening.py's, mail transaction.py's, AUTH
login.py's; decisions are intake's.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from functools import partial
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any

import structlog

from relayd.config.models import BareNewlines, ListenerTLS
from relayd.core.proxy import SIGNATURE, parse_xclient
from relayd.core.reply import Reply
from relayd.listener import replies
from relayd.listener.ends import Gone, Goodbye, Refused
from relayd.listener.observer import ListenerRefusal
from relayd.listener.opening import Opening
from relayd.listener.stream import LINE_MAX, Work, begins_tls

if TYPE_CHECKING:
    from relayd.listener.server import ListenerServer

LINE_STANDARD = 512
"""Octets of a command line, CRLF included (RFC 5321 4.5.3.1.4) …"""
LINE_EXTENDED = {"MAIL": 2048, "RCPT": 2048, "XCLIENT": 2048, "AUTH": LINE_MAX}
"""… and where extensions make it longer (RFC 1870, 3461, 4954, 6531, Postfix XCLIENT)."""
HELO_MAX = 255

_ORDINARY = frozenset({ListenerRefusal.IDLE, ListenerRefusal.SESSION, ListenerRefusal.DRAINING})
"""Ends that say nothing about a client: counted, and in the log at debug only."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_HELO_ODD = re.compile(r"[^A-Za-z0-9._:\[\]-]")
_HTTP = frozenset({"GET", "POST", "PUT", "HEAD", "DELETE", "OPTIONS", "CONNECT", "PATCH", "TRACE", "PRI", "HOST:"})

TURN = 256
"""Commands of one client in a row: who pipelines without end must not keep others waiting."""

_Method = Callable[[Any, str], Reply | None]
_SlowMethod = Callable[[Any, str], Awaitable[Reply | None]]


class Connection(Opening):
    """What `ListenerServer.protocol` makes for every client."""

    __slots__ = (
        "_commands",
        "_ends_at",
        "_errors",
        "_verb",
    )

    methods: dict[str, _Method]
    """Verb → method, made once for the class …"""
    slow_methods: dict[str, _SlowMethod]
    """… and those that take time: the session's task does them."""

    def __init__(self, server: ListenerServer) -> None:
        super().__init__(server)
        self._verb = ""  # of the last command, for the log
        self._errors = 0
        self._commands = 0
        self._ends_at = self._time() + server.limits.session

    # --- the session

    async def run(self) -> None:
        """The session: opening, commands, end. Raises nothing."""
        reply: Reply | None = None
        refusal: ListenerRefusal | None = None
        try:
            await self.open()
            await self._serve()
        except (Gone, ConnectionError, TimeoutError) as gone:
            gone.__traceback__ = None
        except Goodbye as goodbye:
            reply, refusal = goodbye.reply, goodbye.refusal
            goodbye.__traceback__ = None  # it holds this connection, in a circle that only a collection would break
        except Exception:  # noqa: BLE001 - whatever it is: no trace of it to the client, and the worker lives on
            structlog.get_logger("relayd.listener").exception("session failed", peer=str(self.client.peer))
            reply, refusal = replies.INTERNAL_CLOSE, ListenerRefusal.INTERNAL
        finally:
            self._stop = None
            self.reset_transaction()
            self.end_opening()
            if refusal is not None:
                self._tell(refusal, "" if reply is None else str(reply))
            self.close(reply)
            self._log_end()

    def _tell(self, refusal: ListenerRefusal, reply: str) -> None:
        client = self.client
        self.server.observer.refused(client.listener.name, refusal)
        if refusal not in _ORDINARY:
            self.server.odd(
                "session ended", peer=str(client.peer), listener=client.listener.name, reason=refusal.value, reply=reply
            )

    def _log_end(self) -> None:
        log, client = self.server.log, self.client
        if log.is_enabled_for(logging.DEBUG):
            listener, helo = client.listener.name, client.helo
            log.debug("session closed", peer=str(client.peer), listener=listener, helo=helo, mails=client.mails)

    # --- commands

    async def _serve(self) -> None:
        while True:
            work = self.obey() or await self.work()
            try:
                answer = await work()
                if answer is not None:
                    self._say(answer)
            except Refused as refused:
                self._refuse(refused)
            except (Gone, Goodbye, ConnectionError):
                raise
            except Exception:  # noqa: BLE001 - see run(); here the session can go on
                self._refuse(self._failed())

    def obey(self) -> Work | None:
        """See Stream: commands, and the octets of messages."""
        # Every command of every mail comes through here: what is looked at each time is looked at without a call.
        server = self.server
        for _ in range(TURN):
            if self._envelope is None and (server.draining or self._time() >= self._ends_at):
                raise self._too_late()
            if self._paused:
                return self.read_by_client
            try:
                if self._incoming is not None:
                    if not self.receive():
                        return self.rest()
                    work = self.received()
                else:
                    line = self.next_line()
                    if line is None:
                        return self.rest()
                    self.line_taken()
                    work = self._obey(line)
            except Refused as refused:
                self._refuse(refused)
            else:
                if work is not None:
                    return work
            if not self._input and self._incoming is None:
                return self.rest()
        return server.breathe

    def _obey(self, line: bytes) -> Work | None:
        self.server.company.heard += 1
        text = self._command(line)
        verb, _, arg = text.partition(" ")
        # ASCII only: str.upper() makes letters of SMTP from others (\u0131 is no I, \u017f no S)
        self._verb = verb = verb.upper() if verb.isascii() else verb
        if self.server.draining and self._chunks is None and not self._recipients:
            # a mail that has recipients already may be finished: its time is that of the draining
            raise self._too_late()
        method = self.methods.get(verb)
        if method is None:
            slow = self.slow_methods.get(verb)
            if slow is None:
                raise self._unknown(verb)
            return partial(slow, self, arg.strip(" "))
        try:
            answer = method(self, arg.strip(" "))
        except (Refused, Goodbye):
            raise
        except Exception:  # noqa: BLE001 - see run(); here the session can go on
            raise self._failed() from None
        if answer is not None:
            self._say(answer)
        return None

    def _failed(self) -> Refused:
        log = structlog.get_logger("relayd.listener")
        log.exception("command failed", verb=self._verb, peer=str(self.client.peer))
        self.reset_transaction()
        return Refused(replies.INTERNAL, ListenerRefusal.INTERNAL)

    def _too_late(self) -> Goodbye:
        if self.server.draining:
            return Goodbye(replies.DRAINING, ListenerRefusal.DRAINING)
        return Goodbye(replies.SESSION_OVER, ListenerRefusal.SESSION)

    def _command(self, line: bytes) -> str:
        """The command as text, without its line end. Raises Refused, and Goodbye for what is no SMTP."""
        if 2 < len(line) <= LINE_STANDARD and line.isascii() and line.endswith(b"\r\n"):
            text = line[:-2].decode("ascii")
            if text.isprintable():  # nearly all are so: nothing that is looked for below can be found
                return text
        return self._odd_command(line)

    def _odd_command(self, line: bytes) -> str:
        if not 0x16 < line[0] < 0x80 and begins_tls(line):  # most hellos have a line feed somewhere
            raise Goodbye(replies.TLS_TO_PLAIN, ListenerRefusal.PROTOCOL)
        if len(line) > LINE_STANDARD:
            self._check_length(line)
        octets = self.without_line_end(line)
        try:
            text = octets.decode()
        except UnicodeDecodeError:
            if octets[:5].upper() not in (b"EHLO ", b"HELO "):
                raise _bad_line(replies.BAD_LINE) from None
            # Windows hosts with names in Shift_JIS exist; the name is only shown, and masked for that.
            text = octets.decode("ascii", errors="replace")
        if not text.isprintable() and _CONTROL.search(text):
            raise _bad_line(replies.BAD_LINE)
        if not text:
            self._look_for_proxy()
            raise _bad_line(replies.EMPTY_LINE)
        return text

    def _check_length(self, line: bytes) -> None:
        verb = line[: line.find(b" ")].upper().decode("latin-1")
        if len(line) > LINE_EXTENDED.get(verb, LINE_STANDARD):
            raise _bad_line(replies.AUTH_LINE_TOO_LONG if verb == "AUTH" else replies.LINE_TOO_LONG)

    def _look_for_proxy(self) -> None:
        """The signature of PROXY version 2 begins with two empty lines; nothing of what follows may be obeyed.

        Of a header that comes too late, a proxy's first packet may end anywhere.
        """
        rest = self._input[self._position :]
        if rest.startswith(SIGNATURE[2:]) or (self.peer_proxies and SIGNATURE[2:].startswith(rest)):
            raise Goodbye(replies.PROXY_DENIED, ListenerRefusal.PROXY)

    def without_line_end(self, line: bytes) -> bytes:
        """The line without its line end. Raises Refused where that is a bare LF, and the listener refuses those."""
        if line.endswith(b"\r\n"):
            return line[:-2]
        if self.client.listener.bare_newlines is BareNewlines.REFUSE:
            raise _bad_line(replies.BARE_LF_LINE)
        return line[:-1]

    def _unknown(self, verb: str) -> Refused | Goodbye:
        if verb in _HTTP:  # a browser made to send mail for somebody else (cross-protocol request forgery)
            return Goodbye(replies.NOT_SMTP, ListenerRefusal.PROTOCOL)
        if verb == "PROXY":
            return Goodbye(replies.PROXY_DENIED, ListenerRefusal.PROXY)
        self.unproductive()
        return Refused(replies.UNKNOWN)

    # --- counts

    def overdue(self, now: float) -> bool:
        """Whether the session has lasted its time; an open mail has one `idle` more to be finished."""
        return now >= self._ends_at and (self.at_rest or now >= self._ends_at + self.server.limits.idle)

    def unproductive(self) -> None:
        """Count a command that brings no mail forward. Raises Goodbye after too many."""
        self._commands += 1
        if self._commands > self.server.limits.commands:
            raise Goodbye(replies.TOO_MANY_COMMANDS, ListenerRefusal.COMMANDS)

    def mail_accepted(self) -> None:
        """A mail was kept: the counts of errors and unproductive commands begin again."""
        self._commands = self._errors = 0
        self.recognise()

    def _say(self, reply: Reply) -> None:
        """Queue a reply. Raises Goodbye for 421 and after too many errors."""
        if reply.code == 421:
            raise Goodbye(reply)
        self.send(reply.wire())
        if reply.code >= 500:
            self._errors += 1
            if self._errors >= self.server.limits.errors:
                raise Goodbye(replies.TOO_MANY_ERRORS, ListenerRefusal.ERRORS)

    def _refuse(self, refused: Refused) -> None:
        if refused.refusal is ListenerRefusal.COMMAND_LINE:
            self.unproductive()
        self.server.observer.refused(self.client.listener.name, refused.refusal)
        self._say(refused.reply)

    # --- session commands

    def smtp_EHLO(self, arg: str) -> None:
        """RFC 5321 4.1.1.1. The extensions depend on TLS and on who the peer is."""
        self._hello(arg)
        self.client.esmtp = True
        starttls = self.client.listener.tls is ListenerTLS.STARTTLS and self.client.tls is None
        self.send(self.server.extensions(starttls, self.auth_offered, self.peer_proxies))

    def smtp_HELO(self, arg: str) -> None:
        """RFC 5321 4.1.1.1."""
        self._hello(arg)
        self.client.esmtp = False
        self.send(self.server.helo)

    def _hello(self, arg: str) -> None:
        self.unproductive()
        if self.pending:  # the client cannot know yet that it may pipeline
            raise Goodbye(replies.TOO_EARLY, ListenerRefusal.EARLY_TALKER)
        if not arg or len(arg) > HELO_MAX:
            raise Refused(replies.NEEDS_NAME)
        self.reset_transaction()
        # The name is only ever shown (Received, logs): odd characters are masked rather than refused.
        self.client.helo = _HELO_ODD.sub("?", arg)

    def smtp_NOOP(self, arg: str) -> Reply:
        """RFC 5321 4.1.1.9."""
        self.unproductive()
        return replies.OK

    def smtp_HELP(self, arg: str) -> Reply:
        """RFC 5321 4.1.1.8."""
        self.unproductive()
        return replies.HELP

    def smtp_VRFY(self, arg: str) -> Reply:
        """RFC 5321 3.5.3: neither confirmed nor denied."""
        self.unproductive()
        return replies.VRFY

    def smtp_EXPN(self, arg: str) -> Reply:  # type: ignore[override]  # aiosmtpd's commands are all coroutines
        """RFC 5321 4.1.1.7: there are no lists here."""
        self.unproductive()
        raise Refused(replies.NOT_OFFERED)

    async def smtp_QUIT(self, arg: str) -> None:
        """RFC 5321 4.1.1.10."""
        # slow, so that it is raised where the session ends, and not handed on to there by a raise here
        raise Goodbye(replies.BYE)

    async def smtp_STARTTLS(self, arg: str) -> None:
        """RFC 3207. What came in clear behind the command is discarded (CVE-2011-0411), and so is all we knew."""
        self.unproductive()
        self._check_starttls(arg)
        if self.pending:
            self.note_discarded()
        self.send(replies.READY_FOR_TLS.wire())
        self.flush()
        self.discard_input()
        await self.start_tls()
        self.reset_transaction()
        self.client.helo, self.client.esmtp, self.client.credential = "", False, None
        self.recognise()

    def _check_starttls(self, arg: str) -> None:
        if arg:
            raise Refused(replies.NO_ARGUMENT)
        if self.client.tls is not None:
            raise Refused(replies.TLS_ACTIVE)
        if self.client.listener.tls is not ListenerTLS.STARTTLS:
            raise Refused(replies.NOT_OFFERED)
        if not self.at_rest:
            raise Refused(replies.MAIL_OPEN)
        if self.server.tls_context is None:
            raise Refused(replies.TLS_UNAVAILABLE, ListenerRefusal.TLS)

    def smtp_XCLIENT(self, arg: str) -> None:
        """Postfix XCLIENT: a trusted peer names the client it speaks for, and the session begins anew."""
        self.unproductive()
        if not self.peer_proxies:
            raise Refused(replies.XCLIENT_DENIED, ListenerRefusal.PROXY)
        if not self.at_rest:
            raise Refused(replies.MAIL_OPEN)
        try:
            said = parse_xclient(arg)
        except ValueError:
            raise Refused(replies.XCLIENT_BAD, ListenerRefusal.PROXY) from None
        self.discard_input()
        client = self.client
        self.rename(said.address, said.port or 0)
        # Mail proxies pass on what their client says next: it must not name itself anew, unless it is a proxy, too.
        self.peer_proxies = self.is_proxy(client.peer)
        self.hold_address()
        client.helo = _HELO_ODD.sub("?", said.helo or "")
        client.esmtp = said.esmtp or False
        client.credential = client.network = None
        self.greet()


def _bad_line(reply: Reply) -> Refused:
    return Refused(reply, ListenerRefusal.COMMAND_LINE)


def _methods(*, slow: bool) -> dict[str, Any]:
    methods = {name[5:]: getattr(Connection, name) for name in dir(Connection) if name.startswith("smtp_")}
    return {verb: method for verb, method in methods.items() if iscoroutinefunction(method) is slow}


Connection.methods = _methods(slow=False)
Connection.slow_methods = _methods(slow=True)
