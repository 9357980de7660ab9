"""Fills one worker's spool by the Store's own verb, as fast as the disk allows: a process of its own for each worker.

    python -m tests.torture.filling SPOOL SLOT SLOTS MAILS SIZE LANE SEED

It prints how many it has kept, a line at a time, and goes on until it has MAILS of them or is told to end (SIGTERM).
"""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import time
from pathlib import Path

import structlog

from relayd.config.models import Spool
from relayd.core.lifecycle import State
from relayd.spool.sqlite import SqliteStore
from tests.support.mail import make_message, make_waiting

BATCH = 500
LATER = 10 * 60_000
"""A quarter of the mail was tried once, and comes due within so many milliseconds."""


async def fill(directory: Path, slots: tuple[int, int], mails: int, *, size: int, lane: str, seed: int) -> None:
    """Keep `mails` mails of `size` octets for `lane`, unless somebody stops it before."""
    rng = random.Random(f"{seed} {slots[0]}")
    store = SqliteStore(directory, *slots, Spool(), lambda: time.time_ns() // 1_000_000)
    await store.open()
    enough = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, enough.set)
    body = b"The quick brown fox jumps over the lazy dog, and again it does so.\r\n" * (size // 69 + 1)
    try:
        for done in range(0, mails, BATCH):
            kept = []
            for number in range(done, min(done + BATCH, mails)):
                content = b"Subject: %d\r\n\r\n" % number + body
                message = make_message(store.mint(), sender=f"app{number % 50}@example.com", content=content)
                later = rng.random() < 0.25
                waiting = make_waiting(
                    address=f"{rng.randrange(1_000_000)}@{rng.randrange(1000)}.example.org",
                    lane=lane,
                    state=State.DEFERRED if later else State.QUEUED,
                    due=message.accepted_at + (rng.randrange(LATER) if later else 0),
                    attempts=int(later),
                )
                kept.append(store.accept(message, [waiting], content))
            await asyncio.gather(*kept)
            sys.stdout.write(f"{min(done + BATCH, mails)}\n")
            sys.stdout.flush()
            if enough.is_set():
                break
    finally:
        await store.close()


if __name__ == "__main__":
    spool, slot, slots, mails, size, lane, seed = sys.argv[1:]
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    asyncio.run(fill(Path(spool), (int(slot), int(slots)), int(mails), size=int(size), lane=lane, seed=int(seed)))
