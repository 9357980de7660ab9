"""What a worker does when it is asked over its control socket: by commands, and by other workers.

The socket itself is control.py's, the work that of the parts: here questions are read, and answers put in words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from relayd.control import ControlError, Handler
from relayd.core.address import AddressError, validate
from relayd.core.feedback import FactError
from relayd.core.ids import format_id
from relayd.core.lifecycle import Act
from relayd.core.mail import INBOUND
from relayd.core.units import Millis
from relayd.delivery.dispatch import Dispatcher
from relayd.delivery.line import Plan
from relayd.delivery.notices import Reporter
from relayd.delivery.standings import StandingBook
from relayd.delivery.steering import Steering
from relayd.domains.book import DomainBook
from relayd.inbound.archive import Verb
from relayd.intake.intake import Intake
from relayd.spool.filter import QueueFilter
from relayd.spool.sqlite import SqliteStore
from relayd.spool.state import StateError
from relayd.spool.store import StoreError


@dataclass(frozen=True, slots=True)
class Verbs:
    """The verbs of one worker."""

    slot: int
    plan: Callable[[], Plan]
    """The configuration's, now."""
    status: Callable[[], dict[str, Any]]
    clock: Callable[[], Millis]
    intake: Intake
    store: SqliteStore
    dispatcher: Dispatcher
    steering: Steering
    reporter: Reporter
    standings: StandingBook
    book: DomainBook

    def handlers(self, inbound: Mapping[str, Verb]) -> dict[str, Handler]:
        """All of them by name, with those of what comes back."""
        acts = {act.value: act for act in Act if act is not Act.EXPIRE}
        return {
            **{f"queue.{name}": self._act(deed) for name, deed in acts.items()},
            "queue.move": self._move,
            "upstream.try": self._try_upstream,
            "upstream.look": self._look_at_upstreams,
            "domains.refresh": _for_workers(self._refresh_domains),
            "spool.adopt": _for_workers(self._adopt),
            **{name: _for_workers(verb) for name, verb in inbound.items()},
            "ping": self._ping,
            "mail.send": self._send_mail,
            "worker.status": self._worker_status,
        }

    def _act(self, deed: Act) -> Handler:
        async def handle(args: dict[str, Any]) -> Any:
            wanted, by, reason = _asked(args)
            done = await self.steering.act(deed, wanted, by=by, reason=reason)
            return {"recipients": done.recipients, "messages": done.messages, "busy": done.busy}

        return handle

    async def _move(self, args: dict[str, Any]) -> Any:
        """Waiting mail to another upstream, by hand."""
        wanted, by, reason = _asked(args)
        to, plan = str(args.get("to", "")), self.plan()
        if not any(_within(lane, to) for lane in plan.upstreams) or to == INBOUND:
            raise ControlError(f"there is no upstream {to}")
        return asdict(await self.steering.move(wanted, partial(plan.table.lane_of, to), by=by, reason=reason))

    async def _send_mail(self, args: dict[str, Any]) -> Any:
        """A mail of our own for an operator: null sender, no access checks."""
        try:
            recipient, content = str(args["recipient"]), str(args["content"]).encode("ascii")
            validate(recipient)
        except (KeyError, UnicodeEncodeError, AddressError) as error:
            raise ControlError(f"this cannot be sent: {error}") from None
        return {"id": format_id(await self.intake.submit_report(recipient, content))}

    async def _try_upstream(self, args: dict[str, Any]) -> Any:
        lane = str(args.get("lane", ""))
        resumed = self.dispatcher.try_now(lane)
        if waiting := self.dispatcher.put_off(lane):
            await self.steering.act(Act.RETRY, QueueFilter(ids=waiting, lane=lane), by="relayd upstream test")
        return {"resumed": resumed}

    async def _look_at_upstreams(self, args: dict[str, Any]) -> Any:
        """A command suspended or resumed upstreams: see what it did."""
        try:
            await self.standings.poll()
        except StateError as error:
            raise ControlError(str(error)) from None
        lane = str(args.get("lane", ""))
        lanes = [name for name in self.plan().upstreams if _within(name, lane)]
        return {"resumed": [name for name in lanes if self.dispatcher.try_now(name)]}

    async def _refresh_domains(self, args: dict[str, Any]) -> Any:
        """A command has changed domains: it returns once every worker knows."""
        await self.book.poll()
        return {"generation": self.book.everything.generation}

    async def _adopt(self, args: dict[str, Any]) -> Any:
        """A command has recovered segments: what waits in them is sent."""
        taken = await self.store.adopt([Path(str(path)) for path in args["segments"]])
        if taken:
            for depth in await self.store.lanes():
                self.dispatcher.wake(depth.lane, self.clock())
            self.reporter.wake()
        return {"segments": taken}

    async def _ping(self, args: dict[str, Any]) -> Any:
        return {"slot": self.slot}

    async def _worker_status(self, args: dict[str, Any]) -> Any:
        return self.status()


def _asked(args: dict[str, Any]) -> tuple[QueueFilter, str, str]:
    """Which mail is meant, who asks, and why. Raises ControlError."""
    try:
        wanted = QueueFilter.from_dict(args.get("filter") or {})
    except ValueError as error:
        raise ControlError(str(error)) from None
    return wanted, str(args.get("by", "")), str(args.get("reason", ""))


def _within(lane: str, upstream: str) -> bool:
    """The lane is that one, or that of one of its accounts."""
    return lane == upstream or lane.startswith(f"{upstream}/")


def _for_workers(verb: Verb) -> Handler:
    """A question that another worker may ask: what is in the way goes back in words."""

    async def handle(args: dict[str, Any]) -> Any:
        try:
            return await verb(args)
        except (FactError, StoreError, StateError) as error:
            raise ControlError(str(error)) from error
        except (ValueError, KeyError, TypeError) as error:
            raise ControlError(f"not a question between workers: {error}") from error

    return handle
