"""The tables of state.db, version by version. What stands in them is said where they are read and written."""

from __future__ import annotations

SCRIPTS = (
    """
    CREATE TABLE rate_use (id INTEGER PRIMARY KEY, username TEXT NOT NULL, at INTEGER NOT NULL, count INTEGER NOT NULL,
        grain INTEGER);
    CREATE INDEX rate_use_username ON rate_use (username, at);
    CREATE TABLE network (name TEXT PRIMARY KEY, url TEXT NOT NULL, fetched_at INTEGER, next_try INTEGER NOT NULL,
        failures INTEGER NOT NULL, addresses TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE guess (id INTEGER PRIMARY KEY AUTOINCREMENT, peer TEXT NOT NULL, at INTEGER NOT NULL,
        owner TEXT NOT NULL);
    CREATE INDEX guess_at ON guess (at);
    CREATE TABLE lease (name TEXT PRIMARY KEY, owner TEXT NOT NULL, until INTEGER NOT NULL) WITHOUT ROWID;
    """,
    # sender domains, tracking domains, sender accounts: domains.py
    """
    CREATE TABLE domain (name TEXT PRIMARY KEY, facts TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE domain_key (domain TEXT NOT NULL, selector TEXT NOT NULL, algorithm TEXT NOT NULL, state TEXT NOT NULL,
        public BLOB NOT NULL, private BLOB NOT NULL, created_at INTEGER NOT NULL, seen_at INTEGER, retire_at INTEGER,
        PRIMARY KEY (domain, selector)) WITHOUT ROWID;
    CREATE TABLE tracking_domain (name TEXT PRIMARY KEY, facts TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE sender_account (id TEXT PRIMARY KEY, address TEXT NOT NULL, added_at INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE domain_event (id INTEGER PRIMARY KEY AUTOINCREMENT, domain TEXT NOT NULL, at INTEGER NOT NULL,
        kind TEXT NOT NULL, detail TEXT NOT NULL);
    CREATE INDEX domain_event_domain ON domain_event (domain, id);
    CREATE TABLE domain_mark (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
    INSERT INTO domain_mark VALUES ('generation', 0), ('told', 0)
    """,
    # blocks and what counts towards them (blocklist.py); lifted blocks stay as history
    """
    CREATE TABLE block (id INTEGER PRIMARY KEY AUTOINCREMENT, target TEXT NOT NULL, scope TEXT NOT NULL,
        class TEXT NOT NULL, reason TEXT NOT NULL, by TEXT NOT NULL, since INTEGER NOT NULL, until INTEGER,
        message INTEGER, stopped INTEGER NOT NULL, last_stopped INTEGER, ended INTEGER, ended_by TEXT,
        changed INTEGER NOT NULL);
    CREATE UNIQUE INDEX block_target ON block (target, scope) WHERE ended IS NULL;
    CREATE INDEX block_until ON block (until) WHERE ended IS NULL AND until IS NOT NULL;
    CREATE INDEX block_history ON block (target);
    CREATE INDEX block_changed ON block (changed);
    CREATE TABLE strike (target TEXT NOT NULL, scope TEXT NOT NULL, class TEXT NOT NULL, message INTEGER NOT NULL,
        at INTEGER NOT NULL, PRIMARY KEY (target, scope, class, message)) WITHOUT ROWID;
    CREATE INDEX strike_at ON strike (at)
    """,
    # how far mailboxes of bounces are read: inbound/mailboxes.py
    """
    CREATE TABLE mailbox (name TEXT PRIMARY KEY, uidvalidity INTEGER NOT NULL, uid INTEGER NOT NULL) WITHOUT ROWID
    """,
    # OAuth2 tokens, encrypted: tokens.py
    """
    CREATE TABLE oauth_token (upstream TEXT NOT NULL, account TEXT NOT NULL, facts BLOB NOT NULL,
        PRIMARY KEY (upstream, account)) WITHOUT ROWID
    """,
    # figures of finished segments: ledger.py
    """
    CREATE TABLE figure (segment TEXT NOT NULL, day INTEGER NOT NULL, domain TEXT NOT NULL, upstream TEXT NOT NULL,
        state TEXT NOT NULL, class TEXT NOT NULL, recipients INTEGER NOT NULL,
        PRIMARY KEY (segment, day, domain, upstream, state, class)) WITHOUT ROWID;
    CREATE INDEX figure_day ON figure (day);
    CREATE TABLE counted (segment TEXT PRIMARY KEY, event INTEGER NOT NULL, last_day INTEGER NOT NULL) WITHOUT ROWID
    """,
    # up to which event failures were judged: blocklist.py
    """
    CREATE TABLE judged (segment TEXT PRIMARY KEY, event INTEGER NOT NULL, at INTEGER NOT NULL) WITHOUT ROWID
    """,
    # upstreams that must not be used, and what has happened to them: standings.py
    """
    CREATE TABLE upstream_pause (lane TEXT PRIMARY KEY, since INTEGER NOT NULL, until INTEGER NOT NULL,
        troubles INTEGER NOT NULL, reason TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE upstream_suspension (lane TEXT PRIMARY KEY, kind TEXT NOT NULL, since INTEGER NOT NULL, until INTEGER,
        reason TEXT NOT NULL, by TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE upstream_pardon (lane TEXT NOT NULL, key TEXT NOT NULL, until INTEGER NOT NULL,
        PRIMARY KEY (lane, key)) WITHOUT ROWID;
    CREATE TABLE upstream_event (id INTEGER PRIMARY KEY AUTOINCREMENT, lane TEXT NOT NULL, at INTEGER NOT NULL,
        kind TEXT NOT NULL, detail TEXT NOT NULL);
    CREATE INDEX upstream_event_lane ON upstream_event (lane, id)
    """,
    # what was used of the budgets of upstreams and accounts: budgets.py
    """
    CREATE TABLE budget (name TEXT NOT NULL, kind TEXT NOT NULL, usage TEXT NOT NULL, PRIMARY KEY (name, kind))
    """,
    # certificates of tracking hosts, keys encrypted: certificates.py
    """
    CREATE TABLE certificate (host TEXT PRIMARY KEY, facts TEXT NOT NULL, private BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE ca_account (directory TEXT PRIMARY KEY, facts TEXT NOT NULL, private BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE challenge (token TEXT PRIMARY KEY, answer TEXT NOT NULL, until INTEGER NOT NULL) WITHOUT ROWID
    """,
    # return paths of sender domains that were removed: what left with them may still come back (domains.py)
    """
    CREATE TABLE former_return_path (domain TEXT PRIMARY KEY, removed_at INTEGER NOT NULL) WITHOUT ROWID
    """,
)
"""One script per version; user_version says how many have run. Only ever append."""
VERSION = len(SCRIPTS)
"""`PRAGMA user_version`: a greater one is refused."""
