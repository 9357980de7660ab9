"""What SQLite and the disk report, as the errors of the store."""

from __future__ import annotations

import errno
import sqlite3

from relayd.spool.store import StoreError, StoreFullError

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def primary_code(error: BaseException) -> int:
    """SQLite's primary result code, 0 where there is none."""
    return int(getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF


def is_damage(error: BaseException) -> bool:
    """The file itself is broken."""
    return isinstance(error, sqlite3.DatabaseError) and primary_code(error) in _DAMAGED


def store_error(error: Exception) -> StoreError:
    """The store's word for an error of SQLite or of the file system."""
    if isinstance(error, StoreError):
        return error
    if primary_code(error) == sqlite3.SQLITE_FULL or (isinstance(error, OSError) and error.errno in _NO_ROOM):
        return StoreFullError(f"no room left for the spool: {error}")
    return StoreError(f"the spool failed: {error}")
