"""The processes of the daemon: one alone, or a supervisor and its workers. What a worker does is app.py's."""

from __future__ import annotations

from pathlib import Path


def serve(config_path: Path, *, greet: bool = False) -> int:
    """Run the daemon in the foreground; the exit status. Raises ConfigError when the file is faulty.

    `greet`: say where it listens and how to send a first mail even where the log is no terminal.
    """
    from relayd.workers.daemon import serve as run  # noqa: PLC0415 - workers need not load what only the daemon uses

    return run(config_path, greet=greet)
