"""Reading the spool from outside: beside a daemon at work, after a stop or crash, without rights to write."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from relayd.core.lifecycle import State
from relayd.spool import files, schema
from relayd.spool.filter import QueueFilter
from relayd.spool.reader import QueueDepth, QueueRow, SpoolReader
from relayd.spool.store import Delivery, NoSuchMessageError, Notice, StoreError
from tests.spool.conftest import OpenStore
from tests.spool.test_segments import everything
from tests.spool.test_store import keep
from tests.support.clock import Clock
from tests.support.mail import CONTENT, NOW, make_settlement, make_waiting


def names(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in everything(directory))


async def two_slots(open_store: OpenStore, clock: Clock) -> list[Delivery]:
    """Mail in two slots and three segments, in the order of acceptance; the stores stay open."""
    one, other = await open_store(0, 2, segment=60.0), await open_store(1, 2)
    mails = []
    for store in (one, other, one, other, one):
        mails.append(await keep(store, [make_waiting(0), make_waiting(1, lane="slow")]))
        clock.advance(40)
    await one.settle(make_settlement(mails[0].message, mails[0].recipients, State.DELIVERED, notice=Notice.SUCCESS))
    await other.settle(make_settlement(mails[1].message, mails[1].recipients[1:], State.HELD))
    return mails


async def test_rows_of_all_slots_come_in_the_order_of_acceptance(
    open_store: OpenStore, directory: Path, clock: Clock
) -> None:
    mails = await two_slots(open_store, clock)
    before = names(directory)
    with SpoolReader(directory) as reader:
        rows = list(reader.find(QueueFilter()))
        assert [(row.message.id, row.waiting.n) for row in rows] == [
            (mail.message.id, n) for mail in mails[1:] for n in (0, 1)
        ]
        assert rows[0] == QueueRow(mails[1].message, mails[1].recipients[0])
        assert list(reader.find(QueueFilter(), 3)) == rows[:3]
        assert [row.waiting.n for row in reader.find(QueueFilter(upstream="slow"))] == [1] * 4
        assert len(list(reader.find(QueueFilter(states=frozenset({State.DELIVERED}))))) == 2
        late = QueueFilter(newer_than=mails[3].message.accepted_at)
        assert {row.message.id for row in reader.find(late)} == {mail.message.id for mail in mails[3:]}
        early = QueueFilter(older_than=mails[3].message.accepted_at)
        assert {row.message.id for row in reader.find(early)} == {mail.message.id for mail in mails[1:3]}
    assert names(directory) == before


async def test_history_content_events_and_figures(open_store: OpenStore, directory: Path, clock: Clock) -> None:
    mails = await two_slots(open_store, clock)
    reader = SpoolReader(directory)
    for mail in mails:
        assert reader.history(mail.message.id).message == mail.message
        assert reader.content(mail.message.id) == CONTENT
    for number in (mails[0].message.id + 1, mails[0].message.id | 7 << 12, 5):
        with pytest.raises(NoSuchMessageError):
            reader.history(number)
        with pytest.raises(NoSuchMessageError):
            reader.content(number)
    stats = reader.stats()
    assert stats.depths == (
        QueueDepth("acme", State.QUEUED, 4, NOW + 40_000),
        QueueDepth("slow", State.HELD, 1, NOW + 40_000),
        QueueDepth("slow", State.QUEUED, 3, NOW + 80_000),
    )
    assert (stats.segments, stats.messages, stats.owed, stats.damaged) == (4, 5, 1, ())
    assert stats.octets > 3 * schema.PAGE


async def test_a_stopped_spool_is_read_and_left_as_it_was(open_store: OpenStore, directory: Path) -> None:
    store = await open_store()
    mail = await keep(store)
    await store.close()
    before = names(directory)
    reader = SpoolReader(directory)
    assert [row.message.id for row in reader.find(QueueFilter())] == [mail.message.id]
    assert reader.content(mail.message.id) == CONTENT
    assert names(directory) == before


async def test_a_stopped_spool_is_read_where_nobody_may_write(open_store: OpenStore, directory: Path) -> None:
    store = await open_store()
    mail = await keep(store)
    await store.close()
    for path in everything(directory):
        path.chmod(stat.S_IRUSR | (stat.S_IXUSR if path.is_dir() else 0))
    try:
        assert SpoolReader(directory).content(mail.message.id) == CONTENT
    finally:
        for path in everything(directory):
            path.chmod(0o700)


async def test_what_a_crash_left_in_the_wal_is_seen(open_store: OpenStore, directory: Path, tmp_path: Path) -> None:
    store = await open_store()
    mail = await keep(store)
    # a copy of the files as they lie there is what a crash leaves, less the -shm that dies with the machine
    shutil.copytree(directory, tmp_path / "copy")
    [path] = files.segments_in(tmp_path / "copy" / "000")
    path.with_name(path.name + "-shm").unlink()
    assert path.with_name(path.name + "-wal").stat().st_size > 0
    assert SpoolReader(tmp_path / "copy").content(mail.message.id) == CONTENT


async def test_files_that_are_no_segments_are_said_to_be_so(open_store: OpenStore, directory: Path) -> None:
    store = await open_store()
    await keep(store)
    await store.close()
    [path] = files.segments_in(directory / "000")
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    with pytest.raises(StoreError, match="newer relayd"):
        list(SpoolReader(directory).find(QueueFilter()))
    path.write_bytes(os.urandom(9000))
    with pytest.raises(StoreError, match="cannot be read"):
        SpoolReader(directory).stats()


def test_an_empty_place_has_nothing_in_it(tmp_path: Path) -> None:
    reader = SpoolReader(tmp_path / "none")
    assert list(reader.find(QueueFilter())) == []
    assert reader.stats().depths == ()
    assert reader.segments() == []
