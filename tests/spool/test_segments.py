"""Segment files: which message lives where, rollover, adoption, keeping time, privacy, and who may read them."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import pytest

from relayd.core.ids import EPOCH, slot_of
from relayd.core.lifecycle import State
from relayd.spool import files
from relayd.spool.sqlite import SqliteStore
from relayd.spool.store import Delivery, NoSuchMessageError, Notice, StoreError
from relayd.spool.writes import LARGE
from tests.spool.conftest import OpenStore
from tests.spool.test_store import ids, keep
from tests.support.clock import Clock
from tests.support.mail import CONTENT, NOW, make_message, make_settlement, make_waiting

DAY = 86_400


def segments(directory: Path, slot: int = 0) -> list[str]:
    return [path.name for path in files.segments_in(directory / f"{slot:03d}")]


def everything(directory: Path) -> list[Path]:
    return [directory, *directory.rglob("*")]


async def finish(store: SqliteStore, mail: Delivery, state: State = State.DELIVERED, **others: object) -> None:
    await store.settle(make_settlement(mail.message, mail.recipients, state, **others))


def test_names_carry_the_start() -> None:
    for start in (NOW, NOW + 7, EPOCH, 1_795_309_619_123):
        name = files.name_of(start)
        assert files.start_of(Path("x") / name) == start
    assert files.name_of(1_795_309_619_123) == "20261122T010659123Z.db"
    with pytest.raises(ValueError, match="not the name of a segment"):
        files.start_of(Path("20261122T010659123Z.db.damaged"))


async def test_only_the_owner_can_read_the_spool(store: SqliteStore, directory: Path) -> None:
    await keep(store)
    for path in everything(directory):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


async def test_a_period_has_a_file_and_every_message_is_found(
    open_store: OpenStore, directory: Path, clock: Clock
) -> None:
    store = await open_store(segment=3600.0)
    mails = []
    for _ in range(8):
        mails.append(await keep(store))
        clock.advance(1800)
    assert len(segments(directory)) == 4
    for mail in mails:
        assert (await store.history(mail.message.id)).message == mail.message
        await finish(store, mail)
    await store.close()
    store = await open_store(segment=3600.0)
    for mail in mails:
        assert (await store.history(mail.message.id)).recipients[0].state is State.DELIVERED


async def test_a_message_minted_before_rollover_and_kept_after_it_is_found(
    open_store: OpenStore, directory: Path, clock: Clock
) -> None:
    store = await open_store(segment=3600.0)
    await keep(store)
    early = make_message(store.mint())
    clock.advance(3600)
    late = make_message(store.mint())
    await asyncio.gather(store.accept(late, [make_waiting()], CONTENT), store.accept(early, [make_waiting()], CONTENT))
    assert len(segments(directory)) == 2
    for message in (early, late):
        await store.settle(make_settlement(message, [make_waiting()], State.DELIVERED))
        assert (await store.history(message.id)).recipients[0].state is State.DELIVERED


async def test_rollover_survives_a_clock_that_steps_back(open_store: OpenStore, clock: Clock) -> None:
    store = await open_store(segment=3600.0)
    mails = []
    for step in (0, 3600, -7200, 1, 7300, -9000, 0):
        clock.advance(step)
        mails += [await keep(store) for _ in range(2)]
    assert ids(mails) == sorted(set(ids(mails)))
    for mail in mails:
        assert (await store.history(mail.message.id)).message == mail.message
    await store.close()
    store = await open_store(segment=3600.0)
    for mail in mails:
        assert (await store.history(mail.message.id)).message == mail.message
    assert (await keep(store)).message.id > mails[-1].message.id


async def test_rollover_in_the_millisecond_of_the_last_message(open_store: OpenStore, clock: Clock) -> None:
    store = await open_store(segment=60.0)
    clock.advance(61)
    mail = await keep(store)
    await store.close()
    store = await open_store(segment=60.0)
    later = await keep(store)
    assert (await store.history(mail.message.id)).message == mail.message
    assert (await store.history(later.message.id)).message == later.message


async def test_a_quiet_relay_makes_no_empty_files(open_store: OpenStore, directory: Path, clock: Clock) -> None:
    store = await open_store(segment=3600.0)
    for _ in range(5):
        clock.advance(4000)
        store.mint()
    assert len(segments(directory)) == 1


async def test_a_full_file_is_followed_by_another(open_store: OpenStore, directory: Path, clock: Clock) -> None:
    store = await open_store(segment_size=1024**2)
    for _ in range(40):
        clock.advance(0.001)
        await keep(store, content=b"x" * 100_000)
    assert 3 <= len(segments(directory)) <= 5
    assert len((await store.due("acme", NOW + DAY, 100, ())).deliveries) == 40


async def test_the_wal_does_not_grow_with_the_mail(open_store: OpenStore, directory: Path) -> None:
    store = await open_store()
    for _ in range(12):
        await asyncio.gather(*(keep(store, content=b"x" * 1_000_000) for _ in range(12)))
    [path] = files.segments_in(directory / "000")
    assert path.with_name(path.name + "-wal").stat().st_size < 80_000_000
    assert path.stat().st_size > 50_000_000


async def test_due_lanes_and_walks_span_segments(open_store: OpenStore, clock: Clock) -> None:
    store = await open_store(segment=3600.0)
    mails = []
    for place in range(4):
        mails.append(await keep(store, [make_waiting(due=NOW - place)]))
        clock.advance(3600)
    due = await store.due("acme", NOW, 3, ())
    assert ids(due.deliveries) == ids(mails[:0:-1])
    assert due.next_due == NOW
    [lane] = await store.lanes()
    assert (lane.depth, lane.oldest) == (4, NOW)
    assert ids(await store.overdue(clock(), 3)) == ids(mails[:3])
    assert await store.relane(lambda message, recipient: "b", ()) == 4


async def test_mail_of_slots_without_a_worker_is_adopted(open_store: OpenStore, directory: Path) -> None:
    mails = []
    for slot in range(4):
        store = await open_store(slot, 4)
        mails.append(await keep(store))
        await store.close()
    store = await open_store(1, 2)
    assert sorted(ids((await store.due("acme", NOW, 10, ())).deliveries)) == sorted([ids(mails)[1], ids(mails)[3]])
    await finish(store, mails[3])
    assert (await store.history(mails[3].message.id)).recipients[0].state is State.DELIVERED
    with pytest.raises(NoSuchMessageError):
        await store.history(mails[0].message.id)
    fresh = await keep(store)
    assert slot_of(fresh.message.id) == 1
    with pytest.raises(StoreError, match="not an id of this worker"):
        await store.accept(make_message(mails[2].message.id), [make_waiting()], CONTENT)


async def test_finished_segments_are_opened_when_asked_and_closed_again(open_store: OpenStore, clock: Clock) -> None:
    store = await open_store(segment=3600.0)
    mails = []
    for _ in range(14):
        mails.append(await keep(store))
        await finish(store, mails[-1])
        clock.advance(3600)
    await store.close()
    store = await open_store(segment=3600.0)
    is_open = lambda: sum(segment.open for segment in store._shelf.all())  # noqa: E731
    assert is_open() == 1
    for mail in mails:
        assert await store.content(mail.message.id) == CONTENT
    assert is_open() <= 10
    await store.retain(clock())
    assert is_open() == 1


class TestRetention:
    """What is dropped when its time has passed, and what never is."""

    async def test_whole_files_go_after_their_keeping_time(
        self, open_store: OpenStore, directory: Path, clock: Clock
    ) -> None:
        store = await open_store(segment=DAY, keep=10.0 * DAY)
        mails = []
        for _ in range(5):
            mails.append(await keep(store))
            await finish(store, mails[-1])
            clock.advance(DAY)
        clock.advance(8 * DAY)
        await store.retain(clock())
        # the third began 11 days ago and ended 10 days ago
        assert len(segments(directory)) == 2
        assert sorted(
            path.name for path in (directory / "000").iterdir() if not path.name.endswith(("wal", "shm"))
        ) == (segments(directory))
        for mail in mails[:3]:
            with pytest.raises(NoSuchMessageError):
                await store.history(mail.message.id)
            with pytest.raises(NoSuchMessageError):
                await finish(store, mail)
        assert (await store.history(mails[3].message.id)).has_content

    async def test_what_waits_or_is_owed_keeps_its_file(
        self, open_store: OpenStore, directory: Path, clock: Clock
    ) -> None:
        store = await open_store(segment=DAY, keep=DAY, keep_body=DAY)
        held = await keep(store, [make_waiting(state=State.HELD)])
        clock.advance(DAY)
        owed = await keep(store)
        await finish(store, owed, State.BOUNCED, notice=Notice.FAILURE)
        clock.advance(DAY)
        waiting = await keep(store)
        clock.advance(DAY)
        await keep(store)
        clock.advance(100 * DAY)
        for _ in range(2):
            await store.retain(clock())
            for mail in (held, owed, waiting):
                assert (await store.history(mail.message.id)).has_content
        await finish(store, held)
        await finish(store, waiting)
        await store.noticed(owed.message.id, [0])
        await store.retain(clock())
        assert len(segments(directory)) == 1

    async def test_the_segment_in_use_is_never_removed(self, open_store: OpenStore, clock: Clock) -> None:
        store = await open_store(keep=0.0, keep_body=0.0)
        mail = await keep(store)
        await finish(store, mail)
        clock.advance(1000 * DAY)
        await store.retain(clock())
        assert (await store.history(mail.message.id)).message == mail.message

    async def test_adopted_files_go_too(self, open_store: OpenStore, directory: Path, clock: Clock) -> None:
        store = await open_store(1, 2)
        mail = await keep(store)
        await finish(store, mail)
        await store.close()
        store = await open_store(0, 1, keep=float(DAY))
        await store.retain(clock())
        assert len(segments(directory, 1)) == 1
        clock.advance(2 * DAY)
        await store.retain(clock())
        assert segments(directory, 1) == []

    async def test_bodies_go_before_history(self, open_store: OpenStore, directory: Path, clock: Clock) -> None:
        store = await open_store(segment=DAY, keep=40.0 * DAY, keep_body=7.0 * DAY)
        large = await keep(store, content=b"x" * (LARGE + 1))
        early = await keep(store)
        late = await keep(store)
        waiting = await keep(store, [make_waiting(0), make_waiting(1)])
        owed = await keep(store)
        for mail in (large, early):
            await finish(store, mail, at=clock())
        await store.settle(make_settlement(waiting.message, waiting.recipients[:1], State.DELIVERED, at=clock()))
        await finish(store, owed, State.BOUNCED, notice=Notice.FAILURE, at=clock())
        clock.advance(5 * DAY)
        await finish(store, late, at=clock())
        clock.advance(2 * DAY + 1)
        await keep(store)
        await store.retain(clock())

        async def has_content() -> list[bool]:
            return [(await store.history(mail.message.id)).has_content for mail in (large, early, late, waiting, owed)]

        assert await has_content() == [False, False, True, True, True]
        with pytest.raises(NoSuchMessageError):
            await store.content(early.message.id)
        await store.settle(make_settlement(waiting.message, waiting.recipients[1:], State.DELIVERED, at=clock()))
        await store.noticed(owed.message.id, [0])
        clock.advance(8 * DAY)
        await store.retain(clock())
        assert await has_content() == [False] * 5
        assert (directory / "000" / segments(directory)[0]).stat().st_size < LARGE
        assert (await store.history(large.message.id)).recipients[0].state is State.DELIVERED

    async def test_bodies_of_one_file_go_as_their_time_comes(self, open_store: OpenStore, clock: Clock) -> None:
        store = await open_store(segment=DAY, keep=40.0 * DAY, keep_body=7.0 * DAY)
        mails = []
        for _ in range(4):
            mails.append(await keep(store))
            await finish(store, mails[-1], at=clock())
            clock.advance(DAY / 3)
        clock.advance(5.5 * DAY)
        for gone in range(4):
            await store.retain(clock())
            found = [(await store.history(mail.message.id)).has_content for mail in mails]
            assert found == [False] * gone + [True] * (4 - gone)
            clock.advance(DAY / 3)

    async def test_without_keep_body_content_goes_with_the_last_outcome(self, open_store: OpenStore) -> None:
        store = await open_store(keep_body=0.0)
        mail = await keep(store, [make_waiting(0), make_waiting(1)])
        large = await keep(store, content=b"x" * (LARGE + 1))
        owed = await keep(store)
        await store.settle(make_settlement(mail.message, mail.recipients[:1], State.DELIVERED))
        assert (await store.history(mail.message.id)).has_content
        await store.settle(make_settlement(mail.message, mail.recipients[1:], State.BOUNCED))
        await finish(store, large)
        await finish(store, owed, State.BOUNCED, notice=Notice.FAILURE)
        assert not (await store.history(mail.message.id)).has_content
        assert not (await store.history(large.message.id)).has_content
        assert (await store.history(owed.message.id)).has_content
        await store.noticed(owed.message.id, [0])
        assert not (await store.history(owed.message.id)).has_content
