"""Priorities on disk: asked for one by one, kept through moves, and segments of the version before they were."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from relayd.core.lifecycle import State
from relayd.spool import schema
from relayd.spool.files import segments_in, slot_directory
from relayd.spool.filter import QueueFilter
from relayd.spool.reader import SpoolReader
from relayd.spool.sqlite import SqliteStore
from tests.spool.conftest import OpenStore
from tests.support.mail import CONTENT, NOW, make_message, make_settlement, make_waiting


async def keep(store: SqliteStore, urgency: int, count: int = 1, lane: str = "acme") -> list[int]:
    out = []
    for _ in range(count):
        message = make_message(store.mint(), priority=urgency)
        await store.accept(message, [make_waiting(lane=lane)], CONTENT)
        out.append(message.id)
    return out


async def due(store: SqliteStore, urgency: int, lane: str = "acme") -> list[int]:
    return [each.message.id for each in (await store.due(lane, NOW, 100, (), urgency)).deliveries]


async def test_each_priority_is_asked_for_alone(store: SqliteStore) -> None:
    kept = {urgency: await keep(store, urgency, 2) for urgency in (-1, 0, 1)}
    for urgency, messages in kept.items():
        assert await due(store, urgency) == messages
    found = await store.due("acme", NOW, 100, (), 1)
    assert [each.message.priority for each in found.deliveries] == [1, 1]


async def test_a_priority_stays_through_deferral_and_move(store: SqliteStore) -> None:
    [number] = await keep(store, 1)
    history = await store.history(number)
    await store.settle(make_settlement(history.message, history.recipients, State.DEFERRED, due=NOW))
    assert (await due(store, 1), await due(store, 0)) == ([number], [])
    await store.relane(lambda message, recipient: "other", ())
    assert (await due(store, 1, "other"), await due(store, 0, "other")) == ([number], [])


def age(path: Path) -> None:
    """Make a segment what version 1 wrote."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("DROP INDEX recipient_due")
        db.execute("ALTER TABLE recipient DROP COLUMN priority")
        db.execute("ALTER TABLE body DROP COLUMN crc")
        db.execute("ALTER TABLE part DROP COLUMN crc")
        db.execute("CREATE INDEX recipient_due ON recipient (lane, due, message, n) WHERE due IS NOT NULL")
        db.execute("PRAGMA user_version = 1")


async def test_a_segment_of_the_version_before_is_read_and_brought_up_to_date(
    open_store: OpenStore, directory: Path
) -> None:
    store = await open_store()
    [number] = await keep(store, 0)
    await store.close()
    [path] = segments_in(slot_directory(directory, 0))
    age(path)
    with SpoolReader(directory) as reader:
        # a command of the new version, before the daemon of the new version has started
        assert [row.message.id for row in reader.find(QueueFilter())] == [number]
        assert reader.stats().depths[0].count == 1
        assert reader.content(number)
    store = await open_store()
    assert store.damaged == 0
    assert (await due(store, 0), await due(store, 1)) == ([number], [])
    [urgent] = await keep(store, 1)
    assert await due(store, 1) == [urgent]
    await store.close()
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (schema.VERSION,)
