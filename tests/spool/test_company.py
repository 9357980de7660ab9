"""How long a commit waits for others to share it: while the loop is busy, and for clients whose mail is coming."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from relayd.spool import company as module
from relayd.spool.company import PATIENCE, SLOW, STILL, Company
from relayd.spool.sqlite import SqliteStore
from tests.support.mail import CONTENT, make_message, make_waiting

BUSY = PATIENCE / 4


class Clock:
    """Moments of a loop whose turns take the given seconds, one after the other; then none at all."""

    def __init__(self, *seconds: float) -> None:
        self._seconds: Iterator[float] = iter((0.0, 0.0, *seconds))  # it is made, a wait begins
        self.now = 100.0

    def __call__(self) -> float:
        self.now += next(self._seconds, 0.0)
        return self.now


@pytest.fixture
def never_stalled(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow this machine is, clients are waited for."""
    monkeypatch.setattr(module, "STALLED", 600.0)


def kept(count: int) -> Callable[[], int]:
    return lambda: count


async def turns(company: Company, kept: Callable[[], int]) -> int:
    """How many turns of the loop it waited."""
    count = 0

    def turn() -> None:
        nonlocal count, handle
        count += 1
        handle = loop.call_soon(turn)

    loop = asyncio.get_running_loop()
    handle = loop.call_soon(turn)
    try:
        await company.wait(kept)
    finally:
        handle.cancel()
    return count


async def begun(company: Company, kept: Callable[[], int]) -> asyncio.Task[None]:
    """A wait that has come so far that only news can end it."""
    wait = asyncio.create_task(company.wait(kept), name="wait")
    async with asyncio.timeout(20):
        while not company._waits:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0)
    return wait


async def ended(wait: asyncio.Task[None]) -> None:
    async with asyncio.timeout(20):
        await wait


@pytest.mark.parametrize(
    ("seconds", "waited"),
    [
        ([0.0], 1),
        ([BUSY, 0.0], 2),
        ([BUSY, BUSY, STILL / 2], 3),
        ([BUSY] * 100, 4),
        ([PATIENCE * 50], 1),
    ],
)
@pytest.mark.parametrize("count", [0, 1, 5])
async def test_where_nobody_comes_it_waits_while_turns_are_busy_and_not_longer_than_it_may(
    seconds: list[float], waited: int, count: int
) -> None:
    assert await turns(Company(Clock(*seconds)), kept(count)) == waited


@pytest.mark.usefixtures("never_stalled")
async def test_it_waits_for_a_client_whose_mail_is_coming() -> None:
    company = Company(Clock())
    company.expect("client")
    wait = await begun(company, kept(1))
    company.look()
    await asyncio.sleep(0)
    assert not wait.done()
    company.forget("client")
    await ended(wait)


@pytest.mark.usefixtures("never_stalled")
async def test_it_waits_no_longer_once_twice_as_many_have_come_as_are_coming() -> None:
    company, count = Company(Clock()), 3
    for client in ("a", "b"):
        company.expect(client)
    wait = await begun(company, lambda: count)
    company.look()
    await asyncio.sleep(0)
    assert not wait.done()
    count = 4
    company.look()
    await ended(wait)
    assert await turns(company, lambda: count) == 1


async def test_it_does_not_wait_for_clients_who_say_nothing() -> None:
    company = Company(Clock())
    company.expect("client")
    await ended(asyncio.create_task(company.wait(kept(1)), name="wait"))
    assert len(company) == 1  # and it may come any moment


async def test_as_long_as_clients_speak_it_waits_but_not_longer_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STALLED", 0.0)
    clock = Clock()
    company = Company(clock)
    company.expect("client")
    wait = await begun(company, kept(1))
    heard = 0
    async with asyncio.timeout(20):
        while not wait.done():
            heard += 1
            company.heard += 1
            clock.now += BUSY / 4
            await asyncio.sleep(0)
    assert heard >= 16


async def test_who_is_slow_is_not_waited_for_until_his_mail_comes_further() -> None:
    clock = Clock()
    company = Company(clock)
    company.expect("far away")
    company.expect("near")
    for _ in range(2):
        clock.now += SLOW * 1.1
        company.expect("near")
        await company.wait(kept(4))
    assert len(company) == 1
    company.expect("far away")
    assert len(company) == 2
    for client in ("near", "far away", "far away"):
        company.forget(client)
    assert len(company) == 0


@pytest.mark.usefixtures("never_stalled")
async def test_where_no_client_waits_for_the_commit_it_waits_for_none() -> None:
    company = Company(Clock())
    company.expect("client")
    assert await turns(company, kept(0)) == 1


async def test_pieces_of_a_big_mail_are_no_news(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STALLED", 0.0)
    company = Company(Clock())
    company.expect("client")
    wait = await begun(company, kept(1))
    async with asyncio.timeout(20):
        while not wait.done():
            company.forget("big")
            await asyncio.sleep(0)
    assert company.heard == 0


@pytest.mark.usefixtures("never_stalled")
async def test_mail_that_is_coming_shares_the_commit_with_what_is_here(store: SqliteStore) -> None:
    commits: list[int] = []
    store.company._clock = lambda: 0.0
    store.observe(lambda _, items: commits.append(items))
    for client in ("a", "b"):
        store.company.expect(client)
    futures = []
    for client in ("a", "b"):
        store.company.forget(client)
        futures.append(store.accept(make_message(store.mint(), content=CONTENT), (make_waiting(),), CONTENT))
        for _ in range(20):
            await asyncio.sleep(0)
    await asyncio.gather(*futures)
    assert commits == [2]
