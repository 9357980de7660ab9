"""The parts of scripts/bench: load generator, sink, relays, and what measures them. Not part of the daemon."""

from __future__ import annotations
