"""What the service manager hears, on a real notification socket."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from relayd.systemd import Notifier, feed_watchdog


class Manager:
    """The service manager's end."""

    def __init__(self, address: str | bytes) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.settimeout(5)

    def read(self) -> list[str]:
        return self.socket.recv(4096).decode().split("\n")


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(str(tmp_path / "notify"))
    yield manager
    manager.socket.close()


def of(manager: Manager) -> Notifier:
    return Notifier(manager.socket.getsockname())


def test_each_state_is_told_in_the_protocol_of_sd_notify(manager: Manager) -> None:
    notifier = of(manager)
    notifier.ready("listening on 127.0.0.1:2525")
    assert manager.read() == ["READY=1", "STATUS=listening on 127.0.0.1:2525"]
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.reloading()
    state, usec = manager.read()
    assert state == "RELOADING=1"
    assert before <= int(usec.removeprefix("MONOTONIC_USEC=")) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.stopping(40.0)
    assert manager.read() == ["STOPPING=1", "STATUS=draining", "EXTEND_TIMEOUT_USEC=40000000"]
    notifier.alive()
    assert manager.read() == ["WATCHDOG=1"]
    notifier.close()


def test_a_line_end_in_a_status_starts_no_assignment(manager: Manager) -> None:
    notifier = of(manager)
    notifier.ready("broken\nMAINPID=1\r\nWATCHDOG=1")
    assert manager.read() == ["READY=1", "STATUS=broken MAINPID=1 WATCHDOG=1"]
    notifier.close()


def test_an_abstract_socket_is_reached() -> None:
    name = f"relayd-test-{os.getpid()}-{time.monotonic_ns()}"
    manager = Manager("\0" + name)
    notifier = Notifier("@" + name)
    notifier.alive()
    assert manager.read() == ["WATCHDOG=1"]
    notifier.close()
    manager.socket.close()


def test_without_a_manager_or_with_one_that_is_gone_nothing_happens(tmp_path: Path) -> None:
    silent = Notifier(None)
    silent.ready("x")
    gone = Notifier(str(tmp_path / "nobody"))
    gone.ready("x")
    gone.close()
    gone.ready("after close")


def test_the_environment_is_read_once_and_not_passed_on() -> None:
    environ = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid()), "HOME": "/"}
    notifier = Notifier.from_environment(environ)
    assert notifier.watchdog == 30.0
    assert environ == {"HOME": "/"}
    notifier.close()


def test_a_watchdog_that_is_meant_for_another_process_is_not_fed() -> None:
    notifier = Notifier.from_environment({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"})
    assert notifier.watchdog is None


async def test_the_watchdog_is_fed_only_while_healthy(manager: Manager) -> None:
    notifier = Notifier(manager.socket.getsockname(), watchdog=0.02)
    asked = asyncio.Event()
    answers = [True, False, False, True]

    def healthy() -> bool:
        answer = answers.pop(0)
        if not answers:
            asked.set()
            answers.append(False)
        return answer

    feeding = asyncio.create_task(feed_watchdog(notifier, healthy))
    await asked.wait()
    feeding.cancel()
    await asyncio.gather(feeding, return_exceptions=True)
    notifier.ready("end")
    heard = [manager.read()[0] for _ in range(3)]
    assert heard == ["WATCHDOG=1", "WATCHDOG=1", "READY=1"]
    notifier.close()


def listening() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    return sock


def test_listening_sockets_are_kept_by_the_manager_and_let_go_when_they_are_ours_no_more(tmp_path: Path) -> None:
    manager = Manager(str(tmp_path / "notify"))
    notifier = Notifier(manager.socket.getsockname(), stale=["worker0-127.0.0.1-25"])
    one, two = listening(), listening()

    def heard() -> tuple[str, list[int]]:
        message, fds, _, _ = socket.recv_fds(manager.socket, 4096, 8)
        return message.decode(), fds

    notifier.keep({"one": one})
    assert heard() == ("FDSTOREREMOVE=1\nFDNAME=worker0-127.0.0.1-25", [])
    text, [fd] = heard()
    assert text == "FDSTORE=1\nFDNAME=one"
    with socket.socket(fileno=fd) as held:
        assert held.getsockname() == one.getsockname()
    notifier.keep({"two": two})
    assert heard() == ("FDSTOREREMOVE=1\nFDNAME=one", [])
    text, fds = heard()
    assert text == "FDSTORE=1\nFDNAME=two"
    for sock in (one, two, *(socket.socket(fileno=fd) for fd in fds)):
        sock.close()
    notifier.close()
    manager.socket.close()
