"""What intake tells whoever counts: refusals by reason, logins by result. Metrics implement it.

The reasons are closed sets of short words, fit for metric labels; what a listener sees is listener/observer.py's.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol


class Refusal(StrEnum):
    """Why a client was refused."""

    DRAINING = "draining"
    GUESSING = "guessing"
    ACCESS = "access"
    AUTH_REQUIRED = "auth-required"
    TLS_REQUIRED = "tls-required"
    DISK = "disk"
    MEMORY = "memory"
    SIZE = "size"
    SENDER_SYNTAX = "sender-syntax"
    SENDER_DENIED = "sender-denied"
    UNVERIFIED = "unverified-domain"
    RATE = "rate"
    RECIPIENTS = "recipients"
    RECIPIENT_SYNTAX = "recipient-syntax"
    UNKNOWN_RECIPIENT = "unknown-recipient"
    """An inbound listener takes mail for addresses of our own only."""
    FORGED = "forged"
    """A return path that we did not sign, or that has expired."""
    LOOP = "loop"
    NO_ROUTE = "no-route"
    SPOOL = "spool"
    """The spool failed to keep the message."""
    INTERNAL = "internal"
    """A fault of ours, told in the log."""


class AuthFailure(StrEnum):
    """Why a login failed."""

    PASSWORD = "password"  # noqa: S105 - a reason, not a secret
    """Wrong password, or no such user: not told apart."""
    GUESSING = "guessing"
    """The address or its network has failed too often."""
    BUSY = "busy"
    """Too many logins wait to be verified."""


class IntakeObserver(Protocol):
    """Called on the event loop, on the hot path: must be quick and must not raise."""

    def refused(self, reason: Refusal, listener: str) -> None:
        """A connection, command or message was refused by admission or at the spool."""

    def auth_failed(self, reason: AuthFailure, listener: str) -> None:
        """A login failed."""

    def auth_succeeded(self, listener: str) -> None:
        """A login succeeded."""
