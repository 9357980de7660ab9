"""What lanes may still send: permits leased from state.db in small slices, spent one transaction at a time.

How many there are is core/permits.py's; lanes without limits have no budget at all, and nothing here runs for them.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from relayd.core.ids import MessageId
from relayd.core.lifecycle import OutcomeKind, Stage
from relayd.core.permits import GRAINS, Kind, Refusal, Request, Share, slice_of, valid_for
from relayd.core.session import Sent
from relayd.core.units import Millis, Rate
from relayd.spool.budgets import BudgetStore
from relayd.spool.state import StateError

SWEEP = 1.0
"""Seconds between looks for permits that nobody needs, and for those whose time runs out while they are in use."""
TROUBLE: Millis = 1_000
"""After state.db failed, it is asked again so much later."""
_LONGEST_ALARM = 60.0
_PLENTY = 1 << 40
"""Permits of a kind that has no limit."""

_COUNTED = frozenset({Stage.DATA, Stage.DOT})


def counted(sent: Sent) -> int:
    """Recipients of a transaction that count: those that the upstream had taken when the content was to follow.

    Providers count submissions, refused ones too once they have seen them; what they refuse at MAIL or RCPT, or what
    never reached them, they do not. Silence behind DATA counts: it may have been taken.
    """
    return sum(outcome.stage in _COUNTED or outcome.kind is OutcomeKind.DELIVERED for outcome in sent.outcomes)


@dataclass(slots=True)
class _Hand:
    """Permits of one delivery that a carrier has: reserved, or in a transaction."""

    messages: int
    recipients: int
    sending: bool = False


class Budget:
    """The budgets that one lane's mail has to fit in, as one worker may use them. Lives on one event loop."""

    def __init__(
        self,
        lane: str,
        shares: tuple[Share, ...],
        book: BudgetBook,
        *,
        wake: Callable[[int], None],
        wanted: Callable[[], bool],
    ) -> None:
        """`wake` calls so many carriers; `wanted` says whether mail waits that could go out."""
        self.lane = lane
        self._book = book
        self._wake = wake
        self._wanted = wanted
        self._owner = f"{book.owner}/{lane}"
        self._reserving: _Hand | None = None
        self._hands: dict[MessageId, _Hand] = {}
        self._used: list[tuple[Millis, int, int]] = []
        self._until: Millis = 0
        self._since: Millis = 0
        self._refusal: Refusal | None = None
        self._refused_until: Millis = 0
        self._urgency = 0
        self._turned_away = 0
        self._asking: asyncio.Task[None] | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self.apply(shares)

    def apply(self, shares: tuple[Share, ...]) -> None:
        """Take other limits. What was used so far counts against them."""
        self.shares = shares
        kinds = {share.kind for share in shares}
        self._kinds = kinds
        self._left = {kind: 0 if kind in kinds else _PLENTY for kind in Kind}
        self._valid = valid_for(shares) if shares else 0
        self._until = 0
        self._grain = max(min((w.span for s in shares for w in s.windows), default=1) // GRAINS, 1)
        self._slices = {
            kind: min(slice_of(share, self._book.workers) for share in shares if share.kind is kind) for kind in kinds
        }
        self._refusal, self._refused_until = None, 0

    # -- what lanes and carriers do -------------------------------------------------------------------------------

    def closed(self, urgency: int) -> bool:
        """It is known that nothing is left just now for mail so urgent. An alarm is set for when there may be."""
        now = self._book.clock()
        if now >= self._refused_until or urgency > self._urgency or self._in_hand():
            return False
        self._set_alarm(now)
        return True

    def reserve(self, urgency: int) -> bool:
        """Take a permit for the next delivery; False while there is none, and carriers are called when there is."""
        if self._take():
            return True
        if self._asking is not None:
            self._turned_away += 1
        elif not self.closed(urgency):
            self._urgency = urgency
            # one for each carrier that came since: small budgets have slices of one, and each is a write to disk
            carriers, self._turned_away = max(self._turned_away, 1), 0
            self._start({kind: carriers * want for kind, want in self._missing().items()})
        return False

    def assign(self, message: MessageId) -> None:
        """What was reserved is for this message."""
        hand, self._reserving = self._reserving, None
        if hand is not None:
            self._hands[message] = hand

    def cancel(self) -> None:
        """What was reserved is not needed."""
        hand, self._reserving = self._reserving, None
        if hand is not None:
            self._give_back(hand)

    async def spend(self, message: MessageId, recipients: int) -> int:
        """Before a transaction: to how many recipients it may go now. 0: to none, the mail has to wait."""
        hand = self._hands.get(message) if self._fresh() else None
        if hand is None:
            if not self._take():
                await self._more(Kind.MESSAGES, 1)
                if not self._take():
                    return 0
            self.assign(message)
            hand = self._hands[message]
        hand.sending = True
        extra = recipients - hand.recipients
        if extra > self._left[Kind.RECIPIENTS]:
            await self._more(Kind.RECIPIENTS, extra - self._left[Kind.RECIPIENTS])
        extra = max(min(extra, self._left[Kind.RECIPIENTS]), 0)
        self._left[Kind.RECIPIENTS] -= extra
        hand.recipients += extra
        return hand.recipients

    def sent(self, message: MessageId, recipients: int) -> None:
        """After it: so many recipients count. The others' permits may be used again."""
        hand = self._hands.pop(message, None)
        if hand is None:
            return
        self._use(1 if recipients else 0, recipients)
        self._give_back(_Hand(hand.messages - (1 if recipients else 0), max(hand.recipients - recipients, 0)))

    def done(self, message: MessageId) -> None:
        """The message is let go of. A transaction that was cut off may have been seen, so it counts."""
        hand = self._hands.pop(message, None)
        if hand is None:
            return
        if hand.sending:
            self._use(hand.messages, hand.recipients)
        else:
            self._give_back(hand)

    @property
    def refusal(self) -> Refusal | None:
        """What mail waits for, while it does."""
        return self._refusal if self._book.clock() < self._refused_until and self._wanted() else None

    def exhausted(self, span: Millis) -> Refusal | None:
        """A budget of at least that span is used up, as far as is known; what it said."""
        found = self._refusal
        if found is None or found.gives_way or found.window.span < span or self._book.clock() >= self._refused_until:
            return None
        return found

    def waits_for(self) -> dict[str, str | int] | None:
        """The same for people and programs."""
        found = self.refusal
        if found is None:
            return None
        window = found.window
        return {
            "budget": found.share.name,
            "kind": found.share.kind.value,
            "limit": str(Rate(window.count, window.span / 1000)),
            "until": found.free_at,
        }

    # -- in the hand ------------------------------------------------------------------------------------------------

    def _fresh(self) -> bool:
        """What is in the hand may be used: its time is not over (nor was the clock put back)."""
        return self._since <= self._book.clock() < self._until or not self.shares

    def _in_hand(self) -> bool:
        """There is a permit of each kind."""
        return all(self._left.values()) and self._fresh()

    def _missing(self) -> dict[Kind, int]:
        """One permit of each kind of which none is in the hand."""
        fresh = self._fresh()
        return {kind: 0 if self._left[kind] and fresh else 1 for kind in self._kinds}

    def _take(self) -> bool:
        if not self._in_hand():
            return False
        self._left[Kind.MESSAGES] -= 1
        self._left[Kind.RECIPIENTS] -= 1
        self._reserving = _Hand(1, 1)
        return True

    def _use(self, messages: int, recipients: int) -> None:
        if not (messages or recipients) or not self.shares:
            return
        now = self._book.clock()
        if self._used and self._used[-1][0] // self._grain == now // self._grain:
            _, before, to = self._used[-1]
            self._used[-1] = now, before + messages, to + recipients
        else:
            self._used.append((now, messages, recipients))

    def _give_back(self, hand: _Hand) -> None:
        self._left[Kind.MESSAGES] += hand.messages
        self._left[Kind.RECIPIENTS] += hand.recipients
        if hand.messages and self._wanted():
            self._wake(1)

    def _in_hands(self, kind: Kind) -> int:
        hands = [*self._hands.values(), *([self._reserving] if self._reserving else [])]
        return sum(hand.messages if kind is Kind.MESSAGES else hand.recipients for hand in hands)

    # -- asking -----------------------------------------------------------------------------------------------------

    def _start(self, want: dict[Kind, int], *, put_down: bool = False) -> asyncio.Task[None]:
        """A task of its own, so that a carrier that is cancelled loses no permits. Never two at a time."""
        task = self._asking = asyncio.create_task(self._exchange(want, put_down=put_down), name=f"budget {self.lane}")
        task.add_done_callback(self._asked)
        return task

    def _asked(self, task: asyncio.Task[None]) -> None:
        self._asking = None
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            self._refused_until = self._book.clock() + TROUBLE
            self._book.complain(self.lane, error)
        # whatever it was about: carriers that came meanwhile were sent away
        if self._wanted() and not self.closed(self._urgency):
            self._wake(max(self._left[Kind.MESSAGES], 1))

    async def _turn(self) -> None:
        while self._asking is not None:
            await asyncio.wait([self._asking])

    async def _more(self, kind: Kind, count: int) -> None:
        """Get so many of one kind, or what there is; of the other kind at least one where there is none in the hand."""
        await self._turn()
        want = self._missing()
        if kind in want:
            want[kind] = count
        if any(want.values()):
            await asyncio.wait([self._start(want)])

    async def _exchange(self, want: dict[Kind, int], *, put_down: bool = False) -> None:
        """Report what was used, and lease what is wanted. Never two at a time for one lane."""
        now = self._book.clock()
        used, self._used = self._used, []
        if put_down or not self._fresh():
            # what is out of time counts as used already, or others have it
            for kind in self._kinds:
                self._left[kind] = 0
        requests = {
            kind: Request(
                tuple((at, count) for at, *counts in used if (count := counts[kind is Kind.RECIPIENTS])),
                self._left[kind] + self._in_hands(kind),
                want.get(kind, 0),
                self._slices[kind],
            )
            for kind in self._kinds
        }
        try:
            answer = await self._book.store.exchange(self.shares, self._owner, requests, now, self._urgency)
        except BaseException:
            self._used = used + self._used
            raise
        self._since, self._until = now, now + self._valid
        if isinstance(answer, Refusal):
            self._refusal, self._refused_until = answer, answer.until
            return
        if any(want.values()):
            self._refused_until = 0
        for kind, count in answer.permits.items():
            self._left[kind] += count

    def _set_alarm(self, now: Millis) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        seconds = (self._refused_until - now) / 1000 + 0.002
        self._alarm = asyncio.get_running_loop().call_later(min(seconds, _LONGEST_ALARM), self._wake, 1)

    async def sweep(self) -> None:
        """Hand back what nobody needs; report in time where something is in use for long."""
        if self._asking is not None or not self.shares:
            return
        idle = not self._hands and self._reserving is None and not self._wanted()
        something = bool(self._used) or any(self._left[k] + self._in_hands(k) for k in self._kinds)
        late = self._book.clock() >= self._until - self._valid // 2
        if something and (idle or late):
            await asyncio.wait([self._start({}, put_down=idle)])

    async def close(self) -> None:
        """Hand everything back."""
        if self._alarm is not None:
            self._alarm.cancel()
        await self._turn()
        if self.shares:
            await asyncio.wait([self._start({}, put_down=True)])


class BudgetBook:
    """The budgets of one worker's lanes."""

    def __init__(self, store: BudgetStore, clock: Callable[[], Millis], workers: int) -> None:
        self.store = store
        self.clock = clock
        self.workers = workers
        self.owner = secrets.token_hex(6)
        """One process's life: what an earlier one held counts as used when its time is over."""
        self._budgets: dict[str, Budget] = {}
        self._task: asyncio.Task[None] | None = None
        self._log = structlog.get_logger("relayd.delivery")
        self._complained: Millis = 0

    def open(
        self, lane: str, shares: tuple[Share, ...], wake: Callable[[int], None], wanted: Callable[[], bool]
    ) -> Budget:
        """The budget of a lane that has limits."""
        budget = self._budgets[lane] = Budget(lane, shares, self, wake=wake, wanted=wanted)
        if self._task is None:
            self._task = asyncio.create_task(self._sweep(), name="sweep budgets")
        return budget

    async def figures(self) -> dict[tuple[str, str, str, str], tuple[int, int]]:
        """Upstream, account, kind and window of every budget → its limit, and what all workers have used of it.

        Raises StateError.
        """
        shares = list(dict.fromkeys(share for budget in self._budgets.values() for share in budget.shares))
        now, out = self.clock(), {}
        for share, usage in zip(shares, await self.store.usages(shares) if shares else [], strict=True):
            upstream, _, account = share.name.partition("/")
            usage.tidy(now, share.windows)
            for window in share.windows:
                period = str(Rate(1, window.span / 1000)).partition("/")[2]
                out[upstream, account, share.kind.value, period] = window.count, usage.used(now, window)
        return out

    def waiting(self) -> dict[str, bool]:
        """Lane → whether its mail waits for a budget."""
        return {lane: budget.refusal is not None for lane, budget in self._budgets.items()}

    async def drop(self, lane: str) -> None:
        """The lane is gone, its hands are empty."""
        budget = self._budgets.get(lane)
        if budget is not None:
            await budget.close()
            del self._budgets[lane]

    async def stop(self) -> None:
        """Hand everything back."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        for lane in list(self._budgets):
            await self.drop(lane)

    def complain(self, lane: str, error: BaseException) -> None:
        """state.db did not answer: nothing goes out that might be too much."""
        now = self.clock()
        if not 0 <= now - self._complained < 60_000:
            self._complained = now
            known = isinstance(error, StateError)
            self._log.error(
                "budget unknown, mail waits", upstream=lane, error=str(error), exc_info=None if known else error
            )

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP)
            for budget in list(self._budgets.values()):
                await budget.sweep()
