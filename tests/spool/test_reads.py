"""Questions must not get slower with the backlog: each is held to the index that bounds it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from relayd.spool import reads, schema, search
from relayd.spool.codec import message_row, recipient_row
from relayd.spool.filter import QueueFilter
from tests.support.mail import NOW, make_message, make_waiting


@pytest.fixture
def db() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        db.executescript(schema.TABLES)
        for number in range(1, 9):
            db.execute(f"INSERT INTO message VALUES ({', '.join('?' * 10)})", message_row(make_message(number)))
            row = recipient_row(number, make_waiting(due=NOW + number), 0)
            db.execute(f"INSERT INTO recipient VALUES ({', '.join('?' * 12)})", row)
        yield db


def plans(db: sqlite3.Connection, question: Callable[[], object]) -> list[str]:
    """How SQLite answers each statement of a question."""
    statements: list[str] = []
    db.set_trace_callback(statements.append)
    question()
    db.set_trace_callback(None)
    return [
        row[3]
        for statement in statements
        if statement.startswith("SELECT")
        for row in db.execute(f"EXPLAIN QUERY PLAN {statement}")
    ]


@pytest.mark.parametrize(
    ("question", "steps"),
    [
        (
            lambda db: reads.due_heads(db, ("acme", 0), NOW, (-1, -1), 9),
            [
                "SEARCH recipient USING COVERING INDEX recipient_due"
                " (lane=? AND priority=? AND (due,message)>(?,?) AND due<?)"
            ],
        ),
        (
            lambda db: reads.next_due(db, "acme", 0, NOW),
            ["SEARCH recipient USING COVERING INDEX recipient_due (lane=? AND priority=? AND due>?)"],
        ),
        (
            lambda db: reads.due_deliveries(db, "acme", NOW, [1, 2]),
            [
                "SEARCH recipient USING PRIMARY KEY (message=?)",
                "SEARCH message USING INTEGER PRIMARY KEY (rowid=?)",
            ],
        ),
        (
            lambda db: reads.messages_with(db, reads.UNDELAYED, 1, 5, 9),
            ["SEARCH recipient USING PRIMARY KEY (message>? AND message<?)"],
        ),
        (
            lambda db: reads.messages_with(db, reads.WAITING, 1, 5, 9),
            ["SEARCH recipient USING PRIMARY KEY (message>? AND message<?)"],
        ),
        (lambda db: reads.owing(db, 9), ["SCAN recipient USING INDEX recipient_owed"]),
        (
            lambda db: search.matching(db, QueueFilter(sender="shop@*", upstream="acme"), 0, 9),
            [
                "SEARCH r USING PRIMARY KEY (message>? AND message<?)",
                "SEARCH m USING INTEGER PRIMARY KEY (rowid=?)",
            ],
        ),
    ],
)
def test_no_question_walks_the_whole_backlog(
    db: sqlite3.Connection, question: Callable[[sqlite3.Connection], object], steps: list[str]
) -> None:
    assert plans(db, lambda: question(db)) == steps
