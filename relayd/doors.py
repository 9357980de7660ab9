"""The doors of one worker: its listeners and its web pages, opened, changed by a reload without a pause, and closed.

Sockets are bound by sockets.py, in whatever process may; who is let in is intake's.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field

from relayd.config.models import Config
from relayd.config.models import Listener as ListenerConfig
from relayd.core.counter import ConnectionCounter
from relayd.intake.door import Door
from relayd.listener.observer import ListenerObserver
from relayd.listener.server import ListenerServer
from relayd.sockets import Sockets
from relayd.web.server import Pages, WebServer

MakePages = Callable[[ssl.SSLContext, bool], Pages]
"""The pages for a certificate; True: some of them over TLS."""


@dataclass(slots=True)
class Change:
    """What a reload needs anew."""

    sockets: Sockets
    listeners: dict[str, ListenerServer] = field(default_factory=dict)
    web: WebServer | None = None


class Doors:
    """All that is listened on. `slots`: among how many workers `limits.connections` is shared."""

    def __init__(
        self,
        config: Config,
        sockets: Sockets,
        tls: ssl.SSLContext,
        door: Door,
        pages: MakePages,
        *,
        observer: ListenerObserver,
        slots: int,
    ) -> None:
        self.tls = tls
        """The certificate that is shown now."""
        self._config = config
        self._sockets = sockets
        self._door = door
        self._pages = pages
        self._observer = observer
        self._slots = slots
        self._counter = ConnectionCounter(self._share(config), config.limits.connections_per_ip)
        self._listeners: dict[str, ListenerServer] = {}
        self._replaced: dict[asyncio.Task[None], ListenerServer] = {}
        """Those that a reload replaced, until their last client is gone."""
        self._web: WebServer | None = None

    async def open(self) -> None:
        """Serve from now on. Raises OSError."""
        for listener in self._config.listeners:
            server = self._listeners[listener.name] = self._server(listener, self._config, self.tls)
            await server.start(self._sockets.smtp[listener.name])
        self._web = self._web_server(self._sockets, self.tls)
        await self._web.start()

    @property
    def connections(self) -> int:
        """Open ones."""
        return self._counter.open

    def addresses(self) -> dict[str, list[str]]:
        """What is listened on, by name."""
        return self._sockets.addresses()

    # -- reload

    async def prepare(self, config: Config, sockets: Sockets, tls: ssl.SSLContext) -> Change:
        """What a reload needs anew and may fail to get. Raises, and nothing has changed then."""
        change = Change(sockets)
        try:
            for listener in config.listeners:
                name = listener.name
                if name not in self._listeners or sockets.smtp.get(name) != self._sockets.smtp.get(name):
                    server = change.listeners[name] = self._server(listener, config, tls)
                    await server.prepare(sockets.smtp[name])
            if sockets.web != self._sockets.web:
                change.web = self._web_server(sockets, tls)
                await change.web.start()
        except BaseException:
            for server in change.listeners.values():
                server.discard()
            raise
        return change

    def limit(self, config: Config) -> None:
        """Take changed limits on connections."""
        self._counter.connections = self._share(config)
        self._counter.connections_per_ip = config.limits.connections_per_ip

    async def change_listeners(self, config: Config, change: Change) -> None:
        """Give listeners their new settings; where the sockets changed, a new server takes over and the old drains."""
        self._config = config
        wanted = {listener.name: listener for listener in config.listeners}
        for name, server in list(self._listeners.items()):
            if name in wanted and name not in change.listeners:
                server.apply(wanted[name], config.limits_of(wanted[name]), self.tls, config.hostname)
                continue
            del self._listeners[name]
            server.stop_accepting()
            task = asyncio.create_task(server.drain(config.shutdown), name=f"drain {name}")
            self._replaced[task] = server
            task.add_done_callback(self._replaced.pop)
        for name, server in change.listeners.items():
            self._listeners[name] = server
            await server.serve()

    async def change_web(self, change: Change) -> None:
        """Serve pages on new sockets, where they are."""
        if change.web is not None:
            old, self._web = self._web, change.web
            if old is not None:
                await old.stop()

    def close_unused(self, change: Change) -> None:
        """Close the sockets that the new configuration has no more."""
        for sock in set(self._sockets) - set(change.sockets):
            sock.close()
        self._sockets = change.sockets

    # -- end

    async def drain(self, timeout: float) -> None:
        """Take no more, let clients finish the mail they are sending, cut off the rest after so many seconds."""
        servers = [*self._listeners.values(), *self._replaced.values()]
        for server in servers:
            server.stop_accepting()
        await asyncio.gather(*(server.drain(timeout) for server in servers))
        replaced = list(self._replaced)
        for task in replaced:
            task.cancel()
        await asyncio.gather(*replaced, return_exceptions=True)

    async def close(self) -> None:
        """No more pages either."""
        if self._web is not None:
            await self._web.stop()

    # -- parts

    def _server(self, listener: ListenerConfig, config: Config, tls: ssl.SSLContext) -> ListenerServer:
        return ListenerServer(
            listener,
            config.limits_of(listener),
            self._door,
            tls,
            self._observer,
            config.hostname,
            self._counter,
        )

    def _web_server(self, sockets: Sockets, tls: ssl.SSLContext) -> WebServer:
        return WebServer(sockets.web, self._pages(tls, "web.public_tls" in sockets.web))

    def _share(self, config: Config) -> int:
        """This worker's part of limits.connections."""
        return -(-config.limits.connections // self._slots)
