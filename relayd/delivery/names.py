"""The addresses of one upstream's host: looked up in a thread of its own, once for all who ask at the same time.

Not in the loop's pool: it has four threads, and a few names whose servers are silent would hold them all, so that no
other upstream's name could be looked up any more, nor the process end.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading

Address = tuple[socket.AddressFamily, str]


class Names:
    """Looks up one host."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._asking: asyncio.Future[list[Address]] | None = None

    async def addresses(self) -> list[Address]:
        """Its addresses now, in the system's order. Raises OSError (socket.gaierror where there are none)."""
        try:
            return _look_up(self._host, socket.AI_NUMERICHOST)
        except socket.gaierror:
            pass  # no address, but a name
        if self._asking is None:
            self._asking = self._ask(asyncio.get_running_loop())
        # who gives up leaves the others their answer
        return await asyncio.shield(self._asking)

    def _ask(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[list[Address]]:
        asking: asyncio.Future[list[Address]] = loop.create_future()

        def answered(found: list[Address] | OSError) -> None:
            self._asking = None
            if isinstance(found, OSError):
                asking.set_exception(found)
                asking.exception()  # nobody may be left who waits for it
            else:
                asking.set_result(found)

        def look_up() -> None:
            found: list[Address] | OSError
            try:
                found = _look_up(self._host, 0)
            except OSError as error:
                found = error
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(answered, found)

        # a daemon: the process ends without its answer
        threading.Thread(target=look_up, name=f"look up {self._host}", daemon=True).start()
        return asking


def _look_up(host: str, flags: int) -> list[Address]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=flags)
    except UnicodeError as error:  # a label that IDNA does not know
        raise socket.gaierror(socket.EAI_NONAME, "not a host name") from error
    return [(family, str(address[0])) for family, _, _, _, address in found]
