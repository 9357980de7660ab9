"""Reports that are owed are made, on a real store; what goes wrong with one of them keeps no other from being made."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from relayd.config.models import Spool
from relayd.core.lifecycle import State
from relayd.core.mail import Body, Envelope
from relayd.core.retry import parse_schedule
from relayd.delivery.notices import Reporter
from relayd.delivery.settle import Policy
from relayd.spool.sqlite import SqliteStore
from relayd.spool.store import Notice, StoreError
from tests.support.clock import Clock
from tests.support.dispatching import until
from tests.support.mail import CONTENT, make_message, make_settlement, make_waiting

POLICY = Policy(parse_schedule("1m*"), lifetime=10**9, delay_notice=0, notify=True, held_lifetime=10**9)


class Door:
    """Takes reports; fails as told, by sender."""

    def __init__(self, failures: dict[str, Exception]) -> None:
        self.failures = failures
        self.taken: list[str] = []

    async def submit_report(
        self, recipient: str, content: bytes, *, smtputf8: bool = False, body: Body = Body.SEVEN_BIT
    ) -> int:
        if recipient in self.failures:
            raise self.failures[recipient]
        self.taken.append(recipient)
        return 1


class Observer:
    """Counts nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


async def _owing(store: SqliteStore, *senders: str) -> None:
    for sender in senders:
        message = make_message(store.mint(), envelope=Envelope(sender))
        waiting = [make_waiting()]
        await store.accept(message, waiting, CONTENT)
        await store.settle(make_settlement(message, waiting, State.BOUNCED, notice=Notice.FAILURE))


@pytest.mark.parametrize("error", [RuntimeError("a fault of ours"), ValueError("cannot be composed")])
async def test_one_that_fails_keeps_no_other_from_being_made(tmp_path: Path, error: Exception) -> None:
    clock = Clock()
    store = SqliteStore(tmp_path / "spool", 0, 1, Spool(), clock)
    await store.open()
    door = Door({"bad@example.com": error})
    reporter = Reporter(store, door, POLICY, "relay.test", observer=Observer(), clock=clock)
    try:
        await _owing(store, "bad@example.com", "good@example.com")
        reporter.start()
        await until(lambda: door.taken == ["good@example.com"])
        await _owing(store, "later@example.com")
        reporter.wake()
        await until(lambda: door.taken[1:] == ["later@example.com"])
        while len(await store.owing(10)) > 1:  # noqa: ASYNC110 - the debt is struck out a moment after the report was taken
            await asyncio.sleep(0)
        door.failures.clear()
        reporter.wake()
        await until(lambda: door.taken[2:] == ["bad@example.com"])
        while await store.owing(10):  # noqa: ASYNC110
            await asyncio.sleep(0)
    finally:
        await reporter.stop()
        await store.close()


async def test_a_store_that_fails_is_asked_again(tmp_path: Path) -> None:
    clock = Clock()
    store = SqliteStore(tmp_path / "spool", 0, 1, Spool(), clock)
    await store.open()
    door = Door({"a@example.com": StoreError("the disk is full")})
    reporter = Reporter(store, door, POLICY, "relay.test", observer=Observer(), clock=clock)
    try:
        await _owing(store, "a@example.com")
        with pytest.raises(StoreError):
            await reporter.pay()
        door.failures.clear()
        assert await reporter.pay() == 1
        assert door.taken == ["a@example.com"]
        assert await store.owing(10) == []
    finally:
        await store.close()


async def test_one_that_cannot_be_made_is_not_owed_for_ever(tmp_path: Path) -> None:
    clock = Clock()
    store = SqliteStore(tmp_path / "spool", 0, 1, Spool(), clock)
    await store.open()
    door = Door({"bad@example.com": ValueError("cannot be composed")})
    reporter = Reporter(store, door, POLICY, "relay.test", observer=Observer(), clock=clock)
    try:
        await _owing(store, "bad@example.com")
        assert await reporter.pay() == 0
        assert len(await store.owing(10)) == 1
        clock.advance(POLICY.lifetime + 60_000)
        assert await reporter.pay() == 0
        assert await store.owing(10) == []
    finally:
        await store.close()
