"""inbound.db: mail that came back and is no report about a mail of ours, kept for people to read (`relayd inbound`).

The file's form is spool/keepsake.py's.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path

from relayd.core.session import Outgoing
from relayd.core.units import Millis
from relayd.spool.keepsake import Keepsakes

MAX_MAILS = 100_000
MAX_OCTETS = 4 * 1024**3
"""The oldest go when there are more."""


class FilingError(Exception):
    """The mail could not be filed now; it waits in the spool."""


class Filing:
    """The cabinet of one worker; all workers share the file."""

    def __init__(self, path: Path, clock: Callable[[], Millis]) -> None:
        self._keepsakes = Keepsakes(path, max_mails=MAX_MAILS, max_octets=MAX_OCTETS, durable=True)
        self._clock = clock
        self._opened = False
        self._lock = asyncio.Lock()

    async def file(self, mail: Outgoing) -> None:
        """Keep the mail. It is on disk when this returns; a mail that is filed already stays filed once.

        Raises FilingError.
        """
        try:
            async with self._lock:
                if not self._opened:
                    await self._keepsakes.open()
                    self._opened = True
            recipients = [recipient.address for recipient in mail.recipients]
            await self._keepsakes.keep(mail, recipients, self._clock())
        except (sqlite3.Error, OSError) as error:
            raise FilingError(f"inbound.db cannot be written: {error}") from error

    async def close(self) -> None:
        """Close the file. Never raises."""
        if self._opened:
            self._opened = False
            with contextlib.suppress(sqlite3.Error):
                await self._keepsakes.close()
