"""What goes wrong with files and disks: damage, newer files, no room, unfinished work. Nothing kept is lost by it."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from relayd.config.models import Spool
from relayd.core.lifecycle import State
from relayd.spool import files, schema
from relayd.spool.sqlite import SqliteStore
from relayd.spool.store import NoSuchMessageError, StoreError, StoreFullError
from relayd.spool.writes import LARGE, PART
from tests.spool.conftest import OpenStore
from tests.spool.test_segments import segments
from tests.spool.test_store import ids, keep
from tests.support.clock import Clock
from tests.support.mail import CONTENT, NOW, make_message, make_settlement, make_waiting


def only(directory: Path) -> Path:
    [path] = files.segments_in(directory / "000")
    return path


def octets_of(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


async def test_a_newer_schema_is_refused_and_nothing_changed(
    open_store: OpenStore, directory: Path, clock: Clock
) -> None:
    store = await open_store()
    mail = await keep(store)
    await store.close()
    with closing(sqlite3.connect(only(directory))) as db:
        db.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = octets_of(directory)
    with pytest.raises(StoreError, match=rf"newer relayd \(schema {schema.VERSION + 1}, this one knows"):
        await SqliteStore(directory, 0, 1, Spool(), clock).open()
    assert octets_of(directory) == before
    with closing(sqlite3.connect(only(directory))) as db:
        db.execute(f"PRAGMA user_version = {schema.VERSION}")
    assert (await (await open_store()).history(mail.message.id)).message == mail.message


@pytest.mark.parametrize("damage", ["garbage", "truncated", "header", "empty"])
async def test_a_damaged_segment_is_set_aside_and_the_rest_goes_on(
    open_store: OpenStore, directory: Path, clock: Clock, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = await open_store(segment=3600.0)
    first = await keep(store)
    clock.advance(3600)
    broken = [await keep(store, content=b"x" * 9000) for _ in range(5)]
    await store.close()
    path = files.segments_in(directory / "000")[1]
    octets = path.read_bytes()
    path.write_bytes(
        {
            "garbage": os.urandom(len(octets)),
            "truncated": octets[: len(octets) // 2 // 4096 * 4096],
            "header": b"\x00" * 100 + octets[100:],
            "empty": b"",
        }[damage]
    )
    # when it was last written to: ids that it may hold are not given out again
    os.utime(path, (clock() / 1000, clock() / 1000))
    capsys.readouterr()
    store = await open_store(segment=3600.0)
    assert store.damaged == 1
    assert "segment_damaged" in capsys.readouterr().out
    assert path.with_name(path.name + ".damaged").exists()
    assert not path.exists()
    assert ids((await store.due("acme", NOW, 10, ())).deliveries) == [first.message.id]
    with pytest.raises(NoSuchMessageError):
        await store.history(broken[0].message.id)
    fresh = await keep(store)
    assert fresh.message.id not in ids(broken)
    assert (await store.history(fresh.message.id)).message == fresh.message


async def test_damage_found_at_work_is_set_aside_and_new_mail_goes_on(
    open_store: OpenStore, directory: Path, clock: Clock
) -> None:
    store = await open_store()
    old = [await keep(store) for _ in range(50)]
    await store.close()
    path = only(directory)
    with closing(sqlite3.connect(path)) as db:
        roots = [
            row[0] for row in db.execute("SELECT rootpage FROM sqlite_master WHERE name IN ('event', 'recipient')")
        ]
    with path.open("r+b") as file:
        for page in roots:
            file.seek((page - 1) * schema.PAGE)
            file.write(os.urandom(schema.PAGE))
    store = await open_store()
    clock.advance(1)
    with pytest.raises(StoreError):
        await store.history(old[0].message.id)
    fresh = await keep(store)
    assert (await store.history(fresh.message.id)).message == fresh.message
    assert store._shelf.current.path != path
    await store.close()
    assert store.damaged == 1
    assert path.with_name(path.name + ".damaged").exists()


async def test_a_file_that_was_never_finished_is_no_segment(open_store: OpenStore, directory: Path) -> None:
    """A crash while a segment is made leaves a .new file, which counts for nothing."""
    folder = directory / "000"
    folder.mkdir(parents=True)
    (folder / files.name_of(NOW)).with_suffix(".new").write_bytes(b"half")
    store = await open_store()
    await keep(store)
    assert segments(directory) == [files.name_of(NOW)]
    assert store.damaged == 0


async def test_parts_of_a_message_that_never_came_to_be_are_forgotten(open_store: OpenStore, directory: Path) -> None:
    store = await open_store()
    mail = await keep(store, content=b"x" * (LARGE + 1))
    await store.close()
    with closing(sqlite3.connect(only(directory))) as db, db:
        db.execute("INSERT INTO part VALUES (?, 0, ?, NULL)", (mail.message.id + 1, b"y" * PART))
    store = await open_store()
    assert await store.content(mail.message.id) == b"x" * (LARGE + 1)
    await store.close()
    with closing(sqlite3.connect(only(directory))) as db:
        assert db.execute("SELECT DISTINCT message FROM part").fetchall() == [(mail.message.id,)]


def _cap(db: sqlite3.Connection, pages: int) -> None:
    (now,) = db.execute("PRAGMA page_count").fetchone()
    db.execute(f"PRAGMA max_page_count = {now + pages}")


async def test_without_room_nothing_is_promised_and_room_is_enough_to_go_on(store: SqliteStore) -> None:
    """SQLite's own limit stands for a full disk: the same SQLITE_FULL, at a place of our choice."""
    kept = await keep(store)
    [segment] = store._shelf.all()
    await segment.work(_cap, 20)
    tries = [make_message(store.mint(), content=b"x" * 100_000) for _ in range(3)]
    answers = await asyncio.gather(
        *(store.accept(message, [make_waiting()], b"x" * 100_000) for message in tries), return_exceptions=True
    )
    assert [type(answer) for answer in answers] == [StoreFullError] * 3
    assert store.failing
    large = make_message(store.mint(), content=b"x" * (3 * PART))
    with pytest.raises(StoreFullError):
        await store.accept(large, [make_waiting()], b"x" * (3 * PART))
    assert ids((await store.due("acme", NOW, 10, ())).deliveries) == [kept.message.id]
    await segment.work(_cap, 1_000_000)
    for message in tries:
        await store.accept(message, [make_waiting()], b"x" * 100_000)
    await store.accept(large, [make_waiting()], b"x" * (3 * PART))
    assert await store.content(large.id) == b"x" * (3 * PART)
    assert not store.failing
    await store.settle(make_settlement(kept.message, kept.recipients, State.DELIVERED))
    assert len((await store.due("acme", NOW, 10, ())).deliveries) == 4


async def test_a_large_message_that_found_no_room_half_way_leaves_nothing(store: SqliteStore, directory: Path) -> None:
    await keep(store)
    [segment] = store._shelf.all()
    await segment.work(_cap, 6 * PART // schema.PAGE)
    large = make_message(store.mint(), content=b"x" * (20 * PART))
    with pytest.raises(StoreFullError):
        await store.accept(large, [make_waiting()], b"x" * (20 * PART))
    with pytest.raises(NoSuchMessageError):
        await store.content(large.id)
    await keep(store)
    parts = await segment.read(lambda db: db.execute("SELECT COUNT(*) FROM part").fetchone())
    assert parts == (0,)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small file system needs root")
    place = tmp_path / "small"
    place.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("this machine lets nobody mount")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


async def test_a_disk_that_fills_up_and_is_emptied_again(small_disk: Path, clock: Clock) -> None:
    store = SqliteStore(small_disk / "spool", 0, 1, Spool(segment=3600.0), clock)
    await store.open()
    try:
        kept = [await keep(store)]
        ballast = small_disk / "ballast"
        with pytest.raises(OSError, match="No space left"), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        for _ in range(3):
            # also a new segment cannot be made, and is made later
            clock.advance(3600)
            with pytest.raises(StoreFullError):
                await keep(store, content=b"x" * 200_000)
            with pytest.raises(StoreError):
                await store.settle(make_settlement(kept[0].message, kept[0].recipients, State.DELIVERED))
            assert (await store.history(kept[0].message.id)).recipients[0].state is State.QUEUED
        ballast.unlink()
        kept += [await keep(store, content=b"x" * 200_000) for _ in range(3)]
        await store.settle(make_settlement(kept[0].message, kept[0].recipients, State.DELIVERED))
        due = await store.due("acme", NOW, 10, ())
        assert ids(due.deliveries) == ids(kept[1:])
    finally:
        await store.close()


async def test_a_disk_that_refuses_to_write_and_heals(store: SqliteStore) -> None:
    """A limit on file size makes every write past it fail as on a broken disk: SQLITE_IOERR, not SQLITE_FULL."""
    kept = await keep(store)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        refused = [
            await asyncio.wait_for(_outcome(future), 10)
            for future in (
                store.accept(make_message(store.mint()), [make_waiting()], CONTENT),
                store.settle(make_settlement(kept.message, kept.recipients, State.DELIVERED)),
            )
        ]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [type(error) for error in refused] == [StoreError] * 2
    assert store.failing
    assert ids((await store.due("acme", NOW, 10, ())).deliveries) == [kept.message.id]
    await store.settle(make_settlement(kept.message, kept.recipients, State.DELIVERED))
    assert (await store.history((await keep(store)).message.id)).has_content
    assert not store.failing


async def _outcome(future: asyncio.Future[None]) -> BaseException | None:
    await asyncio.wait([future])
    return future.exception()


async def test_a_directory_that_cannot_be_made_is_said(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "spool").write_text("in the way")
    with pytest.raises(StoreError):
        await SqliteStore(tmp_path / "spool", 0, 1, Spool(), clock).open()


def test_a_slot_must_be_one_of_the_slots(tmp_path: Path, clock: Clock) -> None:
    with pytest.raises(ValueError, match="slot 2 of 2"):
        SqliteStore(tmp_path, 2, 2, Spool(), clock)


async def test_waiting_mail_content_is_kept_whatever(store: SqliteStore) -> None:
    mail = await keep(store, content=CONTENT)
    await store.retain(NOW + 10**12)
    assert await store.content(mail.message.id) == CONTENT
