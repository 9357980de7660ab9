"""The interface of intake that listeners speak to. intake.py implements it; tests of the protocol fake it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from relayd.core.mail import Envelope, Recipient
from relayd.core.reply import Reply
from relayd.intake.memory import MemoryBudget
from relayd.intake.session import ClientSession
from relayd.spool.company import Company
from relayd.spool.joining import Joiner


class Door(Protocol):
    """Every method answers at once unless it is a coroutine; None means: go on."""

    memory: MemoryBudget
    """The listener reserves the octets of a message while it receives it, and releases them when `submit` has
    answered (or the session ended). What is handed on in memory to delivery, intake and the lanes count themselves."""

    company: Company
    """The listener says whose mail is about to come."""

    joiner: Joiner
    """Puts content together."""

    def connect(self, session: ClientSession) -> Reply | None:
        """A client connected (after PROXY, XCLIENT): may it speak? Sets session.network.

        Draining 421 4.3.2, guessing 421 4.7.0, and 554 5.7.1 where access is by network alone and it is in none.
        The caps on connections are the listener's own.
        """

    async def authenticate(self, session: ClientSession, username: str, password: str) -> Reply:
        """Check a login: 235 2.7.0 and session.credential set; 535 5.7.8 (slowed); 421 4.7.0 after too many."""

    def mail(self, session: ClientSession, envelope: Envelope, size: int) -> Reply | None:
        """May it send from this sender, of this declared size (0: not declared)? See admission.py for the order."""

    def rcpt(self, session: ClientSession, envelope: Envelope, recipient: Recipient, count: int) -> Reply | None:
        """May it add this recipient, when `count` are accepted already?"""

    async def submit(
        self,
        session: ClientSession,
        envelope: Envelope,
        recipients: Sequence[Recipient],
        content: bytes,
        rest: list[bytes] | None = None,
    ) -> Reply:
        """Keep the message: 250 2.0.0 with its id once durable, else the reason. Never raises for bad input.

        `content` is dot-unstuffed, ends with CRLF, and has CRLF line ends only. Of a big message it may be the
        beginning, with the pieces that follow in `rest`: that list is emptied, so that they need not stay in memory
        beside what is made of them.
        Cancelling the caller cancels no commit.
        """
