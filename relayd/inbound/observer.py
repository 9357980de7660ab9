"""What the reading of returned mail tells whoever counts. events/observers.py implements it."""

from __future__ import annotations

from typing import Protocol

from relayd.core.feedback import Applied, FeedbackKind


class InboundObserver(Protocol):
    """Called on the loop: must be quick and never raise."""

    def read(self, kind: str) -> None:
        """A mail that came back was read to its end; `kind` as in core/bounce/verdict.py."""

    def fact(self, kind: FeedbackKind, applied: Applied) -> None:
        """A fact about one of our recipients was handed to the worker that has its message."""

    def unmatched(self, kind: str) -> None:
        """A report names no mail that we have."""

    def filed(self) -> None:
        """A mail that is no report about a mail of ours was filed for people to read."""

    def fetched(self, mailbox: str) -> None:
        """A mail was fetched from a mailbox and kept."""

    def mailbox_failed(self, mailbox: str) -> None:
        """A mailbox could not be read; it is tried again."""
