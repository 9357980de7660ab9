"""HTTP: health, metrics, and what tracking hosts show the world."""

from __future__ import annotations
