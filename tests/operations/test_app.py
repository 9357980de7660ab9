"""One worker in this process, reloaded while things go wrong: it is on the old configuration or on the new one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relayd import sockets
from relayd.app import App
from relayd.config.models import Config
from relayd.listener.server import ListenerServer
from relayd.workers.groundwork import prepare
from tests.endtoend.client import send_one
from tests.support.daemon import local, settings


def config(directory: Path, *listeners: str) -> Config:
    sections = settings(listeners=[local(name) for name in listeners], log={"mail": str(directory / "mail.log")})
    return Config.model_validate(sections | {"data_dir": str(directory / "data")})


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[App]:
    first = config(tmp_path, "one")
    prepare(first)
    bound = sockets.bind(first)
    app = App(first, slot=0, slots=1, sockets=bound)
    await app.start()
    yield app
    await app.drain_and_stop()


async def test_a_listener_that_cannot_be_opened_leaves_everything_as_it_was(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = app._doors._sockets
    wanted = config(tmp_path, "one", "two", "three")
    prepare_listener = ListenerServer.prepare

    async def fails(self: ListenerServer, bound: object) -> None:
        if self.listener.name == "three":
            raise OSError(24, "Too many open files")
        await prepare_listener(self, bound)  # type: ignore[arg-type]

    monkeypatch.setattr(ListenerServer, "prepare", fails)
    new = sockets.rebind(wanted, old)
    with pytest.raises(OSError, match="Too many"):
        await app.reload(wanted, new)
    assert app._config.listeners[0].name == "one" and len(app._config.listeners) == 1
    assert list(app._doors._listeners) == ["one"] and app._doors._sockets is old
    port = old.smtp["one"][0].getsockname()[1]
    await send_one(port, "app@example.com", "a@example.org")
    monkeypatch.undo()
    await app.reload(wanted, new)
    for name in ("one", "two", "three"):
        await send_one(new.smtp[name][0].getsockname()[1], "app@example.com", f"{name}@example.org")


async def test_a_part_that_fails_in_the_middle_keeps_no_other_from_the_new_configuration(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(app._inbound, "apply", broken)
    wanted = config(tmp_path, "one", "two")
    await app.reload(wanted, sockets.rebind(wanted, app._doors._sockets))
    assert app._config is wanted and list(app._doors._listeners) == ["one", "two"]
    await send_one(app._doors._sockets.smtp["two"][0].getsockname()[1], "app@example.com", "a@example.org")
