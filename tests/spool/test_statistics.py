"""Figures of the day: what is counted, late bounces correct their day, and retention neither loses nor doubles any."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relayd.cli.stats import By, _lines
from relayd.core.event import EventKind
from relayd.core.lifecycle import State
from relayd.spool import ledger, statistics
from relayd.spool.ledger import Figure, Ledger
from relayd.spool.sqlite import SqliteStore
from relayd.spool.state import StateDB
from relayd.spool.store import Delivery, StoreError
from tests.spool.conftest import OpenStore
from tests.spool.test_segments import DAY, segments
from tests.spool.test_store import amendment, keep
from tests.support.clock import Clock
from tests.support.mail import NOW, make_settlement, make_waiting

TODAY = NOW // statistics.DAY
EVER = (0, TODAY + 10_000)


@pytest.fixture
async def book(directory: Path, clock: Clock) -> AsyncIterator[Ledger]:
    """The ledger in state.db beside the spool."""
    directory.parent.mkdir(exist_ok=True)
    state = StateDB(directory.parent / "state.db")
    await state.open()
    yield Ledger(state, clock)
    await state.close()


def found(directory: Path, first: int = 0, last: int = EVER[1]) -> dict[Figure, int]:
    return dict(statistics.gather(directory.parent, first, last))


async def kept(store: SqliteStore, states: list[tuple[State, str]], *, sender: str, lane: str = "acme") -> Delivery:
    """A mail with a recipient for each state and class."""
    mail = await keep(store, [make_waiting(n, lane=lane) for n in range(len(states))], sender=sender)
    for waiting, (state, cls) in zip(mail.recipients, states, strict=True):
        if state is not State.QUEUED:
            due = NOW if state is State.DEFERRED else None
            await store.settle(
                make_settlement(mail.message, [waiting], state, due=due, **({"class": cls} if cls else {}))
            )
    return mail


async def test_what_is_counted(open_store: OpenStore, directory: Path, clock: Clock, book: Ledger) -> None:
    one, two = await open_store(0, 2), await open_store(1, 2)
    ends = [(State.BOUNCED, "user-unknown"), (State.DELIVERED, "delivered"), (State.QUEUED, ""), (State.HELD, "")]
    await kept(one, ends, sender="a@Example.COM")
    await kept(two, [(State.BOUNCED, "user-unknown"), (State.EXPIRED, "expired")], sender='"a@b"@example.com')
    await kept(one, [(State.DELIVERED, "delivered")], sender="a@bücher.example", lane="other")
    await kept(one, [(State.DELIVERED, "delivered")], sender="", lane="@inbound")
    clock.advance(DAY)
    complained = await kept(
        two, [(State.DELIVERED, "delivered"), (State.SUPPRESSED, "complaint")], sender="x@example.com"
    )
    news = amendment(complained, State.DELIVERED, State.DELIVERED, EventKind.COMPLAINED, key="complained")
    await two.amend(news)
    figure = Figure(TODAY, "example.com", "acme", State.DELIVERED, "")
    expected = {
        figure: 1,
        figure._replace(state=State.BOUNCED, cls="user-unknown"): 2,
        figure._replace(state=State.QUEUED): 1,
        figure._replace(state=State.HELD): 1,
        figure._replace(state=State.EXPIRED, cls="expired"): 1,
        figure._replace(domain="xn--bcher-kva.example", upstream="other"): 1,
        figure._replace(day=TODAY + 1, cls="complaint"): 1,
        figure._replace(day=TODAY + 1, state=State.SUPPRESSED, cls="complaint"): 1,
    }
    assert found(directory) == expected
    assert found(directory, TODAY + 1) == {key: n for key, n in expected.items() if key.day == TODAY + 1}
    assert found(directory, TODAY, TODAY) == {key: n for key, n in expected.items() if key.day == TODAY}
    [(first, counts), (second, later)] = _lines(expected, By.DAY)
    assert first < second
    expected_counts = {"accepted": 7, "delivered": 2, "bounced": 2, "expired": 1, "waiting": 2}
    assert {name: count for name, count in counts.items() if count} == expected_counts
    assert (later["accepted"], later["delivered"], later["suppressed"], later["complaints"]) == (2, 1, 1, 2)
    assert [key for key, _ in _lines(expected, By.UPSTREAM)] == ["acme", "other"]
    assert [key for key, _ in _lines(expected, By.DOMAIN)] == ["example.com", "xn--bcher-kva.example"]
    classes = dict(_lines(expected, By.CLASS))
    assert classes["user-unknown"]["accepted"] == classes["user-unknown"]["bounced"] == 2


async def test_a_late_bounce_corrects_its_day_wherever_it_is_counted(
    open_store: OpenStore, directory: Path, clock: Clock, book: Ledger
) -> None:
    store = await open_store(segment=DAY, keep=10.0 * DAY)
    mail = await kept(store, [(State.DELIVERED, "delivered")] * 4, sender="a@example.com")
    delivered = Figure(TODAY, "example.com", "acme", State.DELIVERED, "")
    bounced = delivered._replace(state=State.BOUNCED, cls="mailbox-full")

    async def bounce(n: int) -> None:
        detail = {"class": "mailbox-full"}
        news = amendment(mail, State.DELIVERED, State.BOUNCED, EventKind.BOUNCED, n=n, **detail)
        await store.amend(news)
        await store.amend(news)

    await bounce(0)
    assert found(directory) == {delivered: 3, bounced: 1}
    clock.advance(2 * DAY)
    await keep(store)  # another segment
    today = Figure(TODAY + 2, "example.com", "acme", State.QUEUED, "")
    await store.retain(clock(), book)
    marks = await book.marks()
    assert len(marks) == 1, "finished segments only"
    await bounce(1)
    assert found(directory) == {delivered: 2, bounced: 2, today: 1}, "what was kept is stale"
    await store.retain(clock(), book)
    assert await book.marks() != marks
    await bounce(2)
    await store.close()
    store = await open_store(segment=DAY, keep=10.0 * DAY)
    clock.advance(20 * DAY)
    await store.retain(clock(), book)
    assert len(segments(directory)) == 1
    assert found(directory) == {delivered: 1, bounced: 3, today: 1}, "the file is gone, its figures are not"


async def test_killed_between_keeping_the_figures_and_unlinking_the_file(
    open_store: OpenStore, directory: Path, clock: Clock, book: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await open_store(segment=DAY, keep=float(DAY))
    for _ in range(2):
        await kept(store, [(State.DELIVERED, ""), (State.BOUNCED, "policy")], sender="a@example.com")
        clock.advance(DAY)
    await kept(store, [(State.DELIVERED, "")], sender="a@example.com")
    clock.advance(5 * DAY)
    before = found(directory)
    with monkeypatch.context() as patch:
        patch.setattr("relayd.spool.files.remove", _refuse)
        await store.retain(clock(), book)
    assert len(segments(directory)) == 3 and len(await book.marks()) == 2
    assert found(directory) == before
    await store.close()
    store = await open_store(segment=DAY, keep=float(DAY))
    for _ in range(2):
        await store.retain(clock(), book)
        assert found(directory) == before
    assert len(segments(directory)) == 1


def _refuse(path: Path) -> None:
    raise OSError(5, "the process died here")


async def test_a_segment_stays_until_its_figures_are_kept(
    open_store: OpenStore, directory: Path, clock: Clock, book: Ledger
) -> None:
    class Full(Ledger):
        async def keep(self, segment: str, counted: ledger.Counted) -> None:
            raise StoreError("no room")

    store = await open_store(segment=DAY, keep=float(DAY))
    await kept(store, [(State.DELIVERED, "")], sender="a@example.com")
    clock.advance(5 * DAY)
    await keep(store)
    clock.advance(5 * DAY)
    await store.retain(clock(), Full(book._state, clock))
    assert len(segments(directory)) == 2
    await store.retain(clock(), book)
    assert len(segments(directory)) == 1


async def test_figures_are_forgotten_in_the_end(book: Ledger, clock: Clock) -> None:
    old = Figure(TODAY - ledger.KEPT - 1, "example.com", "acme", State.DELIVERED, "")
    await book.keep("000/a.db", ledger.Counted(7, {old: 3, old._replace(day=old.day + 1): 2}))
    clock.advance(DAY)
    await book.keep("000/b.db", ledger.Counted(1, {}))
    assert list(await book.marks()) == ["000/b.db"]


async def test_any_mail_is_counted_once(open_store: OpenStore, directory: Path, clock: Clock, book: Ledger) -> None:
    """Random mail over some days, with retention now and then: every recipient is somewhere, in its last state."""
    chance = random.Random(4)
    store = await open_store(segment=DAY, keep=3.0 * DAY)
    truth: dict[tuple[int, int], Figure] = {}
    mails: list[Delivery] = []
    classes = ["user-unknown", "mailbox-full", "policy"]
    for _ in range(60):
        states = [
            (state, chance.choice(classes) if state in (State.BOUNCED, State.SUPPRESSED) else "")
            for state in chance.choices([State.DELIVERED, State.BOUNCED, State.SUPPRESSED], k=chance.randint(1, 4))
        ]
        domain, lane = f"{chance.choice('ab')}.example", chance.choice(["x", "y"])
        mail = await kept(store, states, sender=f"s@{domain}", lane=lane)
        mails.append(mail)
        for n, (state, cls) in enumerate(states):
            truth[mail.message.id, n] = Figure(mail.message.accepted_at // statistics.DAY, domain, lane, state, cls)
        for late in chance.sample(mails, min(3, len(mails))):
            if truth[late.message.id, 0].state is State.DELIVERED and late.message.accepted_at > clock() - 2000 * DAY:
                detail = {"class": "policy"}
                await store.amend(amendment(late, State.DELIVERED, State.BOUNCED, EventKind.BOUNCED, **detail))
                truth[late.message.id, 0] = truth[late.message.id, 0]._replace(state=State.BOUNCED, cls="policy")
        clock.advance(DAY / 6)
        if chance.random() < 0.3:
            await store.retain(clock(), book)
            assert found(directory) == dict(Counter(truth.values()))
    assert len(segments(directory)) < 8
