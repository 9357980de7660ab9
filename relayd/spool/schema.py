"""The tables of a segment, their version, and the settings of every connection to one.

Rows ⇄ values is codec.py's; where the files lie is files.py's.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import TypeVar

from relayd.core.event import EventKind
from relayd.core.lifecycle import State

_Value = TypeVar("_Value")

VERSION = 3
"""`PRAGMA user_version` of a segment. A greater one is refused: an older program never touches newer files."""
OPEN = 0x724C7944
"""`PRAGMA application_id` in the file itself while commits may lie in its WAL, 0 otherwise: a WAL that is missing then
was not removed by us (an older program, which knows no such mark, would remove it: hence version 3)."""

STATE_CODE = {
    State.QUEUED: 0,
    State.DEFERRED: 1,
    State.UNCERTAIN: 2,
    State.HELD: 3,
    State.DELIVERED: 10,
    State.BOUNCED: 11,
    State.EXPIRED: 12,
    State.SUPPRESSED: 13,
    State.DELETED: 14,
}
"""Numbers on disk: below 3 waits to be tried, below 10 is not final."""
STATE_OF = {code: state for state, code in STATE_CODE.items()}

FINAL_EVENT = {
    EventKind.DELIVERED: State.DELIVERED,
    EventKind.BOUNCED: State.BOUNCED,
    EventKind.EXPIRED: State.EXPIRED,
    EventKind.SUPPRESSED: State.SUPPRESSED,
    EventKind.DELETED: State.DELETED,
}
"""The event that each final state comes with, exactly once."""
FROM_FACT = "source"
"""Detail of an event that tells of a fact which came back: what kind of mail told it."""

TABLES = """
CREATE TABLE message (
    id INTEGER PRIMARY KEY,
    accepted INTEGER NOT NULL,
    size INTEGER NOT NULL,
    sender TEXT NOT NULL,
    from_domain TEXT NOT NULL,
    message_id TEXT NOT NULL,
    subject TEXT NOT NULL,
    campaign TEXT,
    credential TEXT,
    facts TEXT NOT NULL            -- JSON: what nobody searches by
);
-- Bodies lie apart so that scans of the other tables never walk over them.
CREATE TABLE body (
    message INTEGER PRIMARY KEY,
    octets BLOB NOT NULL,
    crc INTEGER                    -- CRC-32 of octets: SQLite itself would not notice a flipped bit
);
-- Parts of a large body. They are written over several commits so that others need not wait for all of it;
-- they count for nothing until the row in message is there.
CREATE TABLE part (
    message INTEGER NOT NULL,
    part INTEGER NOT NULL,
    octets BLOB NOT NULL,
    crc INTEGER,
    UNIQUE (message, part)
);
CREATE TABLE recipient (
    message INTEGER NOT NULL,
    n INTEGER NOT NULL,
    address TEXT NOT NULL,
    notify TEXT,
    orcpt TEXT,
    lane TEXT NOT NULL,
    state INTEGER NOT NULL,        -- 0 queued 1 deferred 2 uncertain 3 held, 10 delivered 11 bounced 12 expired ...
    attempts INTEGER NOT NULL,
    due INTEGER,
    delayed INTEGER NOT NULL,
    notice TEXT,
    priority INTEGER NOT NULL DEFAULT 0,  -- 1 high 0 normal -1 bulk
    PRIMARY KEY (message, n)
) WITHOUT ROWID;
CREATE INDEX recipient_due ON recipient (lane, priority, due, message, n) WHERE due IS NOT NULL;
CREATE INDEX recipient_parked ON recipient (message, n) WHERE due IS NULL AND state < 10;
CREATE INDEX recipient_owed ON recipient (message, n) WHERE notice IS NOT NULL;
CREATE TABLE attempt (
    id INTEGER PRIMARY KEY,
    message INTEGER NOT NULL,
    at INTEGER NOT NULL,
    took INTEGER NOT NULL,
    upstream TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    tls TEXT,
    stage TEXT NOT NULL,
    reply TEXT NOT NULL,
    transcript TEXT,
    recipients TEXT NOT NULL       -- JSON list of n
);
CREATE INDEX attempt_message ON attempt (message);
-- In the order of commits: who reads the stream remembers the last id.
CREATE TABLE event (
    id INTEGER PRIMARY KEY,
    message INTEGER NOT NULL,
    n INTEGER NOT NULL,
    at INTEGER NOT NULL,
    kind TEXT NOT NULL,
    detail TEXT                    -- JSON
);
CREATE INDEX event_message ON event (message);
-- What came back about mail that had left. Each fact counts once, however often it is told.
CREATE TABLE fact (
    message INTEGER NOT NULL,
    n INTEGER NOT NULL,
    key TEXT NOT NULL,
    at INTEGER NOT NULL,
    PRIMARY KEY (message, n, key)
) WITHOUT ROWID;
"""

MIGRATIONS = {
    1: (
        "ALTER TABLE recipient ADD COLUMN priority INTEGER NOT NULL DEFAULT 0",
        "DROP INDEX recipient_due",
        "CREATE INDEX recipient_due ON recipient (lane, priority, due, message, n) WHERE due IS NOT NULL",
    ),
    2: ("ALTER TABLE body ADD COLUMN crc INTEGER", "ALTER TABLE part ADD COLUMN crc INTEGER"),
}
"""What makes the next version of a segment of this one. Columns are only ever added, at the end, with a default."""

PAGE = 4096
CHECKPOINT_PAGES = 4000
"""16 MiB of WAL, after which it is copied into the file: rarer than SQLite's 4 MiB, so hot pages are copied less."""


def connect(path: Path, *, create: bool = False) -> sqlite3.Connection:
    """A connection that may write. Transactions are begun by hand. Raises sqlite3.Error."""
    # For a value that is no number and no text Python looks for one who adapts it, by attributes that fail to be found;
    # told that these are fine as they are, it binds them in half the time.
    for kind in (type(None), bytes):
        sqlite3.register_adapter(kind, _as_it_is)
    mode = "rwc" if create else "rw"
    db = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None, timeout=10, cached_statements=256
    )
    try:
        for pragma in (
            f"page_size = {PAGE}",
            "auto_vacuum = NONE",  # freed pages are used again; ended files are compacted whole
            "synchronous = FULL",  # a commit is on disk when it returns: kept before promised
            # segment.py checkpoints beside the commits; this is for when it cannot keep up
            f"wal_autocheckpoint = {8 * CHECKPOINT_PAGES}",
            f"journal_size_limit = {4 * CHECKPOINT_PAGES * PAGE}",
            "cache_size = -2048",
            "secure_delete = FAST",  # Debian builds with ON, which reads every freed page just to blank it
            "temp_store = MEMORY",
        ):
            db.execute(f"PRAGMA {pragma}")
    except sqlite3.Error:
        db.close()
        raise
    return db


def _as_it_is(value: _Value) -> _Value:
    return value


def migrate(db: sqlite3.Connection) -> int:
    """Bring a segment of an older version up to date, whole or not at all; the version it has then."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version not in MIGRATIONS:
        return int(version)
    db.execute("BEGIN IMMEDIATE")
    try:
        while version in MIGRATIONS:
            for statement in MIGRATIONS[version]:
                db.execute(statement)
            version += 1
        db.execute(f"PRAGMA user_version = {version}")
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")
    return int(version)


def create_tables(db: sqlite3.Connection) -> None:
    """Make an empty segment."""
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("BEGIN IMMEDIATE")
    for statement in TABLES.split(";"):
        if statement.strip():
            db.execute(statement)
    db.execute(f"PRAGMA user_version = {VERSION}")
    db.execute("COMMIT")
