"""Readers of the event stream: the mail log and the metrics."""

from __future__ import annotations
