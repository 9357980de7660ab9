"""The arithmetic of a budget: permits used in rolling windows, and permits that workers hold. Pure.

Kept by spool/budgets.py; who asks for permits, and what for, is delivery/budget.py's.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from relayd.core.units import Millis

GRAINS = 256
"""How finely use is remembered where there is much: uses within this part of a window count from the last of them."""
MARKS = 3 * GRAINS
"""So many are remembered one by one."""
REMEMBERED: Millis = 86_400_000
"""Use is remembered so long at least, so that a limit per day that is added later knows of it."""
LONGEST_HOLD: Millis = 60_000
SHORTEST_HOLD: Millis = 2_000
"""What a worker holds counts as used when nothing was heard of it for so long: a sixteenth of the shortest window."""
SLACK: Millis = 5_000
"""How far ahead of now a moment may be: another process may have read the clock later and written sooner."""
RECHECK: Millis = 500
"""What others hold may come back: ask again after so long."""
GIVE_WAY: Millis = 200
"""The same, where it is the turn of other mail that waits for the permits that are left."""
TURNS = 10
"""Less urgent mail gets one permit after so many that went to more urgent mail."""


class Kind(StrEnum):
    """What a budget counts."""

    MESSAGES = "messages"
    RECIPIENTS = "recipients"


@dataclass(frozen=True, slots=True)
class Window:
    """At most `count` in any period of `span` milliseconds."""

    count: int
    span: Millis


@dataclass(frozen=True, slots=True)
class Share:
    """One budget that mail has to fit in: the windows of one kind, of an upstream or an account."""

    name: str
    kind: Kind
    windows: tuple[Window, ...]


Mark = tuple[Millis, int]
"""When permits were used, the last of them, and how many. A plain tuple: there are hundreds."""


@dataclass(slots=True)
class Usage:
    """One budget's record.

    What is held counts as used for as long as it is held, and from the moment it is reported counts from then: so a
    provider that counts anywhere between the permit and the report never sees more than the limit.
    """

    marks: list[Mark] = field(default_factory=list)
    """By moment."""
    holds: dict[str, tuple[int, Millis]] = field(default_factory=dict)
    """Owner → permits, and when they count as used if nothing is heard any more."""
    wants: dict[str, tuple[int, Millis]] = field(default_factory=dict)
    """Owner → how urgent its mail is that waits for permits, and until when that is believed."""
    passed: int = 0
    """Permits that went to urgent mail while less urgent mail waited."""

    def tidy(self, now: Millis, windows: Sequence[Window]) -> None:
        """Forget what counts no more, and give up on holds of which nothing was heard."""
        for owner, (count, until) in list(self.holds.items()):
            if until <= now:
                del self.holds[owner]
                self.marks.append((until, count))
            elif until > now + LONGEST_HOLD + SLACK:
                # the clock was put back
                self.holds[owner] = count, now + LONGEST_HOLD
        self.wants = {
            owner: want for owner, want in self.wants.items() if now < want[1] <= now + REMEMBERED + LONGEST_HOLD
        }
        self._bound(now, sorted({window.span for window in windows} | {REMEMBERED}))

    def _bound(self, now: Millis, spans: Sequence[Millis]) -> None:
        """Drop marks that are too old for all windows; where there are many, merge the older ones the more."""
        marks = self.marks
        if any(at > now + SLACK for at, _ in marks):
            # a clock that was put back must not keep what lies ahead of it counted for longer than a window
            marks = [(now, count) if at > now + SLACK else (at, count) for at, count in marks]
        marks.sort()
        del marks[: bisect_left(marks, (now - spans[-1],))]
        self.marks = marks if len(marks) <= MARKS else _merged(marks, now, spans)

    @property
    def held(self) -> int:
        """Permits in the hands of workers."""
        return sum(count for count, _ in self.holds.values())

    def used(self, now: Millis, window: Window) -> int:
        """What counts against a window, held permits included."""
        return self.held + sum(count for _, count in self._within(now, window))

    def _within(self, now: Millis, window: Window) -> list[Mark]:
        return self.marks[bisect_left(self.marks, (now - window.span,)) :]

    def free(self, now: Millis, windows: Sequence[Window]) -> int:
        """Permits that all windows have left; below 0 where a limit was lowered."""
        return min(window.count - self.used(now, window) for window in windows)

    def free_at(self, now: Millis, windows: Sequence[Window]) -> tuple[Millis, Window]:
        """When the next permit will be free at the latest, if holds are what they are, and the window that it waits
        for. Where that cannot be told because of holds: after RECHECK.
        """
        found = [(self._free_at(now, window), window) for window in windows]
        return max(found, key=lambda pair: pair[0])

    def _free_at(self, now: Millis, window: Window) -> Millis:
        missing = self.used(now, window) - window.count + 1
        if missing <= 0:
            return now
        for at, count in self._within(now, window):
            missing -= count
            if missing <= 0:
                return at + window.span + 1
        return now + RECHECK

    def through(self, now: Millis, permits: int, windows: Sequence[Window]) -> Millis:
        """When so many more permits will have been given, if all are used at once as they become free."""
        return max(self._through(now, permits, window) for window in windows)

    def _through(self, now: Millis, permits: int, window: Window) -> Millis:
        missing = permits - max(window.count - self.used(now, window), 0)
        if missing <= 0:
            return now
        # each permit comes back a window after it was used, again and again
        rounds, missing = divmod(missing - 1, window.count)
        missing += 1
        for at, count in self._within(now, window):
            missing -= count
            if missing <= 0:
                return at + (rounds + 1) * window.span
        return now + (rounds + 1) * window.span


def _merged(marks: Sequence[Mark], now: Millis, spans: Sequence[Millis]) -> list[Mark]:
    """The same in fewer marks, none of them earlier than it was."""
    merged: list[Mark] = []
    last = (0, -1)
    for at, count in marks:
        span = next(span for span in spans if now - at <= span)
        grain = max(span // GRAINS, 1)
        place = (grain, at // grain)
        if place == last:
            merged[-1] = at, merged[-1][1] + count
        else:
            merged.append((at, count))
        last = place
    return merged


@dataclass(frozen=True, slots=True)
class Request:
    """What one owner reports of one kind, and what it asks for."""

    used: tuple[Mark, ...] = ()
    keep: int = 0
    """Permits that it holds on to: in flight, or still to be used."""
    want: int = 0
    slice: int = 1
    """Beyond `want`, as many as this in all, where plenty is left: to ask less often."""


@dataclass(frozen=True, slots=True)
class Grant:
    """Permits given, by kind."""

    permits: dict[Kind, int]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Nothing was given."""

    until: Millis
    """When to ask again."""
    free_at: Millis
    """When the budget that is exhausted has room again, as far as is known."""
    share: Share
    """The budget in the way."""
    window: Window
    gives_way: bool = False
    """There is room, but it is the turn of mail that waits elsewhere."""


def valid_for(shares: Sequence[Share]) -> Millis:
    """How long what is granted may be used."""
    shortest = min(window.span for share in shares for window in share.windows)
    return min(max(shortest // 16, SHORTEST_HOLD), LONGEST_HOLD)


def slice_of(share: Share, workers: int) -> int:
    """Permits to hold at most without need: five percent of the budget, all workers together."""
    return max(min(window.count for window in share.windows) // (20 * workers), 1)


def exchange(
    books: Sequence[tuple[Share, Usage]], owner: str, requests: dict[Kind, Request], now: Millis, urgency: int
) -> Grant | Refusal:
    """Take note of what an owner used and keeps, and give it what all its budgets have left: all or nothing of each
    kind that it wants one of, and never more than any window allows.
    """
    until = now + valid_for([share for share, _ in books])
    for share, usage in books:
        request = requests[share.kind]
        # the owner lives and says what it used: its own hold is not given up on
        usage.holds.pop(owner, None)
        usage.marks += request.used
        usage.tidy(now, share.windows)
        usage.wants.pop(owner, None)
        _hold(usage, owner, request.keep, until)
    wanted = [(share, usage) for share, usage in books if requests[share.kind].want]
    refusal = _short(wanted, owner, now, urgency) or _give_way(wanted, owner, now, urgency)
    if refusal is not None:
        return refusal
    permits: dict[Kind, int] = {}
    for share, usage in wanted:
        request, left = requests[share.kind], usage.free(now, share.windows)
        # the fewer are left, the smaller the slices: nobody hoards the last
        most = min(max(request.want, min(request.slice - request.keep, left // 4)), left)
        if any(urgent > urgency for urgent, _ in usage.wants.values()):
            most = 1
        permits[share.kind] = min(permits.get(share.kind, most), most)
    for share, usage in wanted:
        given = permits[share.kind]
        _hold(usage, owner, requests[share.kind].keep + given, until)
        _count_turns(usage, given, urgency)
    return Grant(permits)


def _hold(usage: Usage, owner: str, count: int, until: Millis) -> None:
    if count:
        usage.holds[owner] = count, until
    else:
        usage.holds.pop(owner, None)


def _short(wanted: Sequence[tuple[Share, Usage]], owner: str, now: Millis, urgency: int) -> Refusal | None:
    """Nothing is left in one of the budgets: when there will be, and note that mail waits for it."""
    short = [(share, usage) for share, usage in wanted if usage.free(now, share.windows) < 1]
    if not short:
        return None
    free_at, window, share, usage = max(
        ((*usage.free_at(now, share.windows), share, usage) for share, usage in short), key=lambda found: found[0]
    )
    others = any(holder != owner for holder in usage.holds)
    until = min(free_at, now + RECHECK) if others else free_at
    for _, each in short:
        each.wants[owner] = urgency, until + 2 * RECHECK
    return Refusal(until, free_at, share, window)


def _give_way(wanted: Sequence[tuple[Share, Usage]], owner: str, now: Millis, urgency: int) -> Refusal | None:
    """More urgent mail waits elsewhere for what is left; or less urgent mail, and it has waited long enough."""
    for share, usage in wanted:
        waiting = [each for each, _ in usage.wants.values()]
        theirs = min(waiting, default=urgency) < urgency
        if theirs if usage.passed >= TURNS else max(waiting, default=urgency) > urgency:
            usage.wants[owner] = urgency, now + 2 * RECHECK
            return Refusal(now + GIVE_WAY, now, share, share.windows[0], gives_way=True)
    return None


def _count_turns(usage: Usage, given: int, urgency: int) -> None:
    if any(urgent > urgency for urgent, _ in usage.wants.values()):
        usage.passed = 0
    elif any(urgent < urgency for urgent, _ in usage.wants.values()):
        usage.passed = min(usage.passed + given, TURNS)
