"""Message identifiers: a 63-bit number that carries time, worker slot and sequence, written as 13 letters.

The number is the SQLite row id (so mail is written in key order) and names the segment that holds it: any
process finds a message's file from its id alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from relayd.core.units import Millis

MessageId = int

EPOCH: Millis = 1_704_067_200_000
"""2024-01-01T00:00:00Z, so that 41 bits of milliseconds last until 2093."""

MAX_SLOT = 1023
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no i, l, o, u to misread
_PAIRS = tuple(first + second for first in _ALPHABET for second in _ALPHABET)
_VALUE = {letter: value for value, letter in enumerate(_ALPHABET)}
_TEXT = re.compile(r"[0-9a-hjkmnp-tv-z]{13}")


@dataclass(slots=True)
class IdMint:
    """Makes ids for one worker slot, strictly increasing even where the clock stands still or steps back."""

    slot: int
    _last: int = 0
    _sequence: int = 0

    def next(self, now: Millis) -> MessageId:
        """The next id; `now` is the clock's reading."""
        tick = now - EPOCH
        if tick > self._last:
            self._last, self._sequence = tick, 0
        else:
            self._sequence += 1
            if self._sequence > 0xFFF:
                # 4,096 ids within one millisecond: borrow the next one rather than wait
                self._last, self._sequence = self._last + 1, 0
        return (self._last << 22) | (self.slot << 12) | self._sequence

    def after(self, message: MessageId) -> None:
        """Never mint at or below this id again (what is on disk when a worker starts)."""
        if message >> 22 >= self._last:
            self._last, self._sequence = (message >> 22) + 1, -1


def time_of(message: MessageId) -> Millis:
    """When the message was accepted, in milliseconds since the Unix epoch."""
    return (message >> 22) + EPOCH


def slot_of(message: MessageId) -> int:
    """Which worker slot accepted the message."""
    return (message >> 12) & MAX_SLOT


def place_of(message: MessageId) -> tuple[int, Millis]:
    """Slot and time at once."""
    return (message >> 12) & MAX_SLOT, (message >> 22) + EPOCH


@lru_cache(maxsize=512)
def format_id(message: MessageId) -> str:
    """The 13 letters that logs, commands and Received headers show."""
    # each mail asks for it several times, within a moment
    return (
        f"{_ALPHABET[message >> 60 & 31]}{_PAIRS[message >> 50 & 1023]}{_PAIRS[message >> 40 & 1023]}"
        f"{_PAIRS[message >> 30 & 1023]}{_PAIRS[message >> 20 & 1023]}{_PAIRS[message >> 10 & 1023]}"
        f"{_PAIRS[message & 1023]}"
    )


def parse_id(text: str) -> MessageId:
    """The id that `format_id` wrote; upper case is taken too. Raises ValueError."""
    lower = text.strip().lower()
    if not _TEXT.fullmatch(lower):
        raise ValueError(f"{text!r} is not a message id: 13 letters and digits, as the mail log shows them")
    number = 0
    for letter in lower:
        number = number << 5 | _VALUE[letter]
    if number >> 63:
        raise ValueError(f"{text!r} is not a message id: the first letter is 7 at most")
    return number
