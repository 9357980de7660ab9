"""The blocks of a worker: made from events, looked up, shared with other workers, counted, expired."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from relayd.config.models import BlockRule, Blocks
from relayd.core.blocking import Block
from relayd.core.event import Event, EventKind
from relayd.core.ids import MessageId
from relayd.core.lifecycle import State
from relayd.core.mail import Message
from relayd.intake.blocks import BlockBook
from relayd.spool import blocklist
from relayd.spool.state import StateDB
from relayd.spool.store import History, NoSuchMessageError
from tests.support.clock import Clock
from tests.support.mail import make_message, make_waiting

DAY = 86_400.0
MakeBook = Callable[..., Awaitable[BlockBook]]


class World:
    """One data directory, its messages, and books on it."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self.path = path
        self.clock = clock
        self.messages: dict[MessageId, History] = {}
        self.opened: list[tuple[BlockBook, StateDB]] = []

    async def book(self, **settings: Any) -> BlockBook:
        state = StateDB(self.path)
        await state.open()
        book = BlockBook(Blocks(**settings), state, self.clock, self.history)
        await book.start()
        self.opened.append((book, state))
        return book

    async def history(self, message: MessageId) -> History:
        if message not in self.messages:
            raise NoSuchMessageError("gone")
        return self.messages[message]

    def mail(self, *events: Event, **facts: Any) -> Message:
        message = make_message(**facts)
        self.messages[message.id] = History(message, (make_waiting(state=State.BOUNCED),), (), events, False)
        return message

    def bounce(self, message: Message, address: str = "a@example.org", **detail: Any) -> Event:
        told = {"class": "user-unknown", "stage": "rcpt", "reply": "550 5.1.1 No such user"} | detail
        return Event(self.clock(), message.id, 0, EventKind.BOUNCED, address, message.envelope.sender, told)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path / "state.db", Clock())
    yield made
    for book, state in made.opened:
        await book.stop()
        await state.close()


async def told(book: BlockBook, *events: Event) -> None:
    book.observe(events)
    await book.settle()


async def test_a_hard_failure_blocks_at_once_and_for_all_mail(world: World) -> None:
    book = await world.book()
    message = world.mail()
    assert book.find(message, "a@example.org") is None
    await told(book, world.bounce(message, "A@Example.org"))
    found = book.find(world.mail(sender="other@example.net"), "a@EXAMPLE.org")
    assert found is not None
    assert (found.cls, found.by, found.until, found.message) == ("user-unknown", "auto", None, message.id)
    assert found.reason == "550 5.1.1 No such user"
    assert book.find(message, "b@example.org") is None
    assert book.counts() == {"user-unknown": 1}


async def full(world: World, book: BlockBook, times: int, days: float = 0) -> Message:
    message = world.mail()
    for _ in range(times):
        message = world.mail()
        await told(book, world.bounce(message, **{"class": "mailbox-full"}))
        world.clock.advance(days * DAY)
    return message


async def test_a_soft_failure_blocks_after_its_count_and_expires(world: World) -> None:
    book = await world.book()
    message = await full(world, book, 4)
    assert book.find(message, "a@example.org") is None
    await full(world, book, 1)
    found = book.find(message, "a@example.org")
    assert found is not None and found.until == world.clock() + 30 * DAY * 1000
    world.clock.advance(30 * DAY)
    assert book.find(message, "a@example.org") is None
    await book.upkeep()
    assert book.counts() == {}
    await full(world, book, 4)
    assert book.find(message, "a@example.org") is None
    await full(world, book, 1)
    assert book.find(message, "a@example.org") is not None


async def test_soft_failures_outside_the_window_do_not_count(world: World) -> None:
    book = await world.book()
    message = await full(world, book, 8, days=3.6)
    assert book.find(message, "a@example.org") is None


async def test_one_mail_counts_once_however_often_it_is_told(world: World) -> None:
    book = await world.book()
    message = world.mail()
    for _ in range(9):
        await told(book, world.bounce(message, **{"class": "mailbox-full"}))
    assert book.find(message, "a@example.org") is None


async def test_faults_of_the_upstream_and_other_classes_never_block(world: World) -> None:
    book = await world.book()
    message = world.mail()
    for cls in ("policy", "reputation-blocked", "sender-rejected", "spam-detected", "rate-limited", "tls-failed"):
        for _ in range(20):
            await told(book, world.bounce(world.mail(), **{"class": cls}))
    await told(book, world.bounce(message, upstream_trouble=True), world.bounce(message, stage="mail"))
    assert book.find(message, "a@example.org") is None
    assert book.counts() == {}


async def test_a_refusal_of_a_whole_transaction_blocks_only_whom_it_names(world: World) -> None:
    book = await world.book()
    message = world.mail()
    reply = "550 5.1.1 <b@example.org>: no such user"
    events = [world.bounce(message, f"{name}@example.org", stage="dot", reply=reply) for name in "abc"]
    await told(book, *events)
    assert [book.find(message, f"{name}@example.org") is not None for name in "abc"] == [False, True, False]
    alone = world.mail()
    await told(book, world.bounce(alone, "d@example.org", stage="dot"))
    assert book.find(message, "d@example.org") is not None


async def test_rules_say_otherwise(world: World) -> None:
    rules = {
        "user-unknown": BlockRule(after=2, expires=60.0),
        "complaint": BlockRule(after=0),
        "mailbox-full": BlockRule(after=1, scope="stream"),
        "filtered": BlockRule(after=1),
    }
    book = await world.book(rules=rules)
    first, second = world.mail(campaign="weekly"), world.mail(campaign="daily")
    await told(book, world.bounce(first))
    assert book.find(first, "a@example.org") is None
    await told(book, world.bounce(second))
    found = book.find(first, "a@example.org")
    assert found is not None and found.until == world.clock() + 60_000
    await told(book, Event(0, first.id, 0, EventKind.COMPLAINED, "c@example.org", "", {"class": "complaint"}))
    assert book.find(first, "c@example.org") is None
    await told(book, world.bounce(first, "d@example.org", **{"class": "mailbox-full"}))
    assert book.find(first, "d@example.org") is not None
    assert book.find(second, "d@example.org") is None
    await told(book, world.bounce(first, "e@example.org", **{"class": "filtered"}))
    assert book.find(second, "e@example.org") is not None
    assert book.find(world.mail(sender="x@example.net"), "e@example.org") is None


async def test_a_complaint_blocks_at_once(world: World) -> None:
    book = await world.book()
    message = world.mail()
    detail = {"class": "complaint", "source": "complaint"}
    await told(book, Event(world.clock(), message.id, 0, EventKind.COMPLAINED, "a@example.org", "", detail))
    found = book.find(message, "a@example.org")
    assert found is not None and found.cls == "complaint"


async def test_mail_that_expired_counts_by_what_kept_failing(world: World) -> None:
    book = await world.book(rules={"mailbox-full": BlockRule(after=2)})

    def expired(stage: str, cls: str = "mailbox-full", **more: Any) -> Event:
        message = make_message()
        detail = {"class": cls, "stage": stage, "reply": "452 4.2.2 full"} | more
        late = Event(world.clock(), message.id, 0, EventKind.DEFERRED, "a@example.org", "", detail)
        world.messages[message.id] = History(message, (make_waiting(),), (), (late,), False)
        return Event(world.clock(), message.id, 0, EventKind.EXPIRED, "a@example.org", "", {"class": "expired"})

    await told(book, expired("rcpt"), expired("connect", upstream_trouble=True), expired("mail"))
    message = make_message()
    assert book.find(message, "a@example.org") is None
    await told(book, expired("rcpt"))
    found = book.find(message, "a@example.org")
    assert found is not None and (found.cls, found.reason) == ("mailbox-full", "452 4.2.2 full")


async def test_switched_off_nothing_is_blocked_or_stopped(world: World) -> None:
    on = await world.book()
    message = world.mail()
    await told(on, world.bounce(message))
    off = await world.book(enabled=False)
    assert off.find(message, "a@example.org") is None
    await told(off, world.bounce(message, "b@example.org"))
    on.apply(Blocks(enabled=False))
    assert on.find(message, "a@example.org") is None
    on.apply(Blocks())
    assert on.find(message, "a@example.org") is not None
    assert on.find(message, "b@example.org") is None


async def blocked_by_hand(world: World, *targets: str, scope: str = "everything", until: int | None = None) -> None:
    state = StateDB(world.path)
    await state.open()
    new = [blocklist.NewBlock(each, scope, "manual", "asked to", "root", world.clock(), until) for each in targets]
    await state.write(lambda db: blocklist.add(db, new, keep_longer=False))
    await state.close()


async def test_domains_are_blocked_with_or_without_those_below(world: World) -> None:
    await blocked_by_hand(world, "*@example.org", "*@*.example.net")
    book = await world.book()
    message = world.mail()

    def stopped(address: str) -> bool:
        return book.find(message, address) is not None

    assert stopped("anyone@Example.org") and not stopped("anyone@sub.example.org")
    assert stopped("a@b.example.net") and stopped("a@c.b.example.net") and not stopped("a@example.net")
    assert not stopped("a@notexample.org") and not stopped("nobody")


async def test_what_another_process_blocks_or_lifts_is_seen_within_a_second(world: World) -> None:
    first, second = await world.book(), await world.book()
    message = world.mail()
    await told(first, world.bounce(message))

    async def until(there: bool) -> None:
        async with asyncio.timeout(20):
            while (second.find(message, "a@example.org") is not None) != there:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    await until(True)
    state = StateDB(world.path)
    await state.open()
    await state.write(lambda db: blocklist.remove(db, "a@example.org", None, "root", world.clock()))
    await state.close()
    await until(False)
    assert second.counts() == {}


async def test_stopped_mails_are_counted_by_all_workers_together(world: World) -> None:
    first, second = await world.book(), await world.book()
    message = world.mail()
    await told(first, world.bounce(message))
    found = first.find(message, "a@example.org")
    assert isinstance(found, Block)

    def stopped(at: int) -> Event:
        return Event(at, message.id, 0, EventKind.SUPPRESSED, "a@example.org", "", {"block": found.id})

    await told(first, stopped(5), stopped(9))
    await told(second, stopped(7))
    [row] = await world.opened[0][1].read(lambda db: blocklist.of_target(db, "a@example.org"))
    assert (row.stopped, row.last_stopped) == (3, 9)


async def test_a_restart_forgets_no_block_and_no_strike(world: World) -> None:
    book = await world.book()
    await full(world, book, 4)
    await told(book, world.bounce(world.mail(), "b@example.org"))
    again = await world.book()
    message = world.mail()
    assert again.find(message, "b@example.org") is not None
    await full(world, again, 1)
    assert again.find(message, "a@example.org") is not None


async def test_lifting_keeps_the_history_and_forgets_strikes(world: World) -> None:
    book = await world.book()
    await told(book, world.bounce(world.mail()))
    await full(world, book, 4)
    state = world.opened[0][1]
    lifted = await state.write(lambda db: blocklist.remove(db, "a@example.org", None, "root", world.clock()))
    assert [each.cls for each in lifted] == ["user-unknown"]
    await book.refresh()
    message = await full(world, book, 1)
    assert book.find(message, "a@example.org") is None
    [past] = await state.read(lambda db: blocklist.of_target(db, "a@example.org"))
    assert (past.ended, past.ended_by) == (world.clock(), "root")


async def test_a_rule_never_shortens_a_block(world: World) -> None:
    await blocked_by_hand(world, "a@example.org")
    book = await world.book()
    message = await full(world, book, 5)
    found = book.find(message, "a@example.org")
    assert found is not None and found.cls == "manual"
    await blocked_by_hand(world, "b@example.org", until=world.clock() + 1000)
    await book.refresh()
    await told(book, world.bounce(message, "b@example.org"))
    found = book.find(message, "b@example.org")
    assert found is not None and (found.cls, found.until) == ("user-unknown", None)


async def test_the_list_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocklist, "MOST", 2)
    book = await world.book()
    message = world.mail()
    for name in "abc":
        await told(book, world.bounce(message, f"{name}@example.org"))
    assert [book.find(message, f"{name}@example.org") is not None for name in "abc"] == [True, True, False]


async def test_failures_that_come_too_fast_are_dropped_not_piled_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relayd.intake.blocks.BACKLOG", 3)
    book = await world.book()
    message = world.mail()
    await told(book, *(world.bounce(message, f"{number}@example.org") for number in range(5)))
    assert book.dropped == 2
    assert sum(book.counts().values()) == 3
