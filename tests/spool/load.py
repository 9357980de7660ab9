"""A process that accepts and settles as fast as it can and tells each acknowledgement, until it is killed."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from relayd.config.models import Spool
from relayd.core.ids import MessageId
from relayd.core.lifecycle import State
from relayd.spool.sqlite import SqliteStore
from tests.support.mail import make_message, make_settlement, make_waiting


def say(word: str, number: MessageId) -> None:
    """One write: a line is told whole or not at all."""
    os.write(1, f"{word} {number}\n".encode())


class Ticks:
    """The time of day, or a clock on which every third reading begins a new segment."""

    def __init__(self, rolls: bool) -> None:
        self._rolls = rolls
        self._extra = 0

    def __call__(self) -> int:
        if self._rolls:
            self._extra += 25_000
        return time.time_ns() // 1_000_000 + self._extra


async def client(store: SqliteStore, clock: Callable[[], int], settles: bool, size: int) -> None:
    while True:
        number = store.mint()
        content = (b"%d\r\n" % number * (size // 8 + 1))[:size]
        message = make_message(number, content=content)
        waiting = make_waiting(due=message.accepted_at)
        await store.accept(message, [waiting], content)
        say("accepted", number)
        if settles:
            await store.settle(make_settlement(message, [waiting], State.DELIVERED, at=clock()))
            say("settled", number)


async def main(directory: str, mode: str, size: str) -> None:
    clock = Ticks(mode == "roll")
    store = SqliteStore(Path(directory), 0, 1, Spool(segment=60.0 if mode == "roll" else 86_400.0), clock)
    await store.open()
    await asyncio.gather(*(client(store, clock, mode == "settle", int(size)) for _ in range(20)))


if __name__ == "__main__":
    import structlog

    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    asyncio.run(main(*sys.argv[1:]))
