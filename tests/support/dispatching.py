"""A dispatcher on a real store, and upstreams inside the process whose every answer a test decides.

What goes over a wire is tested with fake_upstream.py; here it is about order, waiting and failing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Let the loop run until something holds. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - the parts under test ring no bell for tests
            await asyncio.sleep(0.001)
