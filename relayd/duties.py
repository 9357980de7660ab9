"""What a worker does again and again beside the mail: each duty a task of its own, whose failures do not end it.

Which duties there are is app.py's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from relayd.spool.state import StateError
from relayd.spool.store import StoreError

_TELL_AGAIN = 60.0
"""Seconds until the same failure of a duty is logged again."""


class Duties:
    """The duties of one worker."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []
        self._log = structlog.get_logger("relayd.app")

    def begin(self, seconds: float, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Do this now, and again so long after it was done."""
        self._tasks.append(asyncio.create_task(self._repeat(seconds, name, work), name=f"duty {name}"))

    async def stop(self) -> None:
        """End all of them."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _repeat(self, seconds: float, name: str, work: Callable[[], Awaitable[None]]) -> None:
        told, loop = ("", 0.0), asyncio.get_running_loop()
        while True:
            try:
                await work()
            except (StoreError, StateError) as error:
                # a broken disk stays broken for a while: the log is not to be filled with it
                if told[0] != str(error) or loop.time() - told[1] > _TELL_AGAIN:
                    told = (str(error), loop.time())
                    self._log.error("duty failed", duty=name, error=str(error))
            except Exception:  # noqa: BLE001 - one faulty round must not end the duty for good
                self._log.exception("duty failed", duty=name)
            await asyncio.sleep(seconds)
