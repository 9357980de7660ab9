"""What delivery tells whoever measures it. events/observers.py implements this; tests use a list."""

from __future__ import annotations

from typing import Protocol


class DeliveryObserver(Protocol):
    """Called on the loop, on the hot path: must be quick and never raise."""

    def attempt(self, upstream: str, seconds: float) -> None:
        """One transaction took that long, from taking the message to the decision."""

    def connections(self, upstream: str, change: int) -> None:
        """A connection to the upstream was opened (+1) or closed (-1)."""

    def connect_failed(self, upstream: str, cls: str) -> None:
        """A connection did not come about; `cls` is the class of the outcome."""

    def paused(self, upstream: str, paused: bool) -> None:
        """The upstream's trouble began or ended."""

    def suspended(self, upstream: str, suspended: bool) -> None:
        """An operator, or the storm guard, suspended the upstream (or one of its accounts), or lets it go on."""

    def upstream_event(self, upstream: str, event: str) -> None:
        """Something happened to an upstream: paused, resumed, suspended or storm. Told by one worker only."""

    def report(self, kind: str) -> None:
        """A report to a sender was made: failure, delay or success; or "unroutable" when no route took it."""
