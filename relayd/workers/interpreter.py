"""How a process of ours starts another one: by the same Python, and with the same relayd."""

from __future__ import annotations

import contextlib
import os
import sys


def command(role: str, *rest: str) -> tuple[str, ...]:
    """The command line of one of the roles in `__main__.py`.

    `-m` alone would look into the working directory first, and run whatever lies there under the name of a library:
    that is wanted only where we came from there ourselves.
    """
    safe = () if _from_working_directory() else ("-P",)
    return (sys.executable, *safe, "-m", "relayd.workers", role, *rest)


def _from_working_directory() -> bool:
    first = sys.path[0] if sys.path else None
    with contextlib.suppress(OSError):  # it was removed
        return first in {"", os.getcwd()}  # noqa: PTH109 - compared as Python writes it there
    return first == ""
