"""Usage: whatever workers do, die of, or hear late, no window ever holds more than its limit; and it is used well."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.core.permits import (
    MARKS,
    Grant,
    Kind,
    Mark,
    Refusal,
    Request,
    Share,
    Usage,
    Window,
    exchange,
    slice_of,
    valid_for,
)

MINUTE, DAY = 60_000, 86_400_000
START = 1_750_000_000_000


def share(*windows: tuple[int, int], name: str = "acme", kind: Kind = Kind.MESSAGES) -> Share:
    return Share(name, kind, tuple(Window(count, span) for count, span in windows))


@dataclass
class Worker:
    """One life of a worker, playing by the rules of delivery/budget.py."""

    owner: str
    left: int = 0
    until: int = 0
    since: int = 0
    flying: list[int] = field(default_factory=list)
    """When each transaction in flight began."""
    used: list[Mark] = field(default_factory=list)


class Play:
    """Workers on one usage, and what a provider could have seen: when each transaction began and ended."""

    def __init__(self, budget: Share, workers: int, slice_size: int = 1) -> None:
        self.share, self.usage = budget, Usage()
        self.slice = slice_size
        self.now = START
        self.workers = [Worker(f"w{n}") for n in range(workers)]
        self.seen: list[tuple[int, int]] = []
        self.lives = workers

    def ask(self, worker: Worker, want: int = 1, urgency: int = 0) -> Grant | Refusal:
        used, worker.used = tuple(worker.used), []
        if not worker.since <= self.now < worker.until:
            worker.left = 0
        request = Request(used, worker.left + len(worker.flying), want, self.slice)
        answer = exchange([(self.share, self.usage)], worker.owner, {self.share.kind: request}, self.now, urgency)
        worker.since, worker.until = self.now, self.now + valid_for([self.share])
        if isinstance(answer, Grant):
            worker.left += answer.permits.get(self.share.kind, 0)
        return answer

    def begin(self, worker: Worker) -> bool:
        """Use a permit, if there is one in the hand or to be had."""
        if not (worker.left and worker.since <= self.now < worker.until):
            self.ask(worker)
        if not (worker.left and worker.since <= self.now < worker.until):
            return False
        worker.left -= 1
        worker.flying.append(self.now)
        return True

    def end(self, worker: Worker) -> None:
        if worker.flying:
            self.seen.append((worker.flying.pop(0), self.now))
            worker.used.append((self.now, 1))

    def die(self, place: int) -> None:
        """kill -9: what was in flight may have been seen until now, what was used is not reported."""
        self.seen += [(begun, self.now) for begun in self.workers[place].flying]
        self.workers[place] = Worker(f"w{self.lives}")
        self.lives += 1

    def check(self) -> None:
        """Wherever between beginning and end the provider counted, no window held more than its limit."""
        every = self.seen + [(begun, self.now) for worker in self.workers for begun in worker.flying]
        for window in self.share.windows:
            for moment, _ in every:
                together = sum(begun <= moment and ended >= moment - window.span for begun, ended in every)
                assert together <= window.count, (window, moment)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["begin", "begin", "begin", "end", "end", "renew", "back", "die", "pass", "pass"]),
        st.integers(0, 2),
        st.sampled_from([1, 40, 700, 3_000, 20_000, 70_000]),
    ),
    max_size=150,
)


@given(
    windows=st.sampled_from([((3, MINUTE),), ((7, 1000),), ((4, MINUTE), (9, 3_600_000)), ((60, 10_000),)]),
    slice_size=st.sampled_from([1, 3]),
    steps=STEPS,
)
@settings(max_examples=300, deadline=None)
def test_no_window_ever_holds_more_than_its_limit(
    windows: tuple[tuple[int, int], ...], slice_size: int, steps: list[tuple[str, int, int]]
) -> None:
    play = Play(share(*windows), 3, slice_size)
    for step, place, wait in steps:
        worker = play.workers[place]
        match step:
            case "begin":
                play.begin(worker)
            case "end":
                play.end(worker)
            case "renew":
                play.ask(worker, want=0)
            case "back":
                worker.left = 0
                play.ask(worker, want=0)
            case "die":
                play.die(place)
            case "pass":
                # a living worker reports what is in flight before its time is over
                play.now += wait
                for each in play.workers:
                    if each.flying or each.left:
                        play.ask(each, want=0)
    play.check()


@pytest.mark.parametrize(
    ("windows", "workers"),
    [
        (((30, MINUTE),), 1),
        (((30, MINUTE),), 2),
        (((30, MINUTE), (500, DAY)), 2),
        (((10_000, DAY),), 4),
        (((14, 1000),), 2),
    ],
)
def test_a_backlog_uses_95_percent_of_every_window(windows: tuple[tuple[int, int], ...], workers: int) -> None:
    budget = share(*windows)
    play = Play(budget, workers, slice_of(budget, workers))
    span = max(window.span for window in budget.windows)
    end = START + 2 * span
    while play.now < end:
        busy = False
        for worker in play.workers:
            if play.begin(worker):
                play.end(worker)
                busy = True
        if busy:
            play.now += 3
        else:
            waits = [answer.until for worker in play.workers if isinstance(answer := play.ask(worker), Refusal)]
            play.now = max(min(waits, default=play.now), play.now + 5)
    if len(play.seen) < 4000:
        play.check()
    # the window that binds in the long run
    binding = min(budget.windows, key=lambda window: window.count / window.span)
    assert len(play.seen) >= 0.95 * 2 * binding.count * span / binding.span


def test_a_ledger_stays_small_whatever_is_counted() -> None:
    budget = share((1_000_000, MINUTE), (1_000_000_000, DAY))
    usage = Usage()
    for n in range(300):
        now = START + n * 300_000
        request = Request(tuple((now - 45_000 + 100 * place, 1) for place in range(450)))
        exchange([(budget, usage)], "w", {Kind.MESSAGES: request}, now, 0)
    assert len(usage.marks) <= MARKS

    assert usage.used(now, budget.windows[0]) >= 450
    assert usage.used(now, budget.windows[1]) >= 450 * (DAY // 300_000)


def test_who_dies_costs_its_slice_alone_and_only_for_a_window() -> None:
    budget = share((100, MINUTE))
    play = Play(budget, 2, slice_of(budget, 2))
    assert play.begin(play.workers[0])
    assert play.workers[0].left + 1 <= 5
    play.die(0)
    sent = 0
    while play.begin(play.workers[1]):
        play.end(play.workers[1])
        sent += 1
    assert sent >= 95
    play.now += MINUTE + valid_for([budget]) + 1
    play.end(play.workers[1])
    for _ in range(99):
        assert play.begin(play.workers[1])
        play.end(play.workers[1])
    play.check()


def test_what_is_asked_of_two_budgets_is_given_by_both_or_not_at_all() -> None:
    own, whole = share((2, MINUTE), name="team/a"), share((3, MINUTE), name="team")
    recipients = share((10, MINUTE), name="team/a", kind=Kind.RECIPIENTS)
    other = share((2, MINUTE), name="team/b")
    usages = {each: Usage() for each in (own, whole, recipients, other)}

    def ask(owner: str, *shares: Share) -> Grant | Refusal:
        books = [(each, usages[each]) for each in shares]
        requests = {each.kind: Request(want=1 if each.kind is Kind.MESSAGES else 4) for each in shares}
        held = {each.kind: usages[each].holds.get(owner, (0, 0))[0] for each in shares}
        requests = {kind: Request(keep=held[kind], want=request.want) for kind, request in requests.items()}
        return exchange(books, owner, requests, START, 0)

    assert ask("a", own, recipients, whole) == Grant({Kind.MESSAGES: 1, Kind.RECIPIENTS: 4})
    assert ask("a", own, recipients, whole) == Grant({Kind.MESSAGES: 1, Kind.RECIPIENTS: 4})
    refused = ask("a", own, recipients, whole)
    assert isinstance(refused, Refusal)
    assert refused.share is own
    assert usages[whole].held == 2
    assert isinstance(ask("b", other, whole), Grant)
    refused = ask("b", other, whole)
    assert isinstance(refused, Refusal)
    assert refused.share is whole


def test_the_last_recipients_are_given_where_more_are_wanted() -> None:
    budget = share((10, MINUTE), kind=Kind.RECIPIENTS)
    usage = Usage()
    answer = exchange([(budget, usage)], "w", {Kind.RECIPIENTS: Request(want=100)}, START, 0)
    assert answer == Grant({Kind.RECIPIENTS: 10})


def test_urgent_mail_of_another_worker_goes_first_and_bulk_gets_its_turn() -> None:
    budget = share((1, 1000))
    play = Play(budget, 2)
    bulk, urgent = play.workers
    order = []
    for _ in range(300):
        for name, worker, urgency in (("bulk", bulk, -1), ("urgent", urgent, 1)):
            if isinstance(play.ask(worker, urgency=urgency), Grant):
                worker.left -= 1
                worker.flying.append(play.now)
                play.end(worker)
                order.append(name)
        play.now += 200
    assert len(order) >= 45
    assert 3 <= order[1:].count("bulk") <= 8


def test_a_clock_put_back_does_not_lock_a_budget_for_long() -> None:
    budget = share((2, MINUTE))
    play = Play(budget, 1)
    for _ in range(2):
        assert play.begin(play.workers[0])
        play.end(play.workers[0])
    play.ask(play.workers[0], want=0)
    play.now -= DAY
    assert isinstance(play.ask(play.workers[0]), Refusal)
    play.now += MINUTE + 1
    assert isinstance(play.ask(play.workers[0]), Grant)


@pytest.mark.parametrize(("permits", "seconds"), [(1, 0), (20, 0), (21, 40), (30, 40), (31, 60), (50, 60), (51, 100)])
def test_when_a_queue_is_through_is_told_from_what_comes_back(permits: int, seconds: int) -> None:
    window = Window(30, MINUTE)
    usage = Usage([(START - 20_000, 10)])
    assert usage.through(START, permits, [window]) == START + seconds * 1000


def test_a_lowered_limit_waits_until_enough_has_come_back() -> None:
    usage = Usage([(START - 50_000, 5), (START - 10_000, 5)])
    at, _ = usage.free_at(START, [Window(3, MINUTE)])
    assert at == START + 50_001
