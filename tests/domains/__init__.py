"""Sender domains, tracking domains and sender accounts."""

from __future__ import annotations
