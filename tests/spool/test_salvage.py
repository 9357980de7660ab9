"""What can be read of a damaged segment is saved, whole and true: `relayd audit` finds nothing in what comes of it."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from relayd.core.ids import format_id
from relayd.core.lifecycle import State
from relayd.core.mail import Envelope
from relayd.spool import files, schema, wal
from relayd.spool.audit import audit
from relayd.spool.filter import QueueFilter
from relayd.spool.reader import SpoolReader
from relayd.spool.salvage import Salvage, salvage
from relayd.spool.store import Delivery, NoSuchMessageError, Notice, StoreError
from relayd.spool.writes import LARGE
from tests.spool.conftest import OpenStore
from tests.spool.test_crash import content_of, run_until_killed
from tests.spool.test_damage import flip
from tests.spool.test_store import keep
from tests.support.clock import Clock
from tests.support.mail import NOW, make_settlement, make_waiting

Damage = Callable[[Path, random.Random], None]
STATES = (State.DELIVERED, State.DEFERRED, State.BOUNCED, State.UNCERTAIN, State.HELD)


async def filled(open_store: OpenStore, directory: Path, dice: random.Random) -> tuple[Path, dict[int, bytes]]:
    """A segment, closed, with mail of every kind; the contents."""
    store = await open_store()
    contents: dict[int, bytes] = {}
    for place in range(60):
        content = dice.randbytes(LARGE + 50_000 if place == 47 else dice.choice((300, 3000, 30_000)))
        recipients = [make_waiting(n) for n in range(1 + place % 3)]
        mail = await keep(store, recipients, content=content)
        contents[mail.message.id] = content
        if place % 2:
            state = STATES[place // 2 % len(STATES)]
            due = NOW + 60_000 if state in (State.DEFERRED, State.UNCERTAIN) else None
            notice = Notice.FAILURE if state is State.BOUNCED else None
            await store.settle(make_settlement(mail.message, recipients[:2], state, due=due, notice=notice))
    await store.close()
    [path] = files.segments_in(directory / "000")
    return path, contents


def untouched(path: Path, dice: random.Random) -> None:
    """Set aside by mistake."""


def header(path: Path, dice: random.Random) -> None:
    with path.open("r+b") as file:
        file.write(bytes(100))


def truncated(path: Path, dice: random.Random) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def torn(path: Path, dice: random.Random) -> None:
    """A file system that lost some blocks."""
    with path.open("r+b") as file:
        for _ in range(12):
            file.seek(dice.randrange(path.stat().st_size // schema.PAGE) * schema.PAGE)
            file.write(dice.choice((bytes(schema.PAGE), dice.randbytes(schema.PAGE))))


def flipped(path: Path, dice: random.Random) -> None:
    for _ in range(40):
        flip(path, dice.randrange(path.stat().st_size), dice.randrange(8))


def small(path: Path, dice: random.Random) -> None:
    """Flipped bits where the rows of tables are, not the bodies."""
    octets = path.read_bytes()
    leaves = [at for at in range(0, len(octets), schema.PAGE) if octets[at] in (2, 5, 10, 13)]
    for _ in range(60):
        flip(path, dice.choice(leaves) + dice.randrange(schema.PAGE), dice.randrange(8))


def saved(path: Path) -> Salvage:
    # ids are never given out twice: a store tells by when the file was last written to
    os.utime(path, (NOW / 1000, NOW / 1000))
    report = salvage(files.set_aside(path), NOW, notify=True)
    assert path.exists()
    assert not report.faults
    return report


@pytest.mark.parametrize("damage", [untouched, header, truncated, torn, flipped, small])
@pytest.mark.parametrize("seed", range(3))
async def test_what_can_be_read_is_saved_and_fits_together(
    open_store: OpenStore, directory: Path, clock: Clock, damage: Damage, seed: int
) -> None:
    dice = random.Random(seed)
    path, contents = await filled(open_store, directory, dice)
    before = audit(directory)
    damage(path, dice)
    report = saved(path)
    after = audit(directory)
    assert after.clean, after.discrepancies
    kept = 0
    with SpoolReader(directory) as reader:
        for number, content in contents.items():
            try:
                found = reader.history(number)
            except NoSuchMessageError:
                continue
            kept += 1
            if found.has_content:
                # whole as it was, or not at all
                assert reader.content(number) == content
            elif any(not waiting.state.final for waiting in found.recipients):
                pytest.fail(f"{format_id(number)} waits without its content")
    clock.advance(60)
    store = await open_store()
    assert store.damaged == 0
    assert (await keep(store)).message.id > max(contents)
    if damage in (untouched, header):
        assert (kept, after.accepted, after.final) == (len(contents), before.accepted, before.final)
        assert report.lost == []
        if damage is untouched:
            assert (after.waiting, after.owed, report.unreadable) == (before.waiting, before.owed, 0)
    else:
        assert kept > len(contents) // 4
        assert report.lost


async def test_without_its_wal_what_waited_is_held(open_store: OpenStore, directory: Path, clock: Clock) -> None:
    """It may have been delivered, and that been written down in what is lost."""
    clock.advance(time.time() - NOW / 1000)
    await run_until_killed(directory, "accept", 300, "500")
    [path] = files.segments_in(directory / "000")
    await (await open_store()).close()  # all of it is in the file itself
    octets = path.read_bytes()
    octets = octets[:68] + schema.OPEN.to_bytes(4, "big") + octets[72:]
    path.write_bytes(octets)
    assert (await open_store()).damaged == 1
    aside = path.with_name(path.name + files.DAMAGED)
    report = salvage(aside, NOW, notify=True)
    waiting = audit(directory).waiting
    assert report.held == report.waiting > 0
    assert set(waiting) == {State.HELD}


async def test_a_broken_wal_gives_back_all_but_what_broke(open_store: OpenStore, directory: Path, clock: Clock) -> None:
    clock.advance(time.time() - NOW / 1000)
    told = await run_until_killed(directory, "accept", 300, "2000")
    [path] = files.segments_in(directory / "000")
    log = wal.path_of(path)
    frames = (log.stat().st_size - wal.HEADER) // wal.FRAME
    flip(log, wal.HEADER + frames // 3 * wal.FRAME + 500)
    assert (await open_store()).damaged == 1
    report = salvage(path.with_name(path.name + files.DAMAGED), NOW, notify=True)
    acknowledged = {int(number) for _, number in told}
    with SpoolReader(directory) as reader:
        found = {row.message.id for row in reader.find(QueueFilter())}
        assert len(acknowledged & found) > 0.9 * len(acknowledged)
        for number in found:
            assert reader.content(number) == content_of(number, 2000)
    assert audit(directory).waiting.keys() == {State.HELD}
    assert report.held


async def test_mail_whose_content_is_lost_bounces_and_its_sender_is_told(
    open_store: OpenStore, directory: Path
) -> None:
    store = await open_store()
    mails: list[Delivery] = []
    for sender in ("shop@example.com", ""):
        mails.append(await keep(store, content=b"x" * 50_000 + sender.encode(), envelope=Envelope(sender)))
    await store.close()
    [path] = files.segments_in(directory / "000")
    octets = path.read_bytes()
    for at in range(0, len(octets), schema.PAGE):
        if octets[at + 100 : at + 200] == b"x" * 100:
            flip(path, at + 150)
    report = saved(path)
    assert [line.partition(": ")[2] for line in report.lost] == [
        "its content is lost; it bounces, its sender is told",
        "its content is lost; it bounces, its sender is not told",
    ]
    assert audit(directory).clean
    store = await open_store()
    assert await store.owing(10) == [mails[0].message.id]
    history = await store.history(mails[0].message.id)
    assert history.recipients[0].state is State.BOUNCED
    assert "lost to a fault of the disk" in str(history.events[-1].detail["reply"])


async def test_only_what_was_set_aside_is_recovered_and_only_once(open_store: OpenStore, directory: Path) -> None:
    store = await open_store()
    await keep(store)
    await store.close()
    [path] = files.segments_in(directory / "000")
    with pytest.raises(StoreError, match="was not set aside"):
        salvage(path, NOW, notify=True)
    saved(path)
    assert path.with_name(path.name + files.RECOVERED).exists()
    aside = path.with_name(path.name + files.DAMAGED)
    aside.write_bytes(b"")
    with pytest.raises(StoreError, match="recovered before"):
        salvage(aside, NOW, notify=True)
    assert aside.exists()
