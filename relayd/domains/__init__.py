"""Sender domains, tracking domains, sender accounts: keys, the records DNS must hold, and whether it does."""

from __future__ import annotations
