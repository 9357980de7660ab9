"""What intake asks about sender domains and sender accounts. domains/book.py answers; app.py brings them together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Vouching(Protocol):
    """Asked on the hot path: must be quick and must not raise."""

    def unvouched(self, from_domain: str) -> bool:
        """Mail From this domain (A-labels, lower case; "" for none) is to be refused."""

    def may_use(self, sender: str, accounts: Sequence[str]) -> bool:
        """This envelope sender is the address of one of these sender accounts."""


class AnyDomain:
    """Where nothing is known of domains: all may send, accounts have no addresses."""

    def unvouched(self, from_domain: str) -> bool:
        """See Vouching."""
        del from_domain
        return False

    def may_use(self, sender: str, accounts: Sequence[str]) -> bool:
        """See Vouching."""
        del sender, accounts
        return False
