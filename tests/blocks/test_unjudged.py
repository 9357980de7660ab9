"""What a killed process left unjudged is judged at the next start: whatever the order of marks, pages and adoptions."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from relayd.config.models import BlockRule, Blocks, Spool
from relayd.core.lifecycle import State
from relayd.intake.blocks import BlockBook
from relayd.intake.unjudged import KINDS, Unjudged
from relayd.spool import blocklist
from relayd.spool.sqlite import SqliteStore
from relayd.spool.state import StateDB, StateError
from relayd.spool.store import Delivery
from tests.spool.test_store import keep
from tests.support.clock import Clock
from tests.support.mail import make_settlement, make_waiting

DAY = 86_400.0


@dataclass
class Process:
    """One life of a worker, as far as blocks go. It is killed by closing its files and nothing else."""

    store: SqliteStore
    state: StateDB
    book: BlockBook
    unjudged: Unjudged

    async def bounce(self, *addresses: str, stage: str = "rcpt", cls: str = "user-unknown") -> Delivery:
        """A mail that is refused for all these."""
        mail = await keep(self.store, [make_waiting(n, address) for n, address in enumerate(addresses)])
        detail = {"class": cls, "stage": stage, "reply": "550 5.1.1 <a@example.org> no such user"}
        await self.store.settle(make_settlement(mail.message, mail.recipients, State.BOUNCED, at=clock(), **detail))
        return mail

    async def blocked(self) -> list[str]:
        """Whom blocks hold for."""
        rows = await self.state.read(lambda db: blocklist.listing(db, now=0, ended=False))
        return sorted(row.target for row in rows)

    async def kill(self) -> None:
        await self.store.close()
        await self.state.close()


Live = Callable[..., Awaitable[Process]]


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[Live]:
    """Starts a process on the same files; its clock is `clock`."""
    begun: list[Process] = []

    async def start(slot: int = 0, slots: int = 1, **rules: BlockRule) -> Process:
        store = SqliteStore(tmp_path / "spool", slot, slots, Spool(segment=DAY), clock)
        state = StateDB(tmp_path / "state.db")
        await store.open()
        await state.open()
        settings = Blocks(rules={name.replace("_", "-"): rule for name, rule in rules.items()})
        book = BlockBook(settings, state, clock, store.history)
        store.subscribe(book.observe)
        process = Process(store, state, book, Unjudged(book, store, state, clock))
        begun.append(process)
        await book.refresh()
        return process

    yield start
    for process in begun:
        await process.kill()


clock = Clock()


async def test_what_was_not_judged_is_judged_at_the_next_start(live: Live) -> None:
    process = await live()
    await process.bounce("a@example.org", "b@example.org")
    await process.kill()
    process = await live()
    await process.unjudged._catch_up()
    assert await process.blocked() == ["a@example.org", "b@example.org"]
    assert process.book.counts() == {"user-unknown": 2}


async def test_a_refusal_of_all_is_read_as_one_wherever_pages_end(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relayd.spool.stream.PAGE", 3)
    process = await live()
    await process.bounce("x@example.org")
    await process.bounce("y@example.org", "z@example.org")
    await process.bounce("a@example.org", "b@example.org", stage="dot")
    for name in "cde":
        await process.bounce(f"{name}@example.org")
    await process.kill()
    process = await live()
    await process.unjudged._catch_up()
    assert await process.blocked() == [f"{name}@example.org" for name in "acdexyz"]


async def test_what_was_marked_is_not_read_again(live: Live) -> None:
    process = await live()
    await process.bounce("a@example.org")
    await process.unjudged._catch_up()
    await process.bounce("b@example.org")
    await process.unjudged._mark()
    assert await process.blocked() == ["a@example.org", "b@example.org"]
    await process.bounce("c@example.org")
    await process.kill()
    process = await live()
    known = await process.state.read(blocklist.judged)
    left = [event.recipient async for page in process.store.behind(known, KINDS, 0) for event in page.events]
    assert left == ["c@example.org"]


async def test_nothing_is_marked_that_could_not_be_judged(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    process = await live()
    await process.unjudged._catch_up()
    await process.bounce("a@example.org")

    def full(*_: object) -> None:
        raise StateError("no room")

    with monkeypatch.context() as patch:
        patch.setattr("relayd.intake.blocks._record", full)
        await process.unjudged._mark()
    assert await process.state.read(blocklist.judged) == {}
    await process.unjudged._mark()
    assert len(await process.state.read(blocklist.judged)) == 1
    assert await process.blocked() == ["a@example.org"]


async def test_soft_failures_count_once_and_lifted_blocks_stay_lifted(live: Live) -> None:
    rule = {"mailbox_full": BlockRule(after=3)}
    process = await live(**rule)
    for _ in range(2):
        await process.bounce("a@example.org", cls="mailbox-full")
    await process.book.settle()
    await process.kill()
    process = await live(**rule)
    await process.unjudged._catch_up()
    assert await process.blocked() == []
    await process.bounce("a@example.org", cls="mailbox-full")
    await process.book.settle()
    assert await process.blocked() == ["a@example.org"]
    clock.advance(5)
    await process.state.write(lambda db: blocklist.remove(db, "a@example.org", None, "root", clock()))
    await process.kill()
    process = await live(**rule)
    await process.unjudged._catch_up()
    assert await process.blocked() == []


async def test_adopted_segments_and_old_failures(live: Live) -> None:
    second = await live(1, 2)
    await second.bounce("old@example.org")
    await second.kill()
    clock.advance(15 * DAY)
    second = await live(1, 2)
    await second.bounce("new@example.org")
    await second.kill()
    first = await live(0, 1)
    await first.unjudged._catch_up()
    assert await first.blocked() == ["new@example.org"]


async def test_any_order_of_failures_marks_and_deaths(live: Live) -> None:
    chance = random.Random(11)
    process = await live()
    expected = set()
    for step in range(120):
        match chance.randrange(6):
            case 0:
                await process.kill()
                process = await live()
                await process.unjudged._catch_up()
                assert await process.blocked() == sorted(expected)
            case 1:
                await process.unjudged._mark()
            case 2:
                await process.book.judge_kept()
            case 3:
                clock.advance(DAY / 3)
            case _:
                await process.bounce(f"r{step}@example.org")
                expected.add(f"r{step}@example.org")
    assert len(expected) > 30
