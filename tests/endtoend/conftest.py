"""Daemons that end with their test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Daemon

MakeDaemon = Callable[..., Daemon]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Many processes on a busy machine take their time; nothing here is slow when it is not."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(400))


@pytest.fixture
async def make_daemon(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[MakeDaemon]:
    """Makes daemons, each in a directory of its own; what runs at the end of the test is killed."""
    made: list[Daemon] = []

    def make(config: Mapping[str, Any] | None = None, **others: Any) -> Daemon:
        directory = tmp_path / f"daemon-{len(made)}"
        directory.mkdir()
        made.append(Daemon(directory, config, **others))
        return made[-1]

    yield make
    for daemon in made:
        await daemon.kill9()
    for daemon in made:
        daemon.check_secrets()
