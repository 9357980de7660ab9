"""How a worker is, as the health pages tell it. Who decides is app.py."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Health:
    """How the worker is: alive while its loop answers, ready while `reasons` (not to send it mail) is empty."""

    alive: bool = True
    reasons: tuple[str, ...] = ()
