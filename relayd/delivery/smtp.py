"""Sessions with a provider's SMTP service: one transaction at a time, pipelined where offered (RFC 2920).

Opening is client.py's, octets and replies are protocol.py's, what a reply means is core/classify.py's.
"""

from __future__ import annotations

import base64
import contextlib
import socket
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from relayd.config.models import SMTPUpstream
from relayd.core.classify import outcome_of
from relayd.core.lifecycle import Outcome, Stage
from relayd.core.quick import quick
from relayd.core.reply import Reply, parse_reply
from relayd.core.session import ConnectFailedError, Outgoing, Sent, all_delivered
from relayd.delivery.client import OPEN_ERRORS, Client, token_answer
from relayd.delivery.commands import BIG, Offers, Plan, is_eight_bit, plan
from relayd.delivery.dialogue import MASK, printable
from relayd.delivery.failures import cut_off, malformed, of_fault, of_opening
from relayd.delivery.names import Names
from relayd.delivery.oauth.keeper import Bearer
from relayd.delivery.ports import Ports
from relayd.delivery.protocol import RawReply, ReplyProtocol
from relayd.delivery.tls import ClientContexts

WINDOW = 16384
"""Octets of commands in one write; more than that goes out in several, replies taken meanwhile."""
PROBE_TIMEOUT = 10.0
"""Seconds for RSET: a session that does not answer it is not worth waiting for."""
QUIT_TIMEOUT = 2.0
ENVELOPE_TIMEOUTS = 4
"""How many command time-outs the whole pipelined envelope may take, however slowly replies drip in."""


@quick
@dataclass(frozen=True, slots=True)
class Seen:
    """What an upstream showed while a session was opened, for `relayd upstream test`."""

    address: str
    greeting: str
    extensions: dict[str, str]
    tls: str | None
    cipher: str | None
    certificate: dict[str, str]
    """subject, issuer, until; empty without TLS, or unverified."""
    mechanism: str | None
    """How we logged in."""
    transcript: str


class SMTPConnector:
    """Opens sessions to one upstream; `hostname` is our name in EHLO unless the upstream has one for us."""

    def __init__(
        self, name: str, upstream: SMTPUpstream, hostname: str, tls: ClientContexts, bearer: Bearer | None = None
    ) -> None:
        """`bearer` logs in with tokens instead of the password."""
        self.name = name
        self.upstream = upstream
        self.hostname = hostname
        self._tls = tls
        self._bearer = bearer
        self._secrets = _secrets(upstream)
        self._names = Names(upstream.host.rstrip("."))
        self._ports = Ports(upstream.every_port)
        self._by_port = {port: upstream.model_copy(update={"port": port}) for port in upstream.every_port}

    async def open(self) -> SMTPSession:
        """Connect, secure, greet, log in, at the first port that can be reached. Raises ConnectFailedError."""
        order = self._ports.order(time.monotonic())
        for place, port in enumerate(order):
            client = Client(self._by_port[port], self.hostname, self._tls, self._bearer, self._names)
            endpoint = f"{self.upstream.host}:{port}"
            try:
                protocol = await client.open()
            except OPEN_ERRORS as error:
                self._abandon(client)
                if _unreachable(client, error):
                    self._ports.unreachable(port, time.monotonic())
                    if place + 1 < len(order):
                        continue
                raise self._failed(client, endpoint, error) from error
            except BaseException:
                self._abandon(client)
                raise
            self._ports.reached(port)
            return SMTPSession(self, endpoint, client, protocol, self._secrets_of(client))
        raise AssertionError("an upstream has a port")

    def _failed(self, client: Client, endpoint: str, error: BaseException) -> ConnectFailedError:
        secrets = self._secrets_of(client)
        outcome = of_opening(client.stage, error)
        reply = Reply(outcome.reply.code, outcome.reply.enhanced, redact(outcome.reply.text, secrets))
        outcome = Outcome(outcome.kind, outcome.stage, reply, outcome.cls)
        return ConnectFailedError(outcome, self._transcript(client, endpoint, outcome, secrets), endpoint)

    def _secrets_of(self, client: Client) -> tuple[str, ...]:
        """What a peer must not make us repeat: the password, and the token that was shown."""
        token, upstream = client.token, client.upstream
        if not token:
            return self._secrets
        shown = [
            token_answer(name, upstream.username or "", token, upstream.host, upstream.port).decode()
            for name in ("XOAUTH2", "OAUTHBEARER")
        ]
        return (*self._secrets, *shown, base64.b64encode(token.encode()).decode(), token)

    @staticmethod
    def _abandon(client: Client) -> None:
        if client.opened is not None:
            client.opened.abort()

    @staticmethod
    def _transcript(client: Client, endpoint: str, outcome: Outcome, secrets: Sequence[str]) -> str:
        if client.opened is None:
            return f"   0.000 * {endpoint}: {outcome.reply}"
        client.opened.dialogue.note(str(outcome.reply))
        return client.opened.dialogue.render(secrets)


class SMTPSession:
    """An open session. See session.py for the contract."""

    def __init__(
        self, connector: SMTPConnector, endpoint: str, client: Client, protocol: ReplyProtocol, secrets: Sequence[str]
    ) -> None:
        upstream = connector.upstream
        self.endpoint = endpoint
        self.offers = Offers.of(client.esmtp_extensions)
        self.sent = 0
        self.in_doubt: Sent | None = None
        self._protocol = protocol
        self._secrets = secrets
        self._limit = upstream.limits.messages_per_connection
        self._timeouts = upstream.timeouts
        self._client = client
        ssl_object = client.ssl_object
        self.tls = ssl_object.version() if ssl_object is not None else None

    @property
    def usable(self) -> bool:
        """Another message can go through: alive, nothing unexplained pending, below messages_per_connection."""
        protocol = self._protocol
        transport = protocol.transport
        return (
            transport is not None and protocol.clean and not transport.is_closing() and not 0 < self._limit <= self.sent
        )

    async def send(self, mail: Outgoing) -> Sent:
        """Make the transaction. Never raises for what the upstream does; cancellation closes the session."""
        protocol = self._protocol
        protocol.dialogue.restart()
        content = mail.content
        eight_bit = not content.isascii() if len(content) <= BIG else await is_eight_bit(content)
        steps = plan(mail, self.offers, eight_bit=eight_bit)
        if not steps.rcpts:
            return self._unsent(mail, steps)
        verdict = _Verdict(len(steps.rcpts))
        try:
            self.sent += 1
            replies = await (self._pipelined(steps) if self.offers.pipelining else self._step_by_step(steps))
            self._judge(verdict, replies)
            ready = len(replies) == len(steps.rcpts) + 2 and replies[-1][0] == 354 and not protocol.ended
            if verdict.waiting and ready:
                timeouts = self._timeouts
                self._conclude(verdict, *await protocol.content(content, timeouts.data, timeouts.dot, mail.front))
            elif verdict.waiting:
                # behind 354, before we sent anything, the upstream ended the session or broke the protocol
                verdict.rest(self._outcome(Stage.DATA, protocol.stray))
            elif ready:
                # RFC 2920 3.1: DATA was taken though nobody was; an empty message ends it
                await protocol.exchange(b".\r\n", 1, self._timeouts.dot)
                verdict.open = False
            result = self._result(mail, steps, verdict)
            if verdict.open and not protocol.ended:
                await self._reset()
        except BaseException:
            if protocol.behind_dot:
                self.in_doubt = self._result(mail, steps, verdict.rest(cut_off()))
            protocol.abort()
            raise
        return result

    async def probe(self) -> bool:
        """RSET: is the upstream still there? Closes the session when not."""
        self._protocol.dialogue.restart()
        return await self._reset()

    async def close(self) -> None:
        """QUIT where possible, and close. Never raises."""
        protocol = self._protocol
        with contextlib.suppress(OSError):
            if protocol.clean:
                await protocol.exchange(b"QUIT\r\n", 1, QUIT_TIMEOUT)
            await protocol.finish(QUIT_TIMEOUT)

    def seen(self) -> Seen:
        """What opening the session showed; the transcript in it is that of the opening until the first `send`."""
        return _seen(self._client, self._protocol, self._secrets)

    async def _reset(self) -> bool:
        replies = await self._protocol.exchange(b"RSET\r\n", 1, min(PROBE_TIMEOUT, self._timeouts.command))
        if replies and replies[0][0] == 250 and self._protocol.clean:
            return True
        self._protocol.abort()
        return False

    # the envelope: replies to MAIL, each RCPT, DATA, in this order; fewer where the rest was not sent or not answered

    def _pipelined(self, steps: Plan) -> Coroutine[Any, Any, list[RawReply]]:
        commands = [steps.mail, *steps.rcpts, b"DATA\r\n"]
        timeout = self._timeouts.command
        octets = b"".join(commands)
        if len(octets) <= WINDOW:
            return self._protocol.exchange(octets, len(commands), timeout, ENVELOPE_TIMEOUTS * timeout)
        return self._protocol.exchange_many(commands, timeout, ENVELOPE_TIMEOUTS * timeout)

    async def _step_by_step(self, steps: Plan) -> list[RawReply]:
        replies: list[RawReply] = []
        some = False
        for command in (steps.mail, *steps.rcpts):
            answer = await self._protocol.exchange(command, 1, self._timeouts.command)
            replies += answer
            if not answer or self._protocol.ended or (len(replies) == 1 and answer[0][0] >= 300):
                return replies
            some = some or (len(replies) > 1 and answer[0][0] < 300)
        if some:
            replies += await self._protocol.exchange(b"DATA\r\n", 1, self._timeouts.command)
        return replies

    def _judge(self, verdict: _Verdict, replies: list[RawReply]) -> None:
        """What MAIL, RCPTs and DATA mean for each recipient."""
        outcomes = verdict.outcomes
        count = len(outcomes)
        if not replies or replies[0][0] >= 300:
            verdict.rest(self._outcome(Stage.MAIL, replies[0] if replies else None))
            return
        verdict.open = True
        for place, raw in enumerate(replies[1 : count + 1]):
            if raw[0] >= 300:
                outcomes[place] = outcome = self._outcome(Stage.RCPT, raw)
                verdict.reached(Stage.RCPT, outcome.reply)
                if raw[0] == 421 or raw[0] < 400:
                    verdict.rest(outcome)
                    return
        if len(replies) <= count:
            verdict.rest(self._outcome(Stage.RCPT, None))
        elif verdict.waiting and (len(replies) == count + 1 or replies[-1][0] != 354):
            verdict.rest(self._outcome(Stage.DATA, replies[-1] if len(replies) > count + 1 else None))

    def _conclude(self, verdict: _Verdict, whole: bool, raw: RawReply | None) -> None:
        """What the reply to the content means; `whole`: the final dot went out."""
        verdict.open = False
        if whole and raw is not None and raw[0] < 300:
            verdict.rest(outcome_of(Stage.DOT, self._reply(raw)))
            return
        verdict.rest(self._outcome(Stage.DOT if whole else Stage.DATA, raw))
        if not whole:
            # the upstream still waits for the rest of a message that it will not get
            self._protocol.abort()

    def _outcome(self, stage: Stage, raw: RawReply | None) -> Outcome:
        """A reply that is no success, or its absence. What SMTP does not know ends the session."""
        if raw is None:
            return of_fault(stage, self._protocol.fault)
        if raw[0] < 400:
            self._protocol.abort()
            return malformed(stage, f"an unexpected reply ({raw[0]})")
        return outcome_of(stage, self._reply(raw))

    def _reply(self, raw: RawReply) -> Reply:
        return parse_reply(raw[0], redact(raw[1].decode("utf-8", "replace"), self._secrets))

    # results

    def _result(self, mail: Outgoing, steps: Plan, verdict: _Verdict) -> Sent:
        outcomes = tuple([outcome for outcome in verdict.outcomes if outcome is not None])
        if steps.refused:
            judged = dict(zip(steps.places, outcomes, strict=True)) | steps.refused
            outcomes = tuple([judged[place] for place in range(len(mail.recipients))])
        transcript = None if all_delivered(outcomes) else self._protocol.dialogue.render(self._secrets)
        return Sent(outcomes, verdict.stage, verdict.reply, transcript, self.offers.dsn)

    def _unsent(self, mail: Outgoing, steps: Plan) -> Sent:
        outcomes = tuple(steps.refused[place] for place in range(len(mail.recipients)))
        reply = str(outcomes[0].reply) if outcomes else ""
        self._protocol.dialogue.note(f"not sent: {reply}")
        return Sent(outcomes, Stage.LOCAL, reply, self._protocol.dialogue.render(self._secrets), self.offers.dsn)


class _Verdict:
    """Outcomes of one transaction, recipient by recipient, while they come in."""

    __slots__ = ("open", "outcomes", "reply", "stage")

    def __init__(self, recipients: int) -> None:
        self.outcomes: list[Outcome | None] = [None] * recipients
        self.stage = Stage.MAIL
        self.reply = ""
        self.open = False
        """MAIL was taken and neither a final dot nor RSET has ended the transaction."""

    @property
    def waiting(self) -> bool:
        """Some recipients are accepted and have no outcome yet."""
        return None in self.outcomes

    def reached(self, stage: Stage, reply: Reply) -> None:
        """How far it came, and the reply that counts; the first one of a stage stands."""
        if stage is not self.stage or not self.reply:
            self.stage, self.reply = stage, str(reply)

    def rest(self, outcome: Outcome) -> _Verdict:
        """The same for all that have no outcome yet."""
        outcomes = self.outcomes
        for place, known in enumerate(outcomes):
            if known is None:
                outcomes[place] = outcome
        self.reached(outcome.stage, outcome.reply)
        return self


def _unreachable(client: Client, error: BaseException) -> bool:
    """No connection came about at this port, which says nothing about the next one. An unknown name says it of all."""
    return client.opened is None and isinstance(error, OSError) and not isinstance(error, socket.gaierror)


def redact(text: str, secrets: Sequence[str]) -> str:
    """The text without our credential, should an upstream repeat it."""
    for secret in secrets:
        if secret in text:
            text = text.replace(secret, MASK)
    return text


def _secrets(upstream: SMTPUpstream) -> tuple[str, ...]:
    """The password in all the writings in which it crosses the wire."""
    if upstream.password is None or not (password := upstream.password.get_secret_value()):
        return ()
    plain = f"\0{upstream.username or ''}\0{password}"
    encoded = [base64.b64encode(text.encode()).decode() for text in (plain, password)]
    # a password of one letter would blot out every text, and protects nothing
    return (*encoded, password) if len(password) > 3 else tuple(encoded)


def _seen(client: Client, protocol: ReplyProtocol, secrets: Sequence[str]) -> Seen:
    ssl_object = client.ssl_object
    cipher = ssl_object.cipher() if ssl_object is not None else None
    return Seen(
        client.address,
        redact(_plain(client.greeting), secrets),
        {_plain(name): redact(_plain(value), secrets) for name, value in client.esmtp_extensions.items()},
        ssl_object.version() if ssl_object is not None else None,
        cipher[0] if cipher else None,
        _certificate(ssl_object.getpeercert() if ssl_object is not None else None),
        client.mechanism,
        protocol.dialogue.render(secrets),
    )


def _certificate(found: object) -> dict[str, str]:
    if not isinstance(found, dict) or not found:
        return {}
    names = {
        key: ", ".join(f"{name}={value}" for rdn in found.get(key, ()) for name, value in rdn)
        for key in ("subject", "issuer")
    }
    return {name: _plain(text) for name, text in (*names.items(), ("until", str(found.get("notAfter", ""))))}


def _plain(text: str) -> str:
    """What a peer said, for a terminal."""
    return printable(text.encode("utf-8", "replace"))
