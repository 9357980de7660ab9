"""The audit is clean after honest work, and finds each way in which a spool could lie."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from relayd.core.event import EventKind
from relayd.core.ids import MessageId, format_id
from relayd.core.lifecycle import State
from relayd.spool import files
from relayd.spool.audit import audit
from relayd.spool.store import Notice
from relayd.spool.writes import LARGE
from tests.spool.conftest import OpenStore
from tests.spool.test_store import amendment, delivered, keep
from tests.support.mail import NOW, make_settlement, make_waiting


async def worked(open_store: OpenStore) -> tuple[MessageId, MessageId]:
    """A spool with every kind of standing: a delivered message and one that waits."""
    store = await open_store()
    done = await keep(store)
    await store.settle(make_settlement(done.message, done.recipients, State.DELIVERED))
    for state in (State.DEFERRED, State.UNCERTAIN, State.HELD, State.BOUNCED, State.EXPIRED, State.DELETED):
        mail = await keep(store)
        due = NOW if state in (State.DEFERRED, State.UNCERTAIN) else None
        notice = Notice.FAILURE if state is State.BOUNCED else None
        await store.settle(make_settlement(mail.message, mail.recipients, state, due=due, notice=notice))
    await keep(store, content=b"x" * (LARGE + 1))
    waiting = await keep(store, [make_waiting(0), make_waiting(1, state=State.HELD)])
    await store.close()
    return done.message.id, waiting.message.id


async def test_honest_work_is_clean_and_counted(open_store: OpenStore, directory: Path) -> None:
    await worked(open_store)
    report = audit(directory)
    assert report.clean, report.discrepancies
    assert (report.segments, report.messages, report.accepted, report.owed) == (1, 9, 10, 1)
    assert report.waiting == {State.QUEUED: 2, State.DEFERRED: 1, State.UNCERTAIN: 1, State.HELD: 2}
    assert report.final == {State.DELIVERED: 1, State.BOUNCED: 1, State.EXPIRED: 1, State.DELETED: 1}


async def test_a_daemon_at_work_is_audited_too(open_store: OpenStore, directory: Path) -> None:
    store = await open_store()
    await keep(store)
    report = audit(directory)
    assert report.clean
    assert report.waiting == {State.QUEUED: 1}


@pytest.mark.parametrize(
    ("lie", "problem"),
    [
        ("DELETE FROM event WHERE message = :waiting AND n = 0", "no `accepted` event"),
        ("DELETE FROM recipient WHERE message = :waiting AND n = 0", "recipient that is not there"),
        ("DELETE FROM recipient WHERE message = :waiting", "has no recipients"),
        ("DELETE FROM message WHERE id = :waiting", "belongs to no message"),
        ("DELETE FROM event WHERE message = :done AND kind = 'delivered'", "no event tells how it ended"),
        (
            "INSERT INTO event (message, n, at, kind) SELECT message, n, at, 'bounced' FROM event"
            " WHERE message = :done AND kind = 'delivered'",
            "more than one final outcome",
        ),
        ("UPDATE recipient SET state = 12 WHERE message = :done", "is expired, but its last event is `delivered`"),
        ("UPDATE recipient SET state = 10, due = NULL WHERE message = :waiting AND n = 0", "no event tells how"),
        ("UPDATE recipient SET state = 1, due = 5 WHERE message = :done", "has a final outcome, yet still waits"),
        ("UPDATE recipient SET state = 3, due = NULL WHERE state = 1", "is held, but its last event is `deferred`"),
        ("UPDATE recipient SET due = NULL WHERE message = :waiting", "no time is set"),
        ("UPDATE recipient SET due = 5 WHERE message = :done", "does not wait for one"),
        ("UPDATE recipient SET due = 5 WHERE message = :waiting AND n = 1", "does not wait for one"),
        ("UPDATE recipient SET state = 77 WHERE message = :waiting", "unknown state 77"),
        ("DELETE FROM body WHERE message = :waiting", "its content, which is not whole"),
        ("UPDATE body SET octets = x'00' WHERE message = :waiting", "its content, which is not whole"),
        ("DELETE FROM part WHERE part = 1", "its content, which is not whole"),
    ],
)
async def test_every_lie_is_found(open_store: OpenStore, directory: Path, lie: str, problem: str) -> None:
    done, waiting = await worked(open_store)
    [path] = files.segments_in(directory / "000")
    with closing(sqlite3.connect(path)) as db, db:
        values = {"done": done, "waiting": waiting}
        db.execute(lie, {name: value for name, value in values.items() if f":{name}" in lie})
    report = audit(directory)
    assert not report.clean
    assert any(problem in str(each) for each in report.discrepancies), [str(each) for each in report.discrepancies]
    if ":" in lie and "77" not in lie:
        assert any(format_id(each) in str(report.discrepancies[0]) for each in (done, waiting))


async def test_a_bounce_after_delivery_is_one_outcome_and_two_of_them_are_not(
    open_store: OpenStore, directory: Path
) -> None:
    store = await open_store()
    mail = await delivered(store)
    await store.amend(amendment(mail, State.DELIVERED, State.BOUNCED, EventKind.BOUNCED))
    await store.amend(amendment(mail, State.BOUNCED, State.BOUNCED, EventKind.COMPLAINED, key="complaint"))
    await store.close()
    report = audit(directory)
    assert report.clean, report.discrepancies
    assert report.final == {State.BOUNCED: 1}
    [path] = files.segments_in(directory / "000")
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(
            "INSERT INTO event (message, n, at, kind, detail)"
            " SELECT message, n, at, kind, detail FROM event WHERE kind = 'bounced'"
        )
        db.execute("DELETE FROM fact")
    problems = {each.problem for each in audit(directory).discrepancies}
    assert problems == {"came back after delivery more than once", "an event tells of a fact that is not kept"}


async def test_damage_is_reported_and_the_rest_audited(open_store: OpenStore, directory: Path) -> None:
    await worked(open_store)
    [path] = files.segments_in(directory / "000")
    path.rename(path.with_name(path.name + ".damaged"))
    path.with_name(files.name_of(NOW + 1)).write_bytes(os.urandom(5000))
    store = await open_store(1, 2)
    await keep(store)
    report = audit(directory)
    assert report.accepted == 1
    problems = [str(each) for each in report.discrepancies]
    assert len(problems) == report.discrepancy_count == 2
    assert "cannot be read" in problems[0]
    assert "set aside as damaged" in problems[1]
