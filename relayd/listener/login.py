"""AUTH PLAIN and LOGIN (RFC 4954, RFC 4616): the exchange of user name and password.

Whether they are right, and how slowly a wrong one is answered, is intake's.
"""

from __future__ import annotations

import binascii
from contextlib import suppress

from relayd.config.models import Access, Role
from relayd.core.reply import Reply
from relayd.listener import replies
from relayd.listener.ends import Goodbye, Refused
from relayd.listener.observer import ListenerRefusal
from relayd.listener.transaction import Transaction

USERNAME_MAX = 255
PASSWORD_MAX = 1024
"""Octets; RFC 4616 leaves it open, hashing should not be handed megabytes."""

_USERNAME = b"334 VXNlcm5hbWU6\r\n"
_PASSWORD = b"334 UGFzc3dvcmQ6\r\n"
_EMPTY = b"334 \r\n"


class Login(Transaction):
    """The part of a connection that is about who the client is."""

    __slots__ = ()

    def recognise(self) -> None:
        """Who the client is has changed."""
        raise NotImplementedError

    @property
    def auth_offered(self) -> bool:
        """Under TLS, or where the connection never leaves this machine; never where access is by network alone."""
        return self.auth_possible and (self.client.tls is not None or self._safe_in_clear)

    @property
    def auth_possible(self) -> bool:
        """Whether the listener knows logins at all."""
        listener = self.client.listener
        return listener.access is not Access.NETWORK and listener.role is not Role.INBOUND

    @property
    def _safe_in_clear(self) -> bool:
        return self.client.loopback and not self.client.listener.require_tls

    async def smtp_AUTH(self, arg: str) -> Reply:
        """RFC 4954 4."""
        self.unproductive()
        if self.pending:
            raise Goodbye(replies.TOO_EARLY, ListenerRefusal.EARLY_TALKER)
        self._check_auth()
        mechanism, _, initial = arg.partition(" ")
        exchange = _EXCHANGES.get(mechanism.upper()) if mechanism.isascii() else None
        if exchange is None:
            raise Refused(replies.AUTH_UNKNOWN)
        username, password = await exchange(self, initial.strip(" ").encode())
        reply = await self.server.door.authenticate(self.client, username, password)
        if self.client.credential is not None:
            self.recognise()
        return reply

    def _check_auth(self) -> None:
        client = self.client
        if not client.helo or not client.esmtp:
            raise Refused(replies.HELLO_FIRST)
        if not self.auth_possible:
            raise Refused(replies.NOT_OFFERED)
        if not self.auth_offered:
            raise Refused(replies.AUTH_NEEDS_TLS)
        if client.credential is not None:
            raise Refused(replies.AUTH_TWICE)
        if not self.at_rest:
            raise Refused(replies.MAIL_OPEN)

    async def _exchange_plain(self, initial: bytes) -> tuple[str, str]:
        message = _decoded(initial) if initial else await self._challenge(_EMPTY)
        parts = message.split(b"\0")
        if len(parts) != 3:
            raise Refused(replies.AUTH_MALFORMED)
        identity, username, password = parts
        if identity not in (b"", username):  # nobody may act for somebody else
            raise Refused(replies.AUTH_INVALID)
        return _checked(username, password)

    async def _exchange_login(self, initial: bytes) -> tuple[str, str]:
        username = _decoded(initial) if initial else await self._challenge(_USERNAME)
        return _checked(username, await self._challenge(_PASSWORD))

    async def _challenge(self, challenge: bytes) -> bytes:
        self.send(challenge)
        try:
            answer = self.without_line_end(await self.line())
        except Refused as refused:
            if refused.reply is replies.LINE_TOO_LONG:
                raise Refused(replies.AUTH_LINE_TOO_LONG, refused.refusal) from None
            raise
        if answer == b"*":
            raise Refused(replies.AUTH_CANCELLED)
        return _decoded(answer)

    def without_line_end(self, line: bytes) -> bytes:
        """The line without its line end. Raises Refused where that is a bare LF, and the listener refuses those."""
        raise NotImplementedError


_EXCHANGES = {"PLAIN": Login._exchange_plain, "LOGIN": Login._exchange_login}


def _decoded(answer: bytes) -> bytes:
    if answer == b"=":
        return b""
    try:
        return binascii.a2b_base64(answer, strict_mode=True)
    except binascii.Error:
        raise Refused(replies.AUTH_BAD_BASE64) from None


def _checked(username: bytes, password: bytes) -> tuple[str, str]:
    if username and len(username) <= USERNAME_MAX and len(password) <= PASSWORD_MAX:
        with suppress(UnicodeDecodeError):
            name, secret = username.decode(), password.decode()
            if name.isprintable() and "\0" not in secret:
                return name, secret
    raise Refused(replies.AUTH_MALFORMED)
