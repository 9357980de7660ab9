"""Files that are not what was written: found at the start or at work, set aside, and never taken for whole."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from relayd.spool import files, schema, wal
from relayd.spool.store import NoSuchMessageError, StoreError, UnreadableError
from relayd.spool.writes import LARGE
from tests.spool.conftest import OpenStore
from tests.spool.test_crash import run_until_killed
from tests.spool.test_store import ids, keep
from tests.support.clock import Clock
from tests.support.mail import CONTENT, NOW, make_message, make_waiting


def flip(path: Path, at: int, bit: int = 3) -> None:
    """Turn one bit of a file."""
    with path.open("r+b") as file:
        file.seek(at)
        [octet] = file.read(1)
        file.seek(at)
        file.write(bytes([octet ^ 1 << bit]))


async def crashed(directory: Path) -> Path:
    """A segment as a killed process left it, with some hundred commits in its WAL."""
    await run_until_killed(directory, "settle", 300, "500")
    [path] = files.segments_in(directory / "000")
    assert wal.path_of(path).stat().st_size > 40 * wal.FRAME
    return path


@pytest.mark.parametrize("removed", [("-wal",), ("-wal", "-shm")])
async def test_a_missing_wal_is_noticed(
    open_store: OpenStore, directory: Path, removed: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    path = await crashed(directory)
    for suffix in removed:
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    store = await open_store()
    assert store.damaged == 1
    assert "its WAL is missing" in capsys.readouterr().out
    assert not path.exists()
    await keep(store)


async def test_an_emptied_wal_is_a_missing_one(open_store: OpenStore, directory: Path) -> None:
    path = await crashed(directory)
    os.truncate(wal.path_of(path), 0)
    assert (await open_store()).damaged == 1


@pytest.mark.parametrize("where", ["page", "head", "header"])
async def test_a_flipped_bit_in_the_wal_is_no_crash(open_store: OpenStore, directory: Path, where: str) -> None:
    """SQLite alone would drop every commit behind it without a word."""
    path = await crashed(directory)
    log = wal.path_of(path)
    frames = (log.stat().st_size - wal.HEADER) // wal.FRAME
    at = wal.HEADER + frames // 2 * wal.FRAME
    flip(log, {"page": at + 24 + 1000, "head": at + 9, "header": 17}[where])
    with_damage = log.read_bytes()
    store = await open_store()
    assert store.damaged == 1
    aside = path.with_name(path.name + files.DAMAGED)
    # all of it is there for whoever saves what can be saved
    assert aside.with_name(aside.name + "-wal").read_bytes() == with_damage


async def test_what_a_power_cut_leaves_at_the_end_of_the_wal_is_no_damage(
    open_store: OpenStore, directory: Path
) -> None:
    path = await crashed(directory)
    log = wal.path_of(path)
    octets = log.read_bytes()
    frames = (len(octets) - wal.HEADER) // wal.FRAME
    for cut in (wal.HEADER + frames * wal.FRAME - 2000, wal.HEADER + (frames - 1) * wal.FRAME):
        log.write_bytes(octets[:cut] + bytes(len(octets) - cut))
        assert wal.fault(path) == ""
    # nor is what an earlier life of the WAL left behind its end
    log.write_bytes(octets + octets[wal.HEADER :].replace(octets[16:24], b"12345678"))
    assert wal.fault(path) == ""
    assert (await open_store()).damaged == 0


async def test_a_file_that_lost_its_end_is_noticed_at_the_start(open_store: OpenStore, directory: Path) -> None:
    store = await open_store()
    for _ in range(20):
        await keep(store, content=b"x" * 9000)
    await store.close()
    [path] = files.segments_in(directory / "000")
    os.truncate(path, path.stat().st_size - schema.PAGE)
    assert (await open_store()).damaged == 1


async def test_a_copy_without_its_wal_is_not_taken_for_whole(open_store: OpenStore, directory: Path) -> None:
    """As a backup program makes it that knows nothing of SQLite."""
    store = await open_store()
    await keep(store)
    [path] = files.segments_in(directory / "000")
    copy = directory.parent / "copy"
    (copy / "000").mkdir(parents=True)
    shutil.copy(path, copy / "000")
    assert wal.fault(copy / "000" / path.name) == "its WAL is missing: what was committed last is lost"
    await store.close()
    assert files.header_of(path) == files.Header(schema.VERSION, 0, path.stat().st_size // schema.PAGE)
    assert wal.fault(path) == ""


async def test_a_segment_closed_on_a_full_disk_is_whole(open_store: OpenStore, directory: Path) -> None:
    """Where the mark in the file cannot be taken back, the WAL stays, so that nobody takes it for lost."""
    store = await open_store()
    mail = await keep(store)
    [segment] = store._shelf.all()
    await segment.work(lambda db: db.execute("PRAGMA query_only = ON"))
    await store.close()
    assert wal.path_of(segment.path).exists()
    store = await open_store()
    assert store.damaged == 0
    assert (await store.history(mail.message.id)).message == mail.message


@pytest.mark.parametrize("size", [20_000, LARGE + 1])
async def test_content_that_changed_on_the_disk_is_not_given_out(
    open_store: OpenStore, directory: Path, size: int
) -> None:
    content = b"The quick brown fox. " * (size // 21 + 1)
    store = await open_store()
    mail = await keep(store, content=content)
    await store.close()
    [path] = files.segments_in(directory / "000")
    octets = path.read_bytes()
    flip(path, octets.index(b"brown", len(octets) // 2))
    store = await open_store()
    with pytest.raises(UnreadableError, match="changed on the disk"):
        await store.content(mail.message.id)
    assert ids((await store.due("acme", NOW, 10, ())).deliveries) == [mail.message.id]


async def test_ids_of_a_segment_that_broke_at_work_go_nowhere_else(
    open_store: OpenStore, directory: Path, clock: Clock
) -> None:
    """An id that was given out before the damage must not end in the segment before: nobody would find it there."""
    store = await open_store(segment=3600.0)
    await keep(store)
    clock.advance(3600)
    for _ in range(30):
        lost = await keep(store)
    given = store.mint()
    segment = store._shelf.current
    segment.break_off(sqlite3.DatabaseError("as if"))
    with pytest.raises(StoreError, match="not an id of this worker"):
        await store.accept(make_message(given), [make_waiting()], CONTENT)
    with pytest.raises(NoSuchMessageError):
        await store.history(lost.message.id)
    await store.close()
    assert store.damaged == 1
    # counted as long as it lies there, not only until the next start
    assert (await open_store()).damaged == 1
