"""Changes a relayd process before it runs: ends it at a named step by SIGKILL, shortens its waits. Tests only.

The product has no hook for this: functions of running modules are wrapped from outside, in a process that forking.py
has made.
"""

from __future__ import annotations

import importlib
from typing import Any


def install(plan: dict[str, Any]) -> None:
    """`plan["constants"]`: "module:NAME" → value."""
    for place, value in (plan.get("constants") or {}).items():
        module, _, name = place.partition(":")
        found = importlib.import_module(module)
        if not hasattr(found, name):
            raise AttributeError(f"{module} has no {name}")
        setattr(found, name, value)
