"""A spool that keeps nothing on disk: the accepting half of Store, with commits that tests hold back or fail."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from relayd.core.ids import IdMint, MessageId
from relayd.core.mail import Message
from relayd.spool.company import Company
from relayd.spool.store import Waiting


@dataclass(frozen=True)
class Accepted:
    """What `accept` was given."""

    message: Message
    recipients: tuple[Waiting, ...]
    content: bytes
    future: asyncio.Future[None]


class MemoryStore:
    """`held` True: commits wait for `commit`. `trouble`: what the next commits fail with."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._mint = IdMint(0)
        self.company = Company()
        self.accepted: list[Accepted] = []
        self.held = False
        self.trouble: BaseException | None = None
        self.asked = asyncio.Event()

    def mint(self) -> MessageId:
        """A fresh id."""
        return self._mint.next(self._clock())

    def accept(self, message: Message, recipients: Sequence[Waiting], content: bytes) -> asyncio.Future[None]:
        """Keep it in a list."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.accepted.append(Accepted(message, tuple(recipients), content, future))
        self.asked.set()
        if not self.held:
            self.commit()
        return future

    def commit(self) -> None:
        """Finish all that waits."""
        for entry in self.accepted:
            if entry.future.done():
                continue
            if self.trouble is not None:
                entry.future.set_exception(self.trouble)
            else:
                entry.future.set_result(None)
