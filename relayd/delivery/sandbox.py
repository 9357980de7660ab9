"""The upstream that keeps mail instead of sending it, and acts failures that recipients' local parts ask for.

The grammar is rehearsal.py's, the file spool/keepsake.py's; docs/sandbox.md tells developers about both.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path

from relayd.core.classes import ReplyClass
from relayd.core.classify import dropped, outcome_of, timeout
from relayd.core.lifecycle import Outcome, OutcomeKind, Stage
from relayd.core.reply import Reply
from relayd.core.session import ConnectFailedError, Outgoing, Sent, all_delivered
from relayd.core.units import Millis
from relayd.delivery.dialogue import Dialogue
from relayd.delivery.rehearsal import Act, Rehearsal, rehearsal
from relayd.spool.keepsake import Keepsakes

_TAKEN = Reply(250, "2.1.5", "Recipient ok")


class SandboxConnector:
    """Opens sessions to the sandbox; all of one worker share one connection to `path`, open while any session is."""

    def __init__(self, name: str, path: Path, clock: Callable[[], Millis]) -> None:
        self.name = name
        self.endpoint = "sandbox"
        self.clock = clock
        self._path = path
        self._keepsakes: Keepsakes | None = None
        self._sessions = 0
        self._lock = asyncio.Lock()

    async def open(self) -> SandboxSession:
        """A session. Raises ConnectFailedError when the database cannot be used."""
        async with self._lock:
            if self._keepsakes is None:
                keepsakes = Keepsakes(self._path)
                try:
                    await keepsakes.open()
                except (sqlite3.Error, OSError) as error:
                    outcome = _broken(Stage.CONNECT)
                    raise ConnectFailedError(outcome, f"   0.000 * {outcome.reply}", self.endpoint) from error
                self._keepsakes = keepsakes
            self._sessions += 1
            return SandboxSession(self, self._keepsakes)

    async def release(self) -> None:
        """A session ended; the last one closes the database."""
        async with self._lock:
            self._sessions -= 1
            if self._sessions == 0 and self._keepsakes is not None:
                keepsakes, self._keepsakes = self._keepsakes, None
                with contextlib.suppress(sqlite3.Error):
                    await keepsakes.close()


class SandboxSession:
    """See session.py for the contract."""

    def __init__(self, connector: SandboxConnector, keepsakes: Keepsakes) -> None:
        self.endpoint = connector.endpoint
        self.tls: str | None = None
        self.sent = 0
        self.in_doubt: Sent | None = None
        self._connector = connector
        self._keepsakes = keepsakes
        self._open = True
        self._released = False

    @property
    def usable(self) -> bool:
        """Until a rehearsed 421 or drop, or close."""
        return self._open

    async def send(self, mail: Outgoing) -> Sent:
        """Keep the mail, or act what its recipients ask for."""
        self.sent += 1
        try:
            parts = await self._parts(mail)
            act = _Performance(mail, parts)
            if act.whole:
                number = await self._keepsakes.keep(mail, act.accepted, self._connector.clock())
                act.end(Reply(250, "2.0.0", f"Kept in the sandbox as {number}"))
        except (sqlite3.Error, OSError):
            outcome = _broken(Stage.DOT)
            return Sent((outcome,) * len(mail.recipients), Stage.DOT, str(outcome.reply), None, dsn=False)
        except BaseException:
            self._open = False
            raise
        self._open = self._open and not act.over
        return act.sent()

    async def _parts(self, mail: Outgoing) -> dict[int, Rehearsal]:
        """Which recipients act this time. Who acts a number of times only is counted."""
        parts = {
            place: part
            for place, recipient in enumerate(mail.recipients)
            if (part := rehearsal(recipient.address)) is not None
        }
        counted = {place: part.times for place, part in parts.items() if part.times is not None}
        if not counted:
            return parts
        addresses = {place: mail.recipients[place].address for place in counted}
        counts = await self._keepsakes.refusals(mail.id, sorted(set(addresses.values())))
        for place, times in counted.items():
            if counts.get(addresses[place], 0) > times:
                del parts[place]
        return parts

    async def probe(self) -> bool:
        """The sandbox does not go away."""
        return self._open

    async def close(self) -> None:
        """Let go of the database. Never raises."""
        self._open = False
        if not self._released:
            self._released = True
            await self._connector.release()


class _Performance:
    """One transaction acted out: outcomes as real upstreams cause them, and the dialogue that would have been."""

    def __init__(self, mail: Outgoing, parts: dict[int, Rehearsal]) -> None:
        self.mail = mail
        self.outcomes: list[Outcome | None] = [None] * len(mail.recipients)
        self.accepted: list[str] = []
        self.over = False
        """The connection has ended."""
        self.whole = False
        """The upstream has the whole message, and has not refused it."""
        self._stage = Stage.MAIL
        self._reply = ""
        self._dialogue = Dialogue(asyncio.get_running_loop().time)
        self._play(parts)

    def _play(self, parts: dict[int, Rehearsal]) -> None:
        login = next((part for part in parts.values() if part.act is Act.LOGIN), None)
        self._dialogue.sent(f"MAIL FROM:<{self.mail.envelope.sender}>".encode())
        if login is not None:
            self._refuse(Stage.MAIL, login.reply)
            return
        self._say(Reply(250, "2.1.0", "Sender ok"))
        for place, recipient in enumerate(self.mail.recipients):
            part = parts.get(place)
            self._dialogue.sent(f"RCPT TO:<{recipient.address}>".encode())
            if part is None or part.act is not Act.REFUSE or part.at_dot:
                self._say(_TAKEN)
                self.accepted.append(recipient.address)
                continue
            self._say(part.reply)
            self.outcomes[place] = outcome = outcome_of(Stage.RCPT, part.reply)
            self._decided(Stage.RCPT, part.reply)
            if part.reply.code == 421:
                self.over = True
                self._rest(outcome)
                return
        if self.accepted:
            self._content([part for place, part in parts.items() if self.outcomes[place] is None])

    def _content(self, parts: list[Rehearsal]) -> None:
        self._dialogue.sent(b"DATA")
        self._say(Reply(354, "", "Go ahead"))
        acts = {part.act for part in parts}
        if Act.DROP in acts:
            self._fail(dropped(Stage.DATA), "the connection ended")
            return
        self._dialogue.content(len(self.mail.front) + len(self.mail.content))
        refusal = next((part.reply for part in parts if part.at_dot), None)
        if refusal is not None:
            self.over = refusal.code == 421
            self._refuse(Stage.DOT, refusal)
            return
        self.whole = True
        if Act.UNCERTAIN in acts:
            # kept, but nobody is told: that is what makes a retry a duplicate
            self._fail(timeout(Stage.DOT), "no answer in time")

    def _fail(self, outcome: Outcome, note: str) -> None:
        self.over = True
        self._dialogue.note(note)
        self._decided(outcome.stage, outcome.reply)
        self._rest(outcome)

    def _refuse(self, stage: Stage, reply: Reply) -> None:
        self._say(reply)
        self._decided(stage, reply)
        self._rest(outcome_of(stage, reply))

    def end(self, reply: Reply) -> None:
        """The mail is kept; where the upstream fell silent before, nobody hears of it."""
        if None not in self.outcomes:
            return
        self._say(reply)
        self._stage, self._reply = Stage.DOT, str(reply)
        self._rest(outcome_of(Stage.DOT, reply))

    def _say(self, reply: Reply) -> None:
        self._dialogue.received(reply.code, f"{reply.enhanced} {reply.text}".encode())

    def _decided(self, stage: Stage, reply: Reply) -> None:
        if stage is not self._stage or not self._reply:
            self._stage, self._reply = stage, str(reply)

    def _rest(self, outcome: Outcome) -> None:
        self.outcomes = [known or outcome for known in self.outcomes]

    def sent(self) -> Sent:
        """The result for the dispatcher."""
        outcomes = tuple(outcome for outcome in self.outcomes if outcome is not None)
        transcript = None if all_delivered(outcomes) else self._dialogue.render()
        return Sent(outcomes, self._stage, self._reply, transcript, dsn=False)


def _broken(stage: Stage) -> Outcome:
    reply = Reply(451, "4.3.0", "The sandbox cannot keep mail: its database is not usable")
    return Outcome(OutcomeKind.TROUBLE, stage, reply, ReplyClass.SYSTEM_ERROR.value)
