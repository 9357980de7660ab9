"""kill -9 at random moments under load, again and again: of the whole daemon, of a worker, of the supervisor.

The seed is fixed; what decides when to kill is how much was promised, not a clock.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from tests.endtoend.client import Client, mail, subject_of
from tests.endtoend.conftest import MakeDaemon
from tests.endtoend.test_crashes import drained
from tests.support.daemon import Daemon, local, smtp_upstream
from tests.support.fake_upstream import FakeUpstream
from tests.support.ports import free_port

CLIENTS = 6
CONNECTIONS = 4
"""To the upstream: as many transactions can be in flight when the daemon dies."""


class Load:
    """Clients that send one mail after the other, and remember which of them were promised."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.promised: set[str] = set()
        self.open: set[str] = set()
        """Sent, but the connection ended before the reply."""
        self.refused_connections = 0
        self.answers: Counter[int] = Counter()
        self._numbers = iter(range(1_000_000))
        self._stopping = False

    async def _client(self, number: int) -> None:
        while not self._stopping:
            try:
                async with Client(self.daemon.port) as client:
                    await self._session(client, number)
            except ConnectionRefusedError:
                self.refused_connections += 1
                await asyncio.sleep(0.02)
            except ConnectionError:
                await asyncio.sleep(0.02)

    async def _session(self, client: Client, number: int) -> None:
        while not self._stopping:
            subject = f"mail-{next(self._numbers)}"
            recipients = [f"{place}@example.org" for place in range(1 + number % 3)]
            code, _ = await client.send("app@example.com", recipients, mail(subject, size=2000 * number))
            self.answers[code] += 1
            if code == 250:
                self.promised.add(subject)
            else:
                self.open.add(subject)
                return

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Send until the block ends."""
        self._stopping = False
        tasks = [asyncio.create_task(self._client(number)) for number in range(CLIENTS)]
        try:
            yield
        finally:
            self._stopping = True
            await asyncio.wait(tasks)
            for task in tasks:
                task.result()

    async def more(self, count: int) -> None:
        """Wait until so many more mails were promised."""
        target = len(self.promised) + count
        await self.daemon.until(lambda: len(self.promised) >= target, f"{count} more mails accepted")


def check(daemon: Daemon, load: Load, upstream: FakeUpstream, deaths: int) -> None:
    """Nothing promised is missing; what came twice is no more than what can have been in flight."""
    taken = Counter(subject_of(each.content) for each in upstream.accepted)
    missing = load.promised - set(taken)
    assert not missing
    assert set(taken) <= load.promised | load.open
    repeats = sum(taken.values()) - len(taken)
    # for each connection one under way, and one of which it is being written what became of it
    possible = 2 * deaths * CONNECTIONS
    print(f"promised {len(load.promised)}, open {len(load.open)}, repeats {repeats} of {possible} possible")
    assert repeats <= possible
    report = daemon.audit()
    assert report.clean, report.discrepancies
    assert set(report.final) == {"delivered"}


async def killed_again_and_again(
    daemon: Daemon, upstream: FakeUpstream, rounds: int, kill: Callable[[int], Awaitable[None]]
) -> Load:
    """Load, kill, restart, load …; then let everything be delivered."""
    dice = random.Random(2)
    load = Load(daemon)
    await daemon.start()
    for place in range(rounds):
        async with load.running():
            await load.more(dice.randrange(1, 60))
            await kill(place)
    await drained(daemon)
    assert await daemon.stop() == 0
    return load


async def test_ten_times_the_whole_daemon(make_daemon: MakeDaemon) -> None:
    async with FakeUpstream() as upstream:
        section = smtp_upstream(upstream, limits={"connections": CONNECTIONS})
        daemon = make_daemon({"upstreams": {"acme": section}, "listeners": [fixed_port()]})

        async def kill(place: int) -> None:
            await daemon.kill9()
            assert (await asyncio.to_thread(daemon.audit)).clean
            await daemon.start()

        load = await killed_again_and_again(daemon, upstream, 10, kill)
        check(daemon, load, upstream, 10)


async def test_one_worker_of_two(make_daemon: MakeDaemon) -> None:
    async with FakeUpstream() as upstream:
        section = smtp_upstream(upstream, limits={"connections": CONNECTIONS})
        daemon = make_daemon({"upstreams": {"acme": section}, "workers": 2})

        async def kill(place: int) -> None:
            before = (await daemon.control("status"))["workers"][place % 2]
            os.kill(before["pid"], signal.SIGKILL)

            async def again() -> bool:
                now = (await daemon.control("status"))["workers"][place % 2]
                return bool(now["state"] == "ready" and now["pid"] != before["pid"])

            await daemon.until(again, "the worker is back")

        load = await killed_again_and_again(daemon, upstream, 2, kill)
        check(daemon, load, upstream, 2)
        # the supervisor holds the sockets: clients wait, none is refused
        assert not load.refused_connections


async def test_the_supervisor(make_daemon: MakeDaemon) -> None:
    async with FakeUpstream() as upstream:
        section = smtp_upstream(upstream, limits={"connections": CONNECTIONS})
        daemon = make_daemon({"upstreams": {"acme": section}, "workers": 2, "listeners": [fixed_port()]})

        async def kill(place: int) -> None:
            daemon.signal(signal.SIGKILL)
            assert await daemon.ended() == -signal.SIGKILL
            # the workers notice, finish what they have in hand and go: only then may a successor start
            await daemon.lock_free()
            await daemon.start()

        load = await killed_again_and_again(daemon, upstream, 1, kill)
        # the workers were not killed: nothing was torn out of their hands
        check(daemon, load, upstream, 0)


def fixed_port() -> dict[str, Any]:
    """A listener whose port stays the same over restarts."""
    return local(bind=[f"127.0.0.1:{free_port()}"])
