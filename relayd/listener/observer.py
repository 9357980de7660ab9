"""What listeners tell the metrics: connections, TLS versions, and everything they refuse by themselves.

What admission refuses is told by intake. Counting is events/observers.py's.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol


class ListenerRefusal(StrEnum):
    """Why a listener refused or ended something: one label value per limit, so that every limit has a metric."""

    CONNECTIONS = "connections"
    CONNECTIONS_PER_IP = "connections-per-ip"
    DISPLACED = "displaced"
    """A stranger that made room for another client at `limits.connections`."""
    DRAINING = "draining"
    IDLE = "idle"
    DATA_IDLE = "data-idle"
    MIN_RATE = "min-rate"
    SESSION = "session"
    COMMANDS = "commands"
    ERRORS = "errors"
    COMMAND_LINE = "command-line"
    COMMAND = "command"
    """A command that is unknown, malformed or out of order."""
    EARLY_TALKER = "early-talker"
    """Input before the greeting, or commands sent before the reply they had to wait for."""
    PROTOCOL = "protocol"
    """HTTP, TLS or something else that is not SMTP."""
    PROXY = "proxy"
    TLS = "tls"
    """A TLS handshake that failed."""
    MESSAGE_SIZE = "message-size"
    LINE_LENGTH = "line-length"
    BARE_NEWLINE = "bare-newline"
    MEMORY = "memory"
    UNREAD_REPLIES = "unread-replies"
    INTERNAL = "internal"
    """A fault of ours (451 or 421 4.3.0)."""


class ListenerObserver(Protocol):
    """Told at once, on the event loop: methods must be quick and must not raise. `listener` is a configured name."""

    def connected(self, listener: str) -> None:
        """A connection was taken in (one that a cap refused is told by `refused` only)."""

    def disconnected(self, listener: str) -> None:
        """It is gone. Follows every `connected`."""

    def tls(self, listener: str, version: str) -> None:
        """A handshake succeeded; version like "TLSv1.3"."""

    def refused(self, listener: str, reason: ListenerRefusal) -> None:
        """A command, message or connection was refused by the listener itself."""

    def long_lines(self, listener: str, count: int) -> None:
        """A message was taken with so many lines over `limits.line_length`."""
