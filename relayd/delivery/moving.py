"""Mail whose upstream cannot be used moves to another that may carry it, out of the window, as fast as that works.

So a pause costs no walk over the queue: what waits on disk comes into the window when it is due, and on from there.
Which lane it is that a message goes to is failover.py's to say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

import structlog

from relayd.core.ids import MessageId
from relayd.core.lifecycle import State
from relayd.core.mail import Message
from relayd.delivery.failover import Unavailable
from relayd.delivery.line import Line
from relayd.spool.store import Delivery, Waiting

LOOK = 1.0
"""Seconds between looks at lanes that cannot be used, whatever was told."""
_STEP = 100
"""Messages that are looked at in one turn of the loop."""
_FULL = 0.05
"""Seconds until the other lane is looked at again that had no room."""


class Mover(Protocol):
    """What moves one delivery: attempt.py."""

    async def reroute(self, line: Line, delivery: Delivery) -> bool:
        """Move the recipients that go elsewhere now; False where all stay."""


class Moving:
    """Watches the lanes of one worker that cannot be used, on its event loop."""

    def __init__(
        self,
        lines: Mapping[str, Line],
        mover: Mover,
        unavailable: Callable[[str], Unavailable | None],
        choose: Callable[[Message, Waiting], str],
        shared: Callable[[str], bool],
    ) -> None:
        """`shared`: whether some other lane may carry what a lane has."""
        self._lines = lines
        self._mover = mover
        self._unavailable = unavailable
        self._choose = choose
        self._shared = shared
        self._stuck: dict[str, set[MessageId]] = {}
        """Looked at in vain since the last change of what can be used, by lane."""
        self._moves: set[asyncio.Task[None]] = set()
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._log = structlog.get_logger("relayd.delivery")

    def start(self) -> None:
        """Begin to watch."""
        self._task = asyncio.create_task(self._run(), name="failover")

    async def stop(self) -> None:
        """End; what is being moved is written."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, *self._moves, return_exceptions=True)

    def changed(self) -> None:
        """What can be used has changed: look at everything again."""
        self._stuck.clear()
        self._wanted.set()

    def arrived(self, lane: str) -> None:
        """There is mail in this lane, which may be one that cannot be used."""
        if self._shared(lane) and not self._wanted.is_set() and self._unavailable(lane) is not None:
            self._wanted.set()

    async def _run(self) -> None:
        while True:
            # that a budget is used up tells nobody: where it may matter, it is looked at
            wait = LOOK if any(map(self._shared, self._lines)) else None
            try:
                async with asyncio.timeout(wait):
                    await self._wanted.wait()
            except TimeoutError:
                pass
            self._wanted.clear()
            for line in self._closed():
                try:
                    await self._empty(line)
                except Exception:  # noqa: BLE001 - other lanes must not wait for a fault in one
                    self._log.exception("failover failed", upstream=line.plan.name)

    def _closed(self) -> list[Line]:
        return [
            line for name, line in self._lines.items() if self._shared(name) and self._unavailable(name) is not None
        ]

    async def _empty(self, line: Line) -> None:
        """Move what is in the window of a lane, as long as it cannot be used and the others have room."""
        name = line.lane.name
        stuck = self._stuck.setdefault(name, set())
        moves = self._moves
        for place, delivery in enumerate(line.lane.idle(), 1):
            if not place % _STEP:
                await asyncio.sleep(0)
            if self._unavailable(name) is None or self._lines.get(name) is not line:
                break
            if delivery.message.id in stuck:
                continue
            goals = {self._choose(delivery.message, waiting) for waiting in delivery.recipients} - {name}
            if not goals:
                stuck.add(delivery.message.id)
                continue
            if any(self._full(goal) for goal in goals):
                self._again()
                break
            if line.lane.take_out(delivery):
                task = asyncio.create_task(self._move(line, delivery), name=f"move from {name}")
                moves.add(task)
                task.add_done_callback(moves.discard)
                if len(moves) >= _STEP:
                    await asyncio.wait(moves, return_when=asyncio.FIRST_COMPLETED)
        if moves:
            await asyncio.wait(moves)
            self._again()
        known = {delivery.message.id for delivery in line.lane.idle()}
        stuck &= known

    async def _move(self, line: Line, delivery: Delivery) -> None:
        moved = False
        try:
            moved = await self._mover.reroute(line, delivery)
        finally:
            if not moved:
                # uncertain, put here by hand, or overtaken: it waits for this upstream
                self._stuck.setdefault(line.lane.name, set()).add(delivery.message.id)
                line.lane.put_back(delivery)

    def _full(self, lane: str) -> bool:
        line = self._lines.get(lane)
        return line is not None and len(line.lane) >= max(line.lane.window // 2, 1)

    def _again(self) -> None:
        asyncio.get_running_loop().call_later(_FULL, self._wanted.set)


def settled(waiting: Waiting) -> bool:
    """It may have arrived by its upstream already: another one would send a second copy for sure."""
    return waiting.state is State.UNCERTAIN
