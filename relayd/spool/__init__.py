"""The spool: what was accepted, where each recipient stands, and what happened. Engines behind one interface."""

from __future__ import annotations
