"""aiosmtplib's client, opened step by step on our protocol: dial, TLS, EHLO, AUTH, each with its time limit and stage.

Sending mail over what it opened is smtp.py's.
"""

from __future__ import annotations

import asyncio
import base64
import socket
import ssl
from itertools import zip_longest
from typing import Any

import aiosmtplib
from aiosmtplib.auth import auth_login_encode
from aiosmtplib.errors import (
    SMTPAuthenticationError,
    SMTPConnectResponseError,
    SMTPException,
    SMTPHeloError,
    SMTPServerDisconnected,
)
from aiosmtplib.response import SMTPResponse

from relayd.config.models import SMTPUpstream, UpstreamTLS
from relayd.core.lifecycle import Stage
from relayd.core.reply import Reply
from relayd.delivery.names import Names
from relayd.delivery.oauth.grants import TokenError
from relayd.delivery.oauth.keeper import Bearer
from relayd.delivery.protocol import ReplyProtocol
from relayd.delivery.tls import ClientContexts, server_name

IMPLICIT_PORTS = frozenset({465, 2465})
"""Where TLS begins with the first octet (RFC 8314 7.3; 2465 by custom of some providers)."""
MAX_ADDRESSES = 8
"""Addresses of a host that are tried at most; each gets its share of the time."""

# after these the mechanism was at fault; after any other refusal trying on would only count as more wrong logins
_WRONG_MECHANISM = frozenset({500, 501, 502, 503, 504, 534, 538})


class RefusedError(SMTPException):
    """We do not go on, for a reason of our own: `reply` words it."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(str(reply))
        self.reply = reply


class Client(aiosmtplib.SMTP):
    """One connection. `stage` says how far `connect` came when it raises; `dialogue_of` the transcript."""

    protocol: ReplyProtocol | None

    def __init__(
        self,
        upstream: SMTPUpstream,
        hostname: str,
        contexts: ClientContexts,
        bearer: Bearer | None = None,
        names: Names | None = None,
    ) -> None:
        super().__init__(
            hostname=upstream.host.rstrip("."),
            port=upstream.port,
            local_hostname=upstream.hostname or hostname,
            timeout=upstream.timeouts.command,
            use_tls=False,
            start_tls=False,
        )
        self.upstream = upstream
        self.names = names or Names(upstream.host.rstrip("."))
        self.contexts = contexts
        self.stage = Stage.CONNECT
        self.opened: ReplyProtocol | None = None
        """The protocol, also after the end of the connection: it has the dialogue."""
        self.greeting = ""
        self.mechanism: str | None = None
        self.bearer = bearer
        self.token = ""
        """The access token that was shown."""
        self.address = ""

    @property
    def implicit(self) -> bool:
        """TLS begins with the first octet."""
        if self.upstream.tls is UpstreamTLS.NONE:
            return False
        implicit = self.upstream.implicit_tls
        return self.upstream.port in IMPLICIT_PORTS if implicit is None else implicit

    @property
    def secured(self) -> bool:
        """TLS is under the connection."""
        return self.protocol is not None and self.protocol._over_ssl

    @property
    def ssl_object(self) -> ssl.SSLObject | None:
        """The TLS state of the connection."""
        transport = self.protocol.transport if self.protocol is not None else None
        return transport.get_extra_info("ssl_object") if transport is not None else None

    async def open(self) -> ReplyProtocol:
        """Connect, secure, greet, log in. Raises OPEN_ERRORS, `stage` says where."""
        await self.connect()
        if self.protocol is None or not self.protocol.clean:
            raise (self.opened.fault if self.opened else None) or SMTPServerDisconnected(
                "the upstream ended the session"
            )
        self.protocol.dialogue.secret = False
        return self.protocol

    # the three steps of aiosmtplib's connect()

    async def _create_connection(self, timeout: float | None) -> SMTPResponse:
        limits = self.upstream.timeouts
        context = await self._context()
        async with asyncio.timeout(limits.connect):
            protocol = await self._dial()
        if self.implicit and context is not None:
            self.stage = Stage.TLS
            await protocol.secure(context, server_name(self.upstream), limits.tls)
            self.transport = protocol.transport
            self._note_tls()
            self.stage = Stage.CONNECT
            protocol.expect_greeting()
        response = await protocol.read_response(limits.greeting)
        self.greeting = response.message
        if response.code != 220:
            raise SMTPConnectResponseError(response.code, response.message)
        return response

    async def _context(self) -> ssl.SSLContext | None:
        if self.upstream.tls is UpstreamTLS.NONE:
            return None
        self.stage = Stage.TLS
        try:
            context = await self.contexts.get(self.upstream)
        except OSError as error:
            raise RefusedError(Reply(454, "4.7.0", "the CA file of this upstream cannot be used")) from error
        self.stage = Stage.CONNECT
        return context

    async def _dial(self) -> ReplyProtocol:
        """A TCP connection to the first address that answers, families taking turns (RFC 8305 4)."""
        loop = asyncio.get_running_loop()
        found = await self.names.addresses()
        first = [info for info in found if info[0] == found[0][0]]
        other = [info for info in found if info[0] != found[0][0]]
        turns = [info for pair in zip_longest(first, other) for info in pair if info is not None][:MAX_ADDRESSES]
        failure: OSError | None = None
        for place, (family, address) in enumerate(turns):
            # a black hole at the first address must leave time for the others
            share = self.upstream.timeouts.connect / (len(turns) - place + 1) if place < len(turns) - 1 else None
            try:
                async with asyncio.timeout(share):
                    _, protocol = await loop.create_connection(
                        lambda: ReplyProtocol(loop, greeting=not self.implicit),
                        address,
                        self.upstream.port,
                        family=family,
                        flags=socket.AI_NUMERICHOST,
                    )
            except OSError as error:  # TimeoutError included
                failure = error
                continue
            self.address = address
            self.protocol = self.opened = protocol
            self.transport = protocol.transport
            protocol.dialogue.note(f"connected to {self.address} port {self.port}")
            return protocol
        raise failure or OSError("no address")

    async def _maybe_start_tls_on_connect(self) -> None:
        self.stage = Stage.EHLO
        await self._hello()
        if self.implicit or self.upstream.tls is UpstreamTLS.NONE:
            return
        self.stage = Stage.TLS
        opportunistic = self.upstream.tls is UpstreamTLS.OPPORTUNISTIC
        if not self.supports_extension("starttls"):
            if opportunistic:
                return
            raise RefusedError(
                Reply(454, "4.7.0", "the upstream does not offer STARTTLS, and this upstream requires it")
            )
        context = await self._context()
        self.stage = Stage.TLS
        response = await self.starttls(
            server_hostname=server_name(self.upstream), tls_context=context, timeout=self.upstream.timeouts.tls
        )
        if response.code != 220:
            if opportunistic and response.code >= 400 and self.is_connected:
                # aiosmtplib has forgotten what EHLO said; nothing of it came over TLS, so ask again
                await self._hello()
                return
            raise SMTPConnectResponseError(response.code, response.message)
        self._note_tls()
        self.stage = Stage.EHLO
        await self._hello()

    async def _hello(self) -> None:
        """EHLO; HELO only where nothing is needed that EHLO alone can offer."""
        try:
            await self.ehlo()
        except SMTPHeloError as error:
            plain = self.upstream.tls is not UpstreamTLS.REQUIRED or self.secured
            if error.code not in (500, 502, 504) or not self.is_connected or self.upstream.username or not plain:
                raise
            await self.helo()

    def _note_tls(self) -> None:
        ssl_object = self.ssl_object
        if ssl_object is not None and self.opened is not None:
            cipher = ssl_object.cipher()
            self.opened.dialogue.note(f"{ssl_object.version()} with {cipher[0] if cipher else 'no cipher'}")

    async def _maybe_login_on_connect(self) -> None:
        upstream = self.upstream
        if upstream.username is None:
            return
        self.stage = Stage.AUTH
        if not self.secured and upstream.tls is not UpstreamTLS.NONE:
            raise RefusedError(Reply(454, "4.7.0", "no login without TLS"))
        if self.bearer is not None:
            await self._login_by_token(upstream.username, self.bearer)
            return
        if not self.supported_auth_methods:
            offered = "no AUTH" if not self.supports_extension("auth") else "no AUTH mechanism that we know"
            raise RefusedError(Reply(454, "4.7.0", f"the upstream offers {offered}, and this upstream has a login"))
        password = upstream.password.get_secret_value() if upstream.password is not None else ""
        await self._login(upstream.username, password)

    async def _login_by_token(self, username: str, bearer: Bearer) -> None:
        """XOAUTH2 or OAUTHBEARER (RFC 7628). A refused token is reported to its keeper."""
        wanted = (bearer.mechanism,) if bearer.mechanism else ("XOAUTH2", "OAUTHBEARER")
        name = next((each for each in wanted if each.lower() in self.server_auth_methods), None)
        if name is None:
            text = f"the upstream does not offer {' or '.join(wanted)}, and this upstream logs in by token"
            raise RefusedError(Reply(454, "4.7.0", text))
        try:
            self.token = await bearer.token()
        except TokenError as error:
            code, enhanced = (535, "5.7.8") if error.refused else (454, "4.7.0")
            raise RefusedError(Reply(code, enhanced, str(error))) from error
        answer = token_answer(name, username, self.token, self.upstream.host, self.upstream.port)
        response = await self.execute_command(b"AUTH", name.encode(), answer)
        if response.code == 334:
            # the server tells what is wrong as JSON, and says so in SMTP once it is answered (RFC 7628 3.2.3)
            response = await self.execute_command(b"AQ==" if name == "OAUTHBEARER" else b"")
        if response.code != 235:
            bearer.rejected(self.token)
            raise SMTPAuthenticationError(response.code, response.message)
        self.mechanism = name

    async def execute_command(self, *args: bytes, timeout: Any = None) -> SMTPResponse:
        """Send one command within the upstream's command time-out; a login is masked in the transcript."""
        if self.opened is not None:
            self.opened.dialogue.secret = self.stage is Stage.AUTH
        return await super().execute_command(*args, timeout=timeout or self.timeout)

    async def _login(self, username: str, password: str) -> None:
        """The strongest mechanism offered; the next one only where the mechanism itself was the trouble."""
        methods = self.supported_auth_methods
        for place, name in enumerate(methods):
            try:
                match name:
                    case "cram-md5":
                        await self.auth_crammd5(username, password)
                    case "plain":
                        await self.auth_plain(username, password)
                    case _:
                        await self.auth_login(username, password)
            except SMTPAuthenticationError as error:
                # many servers offer CRAM-MD5 for accounts whose password they know only as a hash
                again = error.code in _WRONG_MECHANISM or (name == "cram-md5" and error.code == 535)
                if again and place + 1 < len(methods) and self.is_connected:
                    continue
                raise
            self.mechanism = name.upper()
            return

    async def auth_login(self, username: str | bytes, password: str | bytes, /, *, timeout: Any = None) -> SMTPResponse:
        """AUTH LOGIN, each answer to its own prompt: with the name sent ahead some servers take the password for it."""
        response = await self.execute_command(b"AUTH", b"LOGIN")
        for answer in auth_login_encode(username, password):
            if response.code != 334:
                raise SMTPAuthenticationError(response.code, response.message)
            response = await self.execute_command(answer)
        if response.code != 235:
            raise SMTPAuthenticationError(response.code, response.message)
        return response


def token_answer(mechanism: str, username: str, token: str, host: str, port: int) -> bytes:
    """The initial response that shows a token: RFC 7628 3.1, or Google's and Microsoft's older form of it."""
    if mechanism == "OAUTHBEARER":
        name = username.replace("=", "=3D").replace(",", "=2C")
        text = f"n,a={name},\x01host={host}\x01port={port}\x01auth=Bearer {token}\x01\x01"
    else:
        text = f"user={username}\x01auth=Bearer {token}\x01\x01"
    return base64.b64encode(text.encode())


OPEN_ERRORS: tuple[type[Exception], ...] = (SMTPException, OSError, ValueError)
"""What `connect` raises for anything that an upstream, the network or DNS does."""
