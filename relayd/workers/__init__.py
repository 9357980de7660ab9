"""The processes of the daemon: one alone, or a supervisor and its workers. What a worker does is app.py's."""

from __future__ import annotations
