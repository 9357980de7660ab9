"""The upstream from hell: whatever is said, or not, at whatever place of the dialogue, has the end that the table says.

Every cell of place × failure is one lane with a server of its own; all of them run at once, on real sockets, TLS and
a real spool. What a failure means is worded here anew, by rules of four lines; core/lifecycle.py makes a state of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from relayd.core.ids import MessageId
from relayd.core.lifecycle import Act, OutcomeKind, State, step
from relayd.delivery.dialogue import LIMIT
from relayd.delivery.smtp import SMTPConnector
from relayd.delivery.tls import ClientContexts
from relayd.spool.filter import QueueFilter
from tests.support.dispatching import ScriptedUpstream, World
from tests.support.fake_upstream import (
    DROP,
    EXTENSIONS,
    RESET,
    SILENCE,
    STALL,
    Action,
    Certificate,
    FakeUpstream,
    Garble,
    Split,
    server_context,
)

CONTEXTS = ClientContexts()
USERS = {"shop": "canary-hell-password"}
MILLION = 1_000_000

OPENING = ("greeting", "EHLO", "STARTTLS", "handshake", "second EHLO", "AUTH")
ENVELOPE = ("MAIL", "RCPT", "DATA")
WHOLE = ("content", "DOT")
"""All of the message is on its way by then."""
AFTER = ("RSET", "QUIT")

STAGES = {"greeting": "greeting", "STARTTLS": "tls", "handshake": "tls", "content": "dot", "DOT": "dot"}
"""Which time-out ends the silence at a place; everywhere else that of commands."""

REPLIES = {
    "greeting": "220 fake.test ESMTP",
    "EHLO": "250 fake.test\nSTARTTLS",
    "STARTTLS": "220 2.0.0 go ahead",
    "second EHLO": "250 fake.test\nPIPELINING\nAUTH PLAIN",
    "AUTH": "235 2.7.0 welcome",
    "MAIL": "250 2.1.0 ok",
    "RCPT": "250 2.1.5 ok",
    "DATA": "354 go ahead",
    "DOT": "250 2.0.0 taken",
    "RSET": "250 2.0.0 forgotten",
    "QUIT": "221 2.0.0 bye",
}
NEVER = {"MAIL": "550 5.7.1 not you", "RCPT": "550 5.1.1 no such user"}
SILENT = ("silence", "half-open")
LINES = b"".join(b"250-%0100d\r\n" % number for number in range(MILLION // 107))

FAILURES: dict[str, Any] = {
    "421": "421 4.3.2 going down",
    "4xx": "451 4.3.0 later",
    "5xx": None,
    "drop": DROP,
    "reset": RESET,
    "silence": SILENCE,
    "half-open": STALL,
    "garbage": b"hello there\r\n",
    "a line of 1 MB": b"250 " + b"x" * MILLION + b"\r\n",
    "lines of 1 MB": LINES + b"250 end\r\n",
    "no text at all": b"\0\xff\xfe\r\n\r\n",
    "octet by octet": None,
    "a reply too many": None,
    "TLS alert": Garble(),
    "expired": None,
    "wrong-name": None,
    "unknown-ca": None,
}
CERTIFICATES = ("expired", "wrong-name", "unknown-ca")


def possible(place: str, failure: str) -> bool:
    """Whether there is such a cell: certificates are shown in a handshake, which has no replies of its own."""
    if place == "handshake":
        return failure not in ("octet by octet", "a reply too many")
    if failure in CERTIFICATES:
        return False
    # between 354 and the end of the content no reply is due
    return not (place == "content" and failure in ("octet by octet", "a reply too many"))


def meaning(place: str, failure: str) -> OutcomeKind:
    """What the failure says about the recipient."""
    if place == "RSET":  # follows a refused recipient
        return OutcomeKind.REJECTED
    if place == "QUIT" or failure == "octet by octet" or (place, failure) == ("DOT", "a reply too many"):
        return OutcomeKind.DELIVERED
    if place in OPENING or (place, failure) == ("MAIL", "5xx"):
        return OutcomeKind.TROUBLE
    if failure == "5xx":
        return OutcomeKind.REJECTED
    if place in ENVELOPE or failure in ("421", "4xx"):
        return OutcomeKind.DEFERRED
    return OutcomeKind.UNCERTAIN


def action(place: str, failure: str) -> Action:
    """What the server does at that place."""
    if failure == "5xx":
        return NEVER.get(place, "554 5.6.0 no")
    usual = REPLIES.get(place, "")
    if failure == "octet by octet":
        return Split(usual)
    if failure == "a reply too many":
        lines = usual.split("\n")
        texts = [f"{lines[0][:3]}-{lines[0][4:]}", *(f"{lines[0][:3]}-{text}" for text in lines[1:])]
        texts[-1] = texts[-1][:3] + " " + texts[-1][4:]
        return ("\r\n".join(texts) + "\r\n250 2.0.0 and one more\r\n").encode()
    found: Action = FAILURES[failure]
    return found


def script(place: str, failure: str) -> dict[str, Any]:
    """The server's script for one cell."""
    if failure in CERTIFICATES:
        return {}
    if place.endswith("EHLO"):
        return {"EHLO": [None] * (place != "EHLO") + [action(place, failure)]}
    found: dict[str, Any] = {place: action(place, failure)}
    if place == "RSET":
        found["RCPT"] = "550 5.1.1 no such user"
    return found


@dataclass
class Cell:
    """One server, its lane and the mail that goes there."""

    place: str
    failure: str
    upstream: FakeUpstream
    message: MessageId = 0
    patience: float = 1.0
    """Seconds of a time-out that is to be met."""
    wrong: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.place}-{self.failure}".replace(" ", "-").lower()

    @property
    def silent(self) -> bool:
        return self.failure in SILENT

    @property
    def met(self) -> bool:
        """The last attempt came to the silence (that of QUIT comes behind the mail)."""
        return bool(self.upstream.accepted) if self.place == "QUIT" else self.upstream.silent.is_set()

    def timeouts(self) -> dict[str, float]:
        """Long, save for the one that a silent server has to run into."""
        stage = STAGES.get(self.place, "command")
        long = dict.fromkeys(("connect", "tls", "greeting", "command", "data", "dot"), 60.0)
        return long | ({stage: self.patience} if self.silent else {})

    def mend(self) -> None:
        """The server is what it should be."""
        self.upstream.script.clear()
        self.upstream.context = server_context("good")


def cells(extensions: Sequence[str]) -> list[Cell]:
    """The whole matrix; only once what does not depend on pipelining."""
    places = (*(OPENING if extensions is EXTENSIONS else ()), *ENVELOPE, *WHOLE, *AFTER)
    return [
        Cell(place, failure, _server(place, failure, extensions))
        for place in places
        for failure in FAILURES
        if possible(place, failure)
    ]


def _server(place: str, failure: str, extensions: Sequence[str]) -> FakeUpstream:
    certificate = cast("Certificate", failure) if failure in CERTIFICATES else "good"
    return FakeUpstream(
        script(place, failure),
        tls="starttls",
        users=USERS,
        auth=["PLAIN"],
        require_auth=True,
        certificate=certificate,
        extensions=extensions,
    )


def _connect(world: World, cell: Cell) -> None:
    """The lane of the cell leads to its server."""
    upstream = cell.upstream.config(timeouts=cell.timeouts())
    connector = SMTPConnector(cell.name, upstream, "relay.test", CONTEXTS)
    world.upstreams[cell.name] = cast("ScriptedUpstream", connector)


async def _try(world: World, some: Sequence[Cell]) -> None:
    """Send one mail by each of these lanes, and wait until each attempt is written down."""
    for cell in some:
        _connect(world, cell)
    await world.reload(world.plan({f"{cell.name}.test": cell.name for cell in some}))
    for cell in some:
        world.dispatcher.try_now(cell.name)  # an earlier attempt may have paused it
        cell.message = await world.accept(f"r@{cell.name}.test")
    async with asyncio.timeout(120):
        for cell in some:
            while len(  # noqa: ASYNC110 - a dispatcher rings no bell for tests
                (await world.store.history(cell.message)).events
            ) < 2 or world.dispatcher.busy(cell.message):
                await asyncio.sleep(0.01)


async def _judge(world: World, cell: Cell) -> None:
    kind = meaning(cell.place, cell.failure)
    table = step(State.QUEUED, kind)
    history = await world.store.history(cell.message)
    [recipient], [_, event] = history.recipients, history.events
    found = (recipient.state, event.kind, recipient.attempts, recipient.due is not None)
    wanted = (table.state, table.event, int(table.counts), table.retry)
    paused = world.watcher.paused_now.get(cell.name, False)
    if found != wanted or paused != (kind is OutcomeKind.TROUBLE) or (event.detail.get("class") == "unknown"):
        cell.wrong.append(f"wanted {kind} {wanted}, got {found}, paused {paused}: {event.detail}")
    shown = f"{history.attempts} {history.events}"
    if any(login.tls is None for login in cell.upstream.logins) or any(
        mail.tls is None for mail in cell.upstream.mails
    ):
        cell.wrong.append("credential or mail in the clear")
    if USERS["shop"] in shown or any(len(attempt.transcript or "") > LIMIT for attempt in history.attempts):
        cell.wrong.append("the record shows the password, or has no bound")
    if any(not character.isprintable() for character in str(event.detail.get("reply"))):
        cell.wrong.append(f"control characters: {event.detail['reply']!r}")


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "extensions",
    [EXTENSIONS, tuple(word for word in EXTENSIONS if word != "PIPELINING")],
    ids=["pipelined", "stepwise"],
)
async def test_every_place_and_every_failure(extensions: Sequence[str], tmp_path: Path) -> None:
    world = World(tmp_path)
    world.upstream("acme")
    matrix = cells(extensions)
    async with AsyncExitStack() as stack:
        for cell in matrix:
            await stack.enter_async_context(cell.upstream)
        await world.open(world.plan("acme"))
        await _try(world, [cell for cell in matrix if not cell.silent])
        for cell in matrix:
            if not cell.silent:
                await _judge(world, cell)
        await _silences(world, [cell for cell in matrix if cell.silent])
        wrong = {cell.name: cell.wrong for cell in matrix if cell.wrong}
        assert not wrong, "\n".join(f"{name}: {text}" for name, texts in wrong.items() for text in texts)
        await _everything_ends(world, matrix)
        await world.close()


async def _silences(world: World, silent: Sequence[Cell]) -> None:
    """A busy machine may run into a time-out before the place that is meant: such a cell is tried again."""
    while silent:
        await _try(world, silent)
        early = [cell for cell in silent if not cell.met]
        for cell in silent:
            if cell not in early:
                await _judge(world, cell)
        for cell in early:
            cell.patience *= 3
            cell.upstream.script = script(cell.place, cell.failure)
            await world.steering.act(Act.DELETE, QueueFilter(ids=frozenset({cell.message})), by="test")
        silent = early


async def _everything_ends(world: World, matrix: Sequence[Cell]) -> None:
    """Once the servers are mended, everything that waits is delivered: no lane is stuck, and none was given up."""
    for cell in matrix:
        cell.mend()
        cell.patience = 60.0
        _connect(world, cell)
    await world.reload(world.plan({f"{cell.name}.test": cell.name for cell in matrix}))
    async with asyncio.timeout(120):
        while await world.waiting():
            world.clock.advance(400)
            world.look()
            await asyncio.sleep(0.2)
    for cell in matrix:
        [state] = await world.states(cell.message)
        refused = meaning(cell.place, cell.failure) is OutcomeKind.REJECTED
        assert state is (State.BOUNCED if refused else State.DELIVERED), cell.name
