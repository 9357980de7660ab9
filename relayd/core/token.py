"""Signed return paths: an address that names message and recipient, so that any bounce to it needs no parsing.

Pure: the key and the time are given. Who puts them into envelopes is delivery's, who takes mail for them intake's.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

from relayd.core.ids import EPOCH, MessageId
from relayd.core.units import Millis

DAY: Millis = 86_400_000
LOCAL_PREFIX = "b+"
MAX_N = 2**32 - 1

_MAC = 10
"""Octets of the signature: 2^80 guesses, each of which costs a RCPT."""
_FIXED = 8 + 2
_FORM = re.compile(r"[a-z2-7]{34,39}")
_FOUND = re.compile(re.escape(LOCAL_PREFIX.encode()) + rb"([a-z2-7]{34,39})@([a-z0-9.-]{1,253})", re.IGNORECASE)
"""What may be an address of ours in the octets of a mail."""
_OTHERS = 50
"""For each address that is looked at, so many may be passed over: those of other domains cost less."""
_FOLD = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")
_ROLES = frozenset({"postmaster", "abuse"})
"""Mailboxes that every domain with an MX has (RFC 5321 4.5.1, RFC 2142 4)."""


def derive_key(secret: bytes, purpose: str) -> bytes:
    """The key for one purpose: what is signed for one can never be shown for another."""
    return hmac.digest(secret, b"relayd key: " + purpose.encode(), hashlib.sha256)


@dataclass(frozen=True, slots=True)
class Token:
    """What a signed return path says."""

    message: MessageId
    n: int
    """The recipient's place in the message."""


def issue(key: bytes, token: Token, expires: Millis) -> str:
    """The token in small letters and digits, 34 to 39 of them. It holds to the end of the day of `expires`.

    Raises ValueError for numbers that no message and recipient have.
    """
    day = (expires - EPOCH) // DAY
    if not (0 <= token.message < 1 << 63 and 0 <= token.n <= MAX_N and 0 <= day < 1 << 16):
        raise ValueError(f"no token for recipient {token.n} of {token.message} until {expires}")
    octets = _pack(token, day)
    return _text(octets + _sign(key, octets))


def verify(key: bytes, text: str, now: Millis) -> Token | None:
    """What the token says; None where it is forged, damaged or expired. Upper case is taken too: some systems fold."""
    folded = text.translate(_FOLD)
    if _FORM.fullmatch(folded) is None:
        return None
    try:
        octets = base64.b32decode(folded.upper() + "=" * (-len(folded) % 8))
    except binascii.Error:
        return None
    signed, mac = octets[:-_MAC], octets[-_MAC:]
    # the bits that the last letter has to spare must be those that we wrote: one token, one text
    if not hmac.compare_digest(_sign(key, signed), mac) or _text(octets) != folded:
        return None
    token = Token(int.from_bytes(signed[:8], "big"), int.from_bytes(signed[_FIXED:], "big"))
    day = int.from_bytes(signed[8:_FIXED], "big")
    return token if (now - EPOCH) // DAY <= day else None


def _pack(token: Token, day: int) -> bytes:
    place = token.n.to_bytes(max(1, (token.n.bit_length() + 7) // 8), "big")
    return token.message.to_bytes(8, "big") + day.to_bytes(2, "big") + place


def _text(octets: bytes) -> str:
    return base64.b32encode(octets).decode().rstrip("=").lower()


def _sign(key: bytes, octets: bytes) -> bytes:
    return hmac.digest(key, octets, hashlib.sha256)[:_MAC]


def _nowhere(domain: str) -> bool:
    del domain
    return False


class ReturnPaths:
    """The addresses that we issue, and those that every domain has.

    One domain (A-labels, lower case) is ours always; `also` says which others are at the moment: it is asked for each
    address, and must be quick. A token is good at each of them, wherever it was issued.
    """

    __slots__ = ("_also", "_key", "_verify_for", "domain")

    def __init__(self, domain: str, secret: bytes, verify_for: Millis, also: Callable[[str], bool] = _nowhere) -> None:
        self.domain = domain.lower()
        self._key = derive_key(secret, "return path")
        self._verify_for = verify_for
        self._also = also

    def address(self, message: MessageId, n: int, now: Millis, domain: str | None = None) -> str:
        """The return path of one recipient, good for `verify_for` from now, at this domain of ours."""
        token = issue(self._key, Token(message, n), now + self._verify_for)
        return f"{LOCAL_PREFIX}{token}@{domain or self.domain}"

    def ours(self, domain: str) -> bool:
        """Return paths are issued, or were, at this domain."""
        domain = domain.lower()
        return domain == self.domain or self._also(domain)

    def read(self, address: str, now: Millis) -> Token | None:
        """What an address of ours says; None for any other, forged and expired ones too."""
        if not self.looks_issued(address):
            return None
        return verify(self._key, address.rpartition("@")[0][len(LOCAL_PREFIX) :], now)

    def find(self, content: bytes, now: Millis, limit: int = 20) -> Token | None:
        """The first address of ours in a mail's octets that is neither forged nor expired; `limit` are looked at."""
        count = 0
        for match in islice(_FOUND.finditer(content), limit * _OTHERS):
            if not self.ours(match[2].decode().rstrip(".")):
                continue
            if count == limit:
                break
            count += 1
            if (token := verify(self._key, match[1].decode(), now)) is not None:
                return token
        return None

    def is_role(self, address: str) -> bool:
        """postmaster or abuse at a domain of ours, or postmaster without any (RFC 5321 4.5.1)."""
        local, at, domain = address.rpartition("@")
        if not at:
            return address.lower() == "postmaster"
        return local.lower() in _ROLES and self.ours(domain)

    def looks_issued(self, address: str) -> bool:
        """It has the form of an address of ours, whatever its signature says."""
        local, _, domain = address.rpartition("@")
        return local[: len(LOCAL_PREFIX)].lower() == LOCAL_PREFIX and self.ours(domain)
