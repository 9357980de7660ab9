"""Which upstreams can be used now: pauses that any worker found, suspensions by hand, storms, days that are used up.

What one worker learns stands in state.db within the moment, and the others see it within half a second. Deciding what
to do about it is failover.py's and the gates'.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Protocol

import structlog

from relayd.core.lifecycle import Outcome
from relayd.core.mail import upstream_of
from relayd.core.units import Millis
from relayd.delivery.failover import Unavailable, Why
from relayd.delivery.gate import Gate
from relayd.delivery.observer import DeliveryObserver
from relayd.spool import standings as rows
from relayd.spool.standings import Pause, Standings, Suspension, SuspensionKind
from relayd.spool.state import StateDB, StateError

POLL = 0.5
"""Seconds after which what another process did is seen at the latest."""
PROBE: Millis = 60_000
"""So long one worker may probe before another does."""
_WAIT: Millis = 2_000
REASON = 300
"""Characters of a reply that is remembered."""

Write = Callable[[sqlite3.Connection], object]


class Watched(Protocol):
    """A lane at work, as this file needs it: line.py's Line."""

    @property
    def gate(self) -> Gate:
        """Its gate."""

    def opened(self) -> None:
        """It may be used again."""


class StandingBook:
    """What one worker knows, on its event loop. Without `state` it knows only what it found out itself."""

    def __init__(
        self,
        state: StateDB | None,
        observer: DeliveryObserver,
        clock: Callable[[], Millis],
        *,
        owner: str = "",
        slot: int = 0,
        slots: int = 1,
    ) -> None:
        """`owner` names this process among the workers; of those, that in slot 0 logs what operators did."""
        self._state = state
        self._observer = observer
        self._speaks = slot == 0
        self._clock = clock
        self._owner = owner
        self._alone = slots == 1
        self._lanes: dict[str, Watched] = {}
        self._now = Standings()
        self._shared: set[str] = set()
        """Lanes whose pause was seen in state.db: where it is gone from there, another worker got through."""
        self._unwritten: deque[tuple[Write, str]] = deque()
        self._writer: asyncio.Task[None] | None = None
        self._told = 0
        """Counts what was found out here: what was read before it is out of date."""
        self._log = structlog.get_logger("relayd.delivery")
        self.exhausted: Callable[[str], str | None] = lambda lane: None
        """Which budget of the day a lane has used up, if any: the budgets put their own here."""
        self.changed: Callable[[], None] = lambda: None
        """Called when lanes came or went; the dispatcher looks then for mail that is to move."""

    # -- what others ask ------------------------------------------------------------------------------------------

    def unavailable(self, lane: str) -> Unavailable | None:
        """What is in the way of a lane; None: nothing. After a pause it is usable until a probe is out."""
        if self._now.suspensions and (suspension := self._suspension(lane)) is not None:
            return Unavailable(Why.SUSPENDED, suspension.reason)
        watched = self._lanes.get(lane)
        if watched is not None and watched.gate.paused:
            gate = watched.gate
            if gate.probing or gate.left(self._clock()) > 0:
                return Unavailable(Why.PAUSED, gate.reason)
        spent = self.exhausted(lane)
        return None if spent is None else Unavailable(Why.EXHAUSTED, spent)

    def pardoned(self, lane: str, key: str) -> bool:
        """An operator let this reply bounce."""
        return (lane, key) in self._now.pardons or (upstream_of(lane), key) in self._now.pardons

    def suspension(self, lane: str) -> Suspension | None:
        """What suspends the lane now, or the whole of its upstream."""
        return self._suspension(lane) if self._now.suspensions else None

    def _suspension(self, lane: str) -> Suspension | None:
        found = self._now.suspensions
        suspension = found.get(upstream_of(lane)) or found.get(lane)
        if suspension is None or (suspension.until is not None and suspension.until <= self._clock()):
            return None
        return suspension

    # -- what lanes tell ------------------------------------------------------------------------------------------

    def know(self, lane: str, watched: Watched) -> None:
        """A lane is at work from now on."""
        self._lanes[lane] = watched
        self._apply_to(lane, watched, self._clock())

    def forget(self, lane: str) -> None:
        """It is not any more."""
        watched = self._lanes.pop(lane, None)
        if watched is not None and watched.gate.shut:
            self._observer.suspended(lane, False)
        self._shared.discard(lane)

    def trouble(self, lane: str, gate: Gate, outcome: Outcome, *, first: bool) -> None:
        """The lane met with trouble, and its gate is closed until a probe."""
        reason = gate.reason[:REASON]
        if first:
            self._log.warning(
                "upstream.paused", upstream=lane, reason=reason, since=gate.since, next_probe=gate.paused_until
            )
            self._observer.upstream_event(lane, "paused")
        pause = Pause(lane, gate.since, gate.paused_until, gate.troubles, reason)
        detail = {"reason": reason, "stage": outcome.stage.value, "class": outcome.cls, "next_probe": gate.paused_until}

        def write(db: sqlite3.Connection) -> None:
            rows.pause(db, pause, detail)
            self._unclaim(db, lane)

        self._write(write, shares=lane)
        self.changed()

    def works(self, lane: str, gate_since: Millis) -> None:
        """A message got through: the pause is over, for everybody."""
        now = self._clock()
        self._log.info("upstream.resumed", upstream=lane, since=gate_since, paused_seconds=(now - gate_since) // 1000)
        self._observer.upstream_event(lane, "resumed")
        self._shared.discard(lane)

        def write(db: sqlite3.Connection) -> None:
            rows.unpause(db, lane, now, "a probe")
            self._unclaim(db, lane)

        self._write(write)
        self.changed()

    def try_now(self, lane: str) -> None:
        """Something about the lane was changed, and it is tried at once: what stands in state.db must not hinder it."""
        now = self._clock()
        self._write(
            lambda db: db.execute("UPDATE upstream_pause SET until = min(until, ?) WHERE lane = ?", (now, lane))
        )

    def storm(self, lane: str, reason: str, key: str, recipients: int) -> None:
        """The same refusal hit many recipients: nothing more goes out until an operator says so."""
        now = self._clock()
        found = Suspension(lane, SuspensionKind.STORM, now, None, reason[:REASON], "storm guard")
        self._log.error(
            "upstream.storm",
            upstream=lane,
            reply=reason[:REASON],
            recipients=recipients,
            remedy=f"nothing has bounced; find out why, then: relayd upstream resume {lane}",
        )
        self._observer.upstream_event(lane, "storm")
        self._now = Standings(self._now.pauses, {**self._now.suspensions, lane: found}, self._now.pardons)
        detail: rows.Detail = {"key": key, "recipients": recipients}
        self._write(lambda db: rows.suspend(db, found, detail))
        self._apply_all()

    async def may_probe(self, lane: str) -> bool:
        """One message of all workers probes. Where this is not the one, the gate waits for what the other finds."""
        if self._alone or self._state is None:
            return True
        now = self._clock()
        try:
            if await self._state.claim(_probe(lane), self._owner, now, PROBE):
                return True
        except StateError as error:
            self._log.error("standings cannot be shared", error=str(error))
            return True
        if (watched := self._lanes.get(lane)) is not None:
            watched.gate.wait(now + _WAIT)
        return False

    def _unclaim(self, db: sqlite3.Connection, lane: str) -> None:
        db.execute("DELETE FROM lease WHERE name = ? AND owner = ?", (_probe(lane), self._owner))

    # -- sharing --------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Read what stood at the last end. A pause from then is probed at once. Raises StateError."""
        if self._state is not None:
            now = self._clock()
            await self._state.write(lambda db: db.execute("UPDATE upstream_pause SET until = min(until, ?)", (now,)))
        await self.poll()

    async def poll(self) -> None:
        """See what others did, and end what is over. Raises StateError."""
        if self._state is None:
            return
        now = self._clock()
        if any(each.until is not None and each.until <= now for each in self._now.suspensions.values()):
            for lane in await self._state.write(partial(rows.lapse, now=now)):
                self._log.info("upstream.resumed", upstream=lane, reason="its suspension is over")
                self._observer.upstream_event(lane, "resumed")
        told = self._told
        found = await self._state.read(partial(rows.read, now=now))
        known = found == self._now and found.pauses.keys() >= self._shared
        if known or self._writer is not None or told != self._told:
            # where this worker found out something, that is not in what was read: the next look will have it
            return
        if self._speaks:
            self._tell(found)
        self._now = found
        self._apply_all()

    def _tell(self, found: Standings) -> None:
        """Log what operators did meanwhile."""
        before, after = self._now.suspensions, found.suspensions
        for lane in after.keys() - before.keys():
            new = after[lane]
            if new.kind is SuspensionKind.HAND:
                self._log.warning("upstream.suspended", upstream=lane, by=new.by, reason=new.reason, until=new.until)
                self._observer.upstream_event(lane, "suspended")
        for lane in before.keys() - after.keys():
            self._log.info("upstream.resumed", upstream=lane, after=before[lane].kind.value)
            self._observer.upstream_event(lane, "resumed")

    async def stop(self) -> None:
        """Write what is not written yet."""
        if self._writer is not None:
            await asyncio.gather(self._writer, return_exceptions=True)

    def _apply_all(self) -> None:
        now = self._clock()
        for lane, watched in list(self._lanes.items()):
            self._apply_to(lane, watched, now)
        self.changed()

    def _apply_to(self, lane: str, watched: Watched, now: Millis) -> None:
        gate = watched.gate
        paused, shut = gate.paused, gate.shut
        gate.shut = self.suspension(lane) is not None
        pause = self._now.pauses.get(lane)
        if pause is not None:
            self._shared.add(lane)
            gate.adopt(pause.since, pause.until, pause.troubles, pause.reason, now)
        elif lane in self._shared:
            self._shared.discard(lane)
            gate.success()
        if gate.paused != paused:
            self._observer.paused(lane, gate.paused)
        if gate.shut != shut:
            self._observer.suspended(lane, gate.shut)
        if (paused or shut) and gate.may_take(now):
            watched.opened()

    def _write(self, write: Write, shares: str = "") -> None:
        """Write soon; `shares` is the lane whose pause everybody sees then."""
        if self._state is None:
            return
        self._told += 1
        self._unwritten.append((write, shares))
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_all(), name="write standings")

    async def _write_all(self) -> None:
        state = self._state
        try:
            while self._unwritten and state is not None:
                write, shares = self._unwritten.popleft()
                try:
                    await state.write(write)
                    if shares in self._lanes and self._lanes[shares].gate.paused:
                        self._shared.add(shares)
                except StateError as error:
                    # the others find out for themselves
                    self._log.error("standings cannot be shared", error=str(error))
        finally:
            self._writer = None


def _probe(lane: str) -> str:
    return f"probe {lane}"
