"""A control server on a loop of its own, so that synchronous tests can run commands against it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

from relayd.control import ControlServer


@contextlib.contextmanager
def serving(*servers: ControlServer) -> Iterator[None]:
    """Serve until the block ends."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="control servers")
    thread.start()

    def do(work: str) -> None:
        for server in servers:
            asyncio.run_coroutine_threadsafe(getattr(server, work)(), loop).result(10)

    try:
        do("start")
        yield
        do("close")
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
