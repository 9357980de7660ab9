"""What comes back: taken in, matched, handed on, filed."""

from __future__ import annotations
