"""The daemon whole, as systemd and operators meet it: real processes, real mail into the sandbox."""

from __future__ import annotations

import os
import signal
import smtplib
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from relayd.control import ControlError, call
from relayd.core.lifecycle import State
from relayd.spool.filter import QueueFilter
from relayd.spool.reader import SpoolReader
from tests.operations.configs import values

MAIL = "Subject: hello\r\n\r\nfirst mail\r\n"


class Running:
    """A daemon under a service manager's eye."""

    def __init__(self, directory: Path, **changes: Any) -> None:
        self.directory = directory
        self.data_dir = directory / "data"
        self.config = directory / "relayd.yaml"
        self.write(**changes)
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.manager.bind(str(directory / "notify"))
        self.manager.settimeout(60)
        self.log = (directory / "log").open("wb")
        self.process = self.spawn()

    def write(self, **changes: Any) -> None:
        """The configuration file, with `changes`."""
        own: dict[str, Any] = {
            "data_dir": str(self.data_dir),
            "web": {"bind": ["127.0.0.1:0"]},
            "log": {"format": "json", "mail": str(self.directory / "mail.log")},
            "spool": {"min_free": "0%"},
            "shutdown": "10s",
        }
        self.config.write_text(yaml.safe_dump(values(**own) | changes))

    def spawn(self, **environ: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "relayd", "serve", "--config", str(self.config)],
            env=os.environ | {"NOTIFY_SOCKET": str(self.directory / "notify")} | environ,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
        )

    def hear(self, wanted: str) -> list[str]:
        """Messages to the service manager, up to the first that holds `wanted`."""
        heard = []
        while True:
            heard += self.manager.recv(4096).decode().split("\n")
            if any(wanted in line for line in heard):
                return heard

    def status(self) -> dict[str, Any]:
        [answer] = call(self.data_dir, "status", slots="lead")
        return dict(answer)

    def address(self, name: str = "local") -> tuple[str, int]:
        host, _, port = self.status()["listening"][name][0].rpartition(":")
        return host, int(port)

    def send(self) -> None:
        with smtplib.SMTP(*self.address(), timeout=60) as client:
            client.sendmail("app@example.com", ["you@example.org"], MAIL)

    def get(self, path: str) -> str:
        host, port = self.address("web")
        with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=60) as answer:
            return str(answer.read().decode())

    def said(self) -> list[dict[str, Any]]:
        """The daemon's log so far."""
        lines = (self.directory / "log").read_bytes().splitlines()
        return [orjson.loads(line) for line in lines if line.startswith(b"{")]

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.manager.close()
        self.log.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    daemons: list[Running] = []

    def run(**changes: Any) -> Running:
        daemon = Running(tmp_path, **changes)
        daemons.append(daemon)
        daemon.hear("READY=1")
        return daemon

    yield run
    for daemon in daemons:
        daemon.end()


def delivered(daemon: Running) -> int:
    """Recipients delivered, as the spool has it."""
    with SpoolReader(daemon.data_dir / "spool") as reader:
        return sum(1 for _ in reader.find(QueueFilter(states=frozenset({State.DELIVERED}))))


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited for a minute"
        time.sleep(0.05)


def mail_log(daemon: Running) -> list[str]:
    path = daemon.directory / "mail.log"
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [orjson.loads(line)["event"] for line in lines]


def policies(daemon: Running) -> set[int]:
    """By which the kernel shares the processor among the daemon's processes."""
    workers = [worker["pid"] for worker in daemon.status()["workers"] if "pid" in worker]
    return {os.sched_getscheduler(pid) for pid in (daemon.process.pid, *workers)}


def policy_of_a_process_that_interrupts_nobody() -> int:
    code = (
        "import os; from relayd.workers.scheduling import interrupt_nobody as f; f(); print(os.sched_getscheduler(0))"
    )
    return int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60).stdout)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_mail_goes_through_and_everything_tells_of_it(start: Callable[..., Running], workers: int) -> None:
    daemon = start(workers=workers)
    daemon.send()
    until(lambda: sorted(mail_log(daemon)) == ["accepted", "delivered"])
    assert "ready" in daemon.get("/readyz")
    until(lambda: 'relayd_delivered_total{upstream="sandbox"} 1.0' in daemon.get("/metrics"))
    assert f"relayd_workers {workers}.0" in daemon.get("/metrics")
    assert len(daemon.status()["workers"]) == workers
    assert policies(daemon) == {policy_of_a_process_that_interrupts_nobody()}
    daemon.process.send_signal(signal.SIGTERM)
    daemon.hear("STOPPING=1")
    assert daemon.process.wait(60) == 0
    assert not [line for line in daemon.said() if line["level"] == "error"]


def test_the_service_manager_hears_start_reload_and_stop_in_order(start: Callable[..., Running]) -> None:
    daemon = start()
    daemon.process.send_signal(signal.SIGHUP)
    heard = daemon.hear("READY=1")
    assert heard[0] == "RELOADING=1"
    assert heard[1].startswith("MONOTONIC_USEC=")
    daemon.process.send_signal(signal.SIGINT)
    daemon.hear("STOPPING=1")
    assert daemon.process.wait(60) == 0


def test_a_faulty_configuration_changes_nothing_and_says_why(start: Callable[..., Running]) -> None:
    daemon = start()
    where = daemon.address()
    daemon.write(hostnam="typo")
    with pytest.raises(ControlError) as told:
        call(daemon.data_dir, "reload", slots="lead")
    assert any("hostnam" in fault for fault in told.value.faults)
    daemon.process.send_signal(signal.SIGHUP)
    daemon.hear("old configuration")
    assert any(line["event"] == "not_reloaded" and "hostnam" in str(line["faults"]) for line in daemon.said())
    assert daemon.address() == where
    daemon.send()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_reload_applies_and_keeps_connections(start: Callable[..., Running], workers: int) -> None:
    daemon = start(workers=workers)
    with smtplib.SMTP(*daemon.address(), timeout=60) as client:
        client.ehlo()
        daemon.write(workers=workers, limits={"message_size": "2MiB"})
        [changes] = call(daemon.data_dir, "reload", slots="lead")
        assert any("message_size" in change for change in changes)
        client.sendmail("app@example.com", ["you@example.org"], MAIL)
    with smtplib.SMTP(*daemon.address(), timeout=60) as client:
        client.ehlo()
        assert client.esmtp_features["size"] == str(2 * 1024**2)
    libraries = Path(f"/proc/{daemon.process.pid}/maps").read_text()
    assert ("pydantic_core" in libraries) == (workers == 1), "a supervisor hands on what it does not read, reloads too"


def test_a_second_daemon_on_the_same_data_refuses(start: Callable[..., Running]) -> None:
    daemon = start()
    second = subprocess.run(
        [sys.executable, "-m", "relayd", "serve", "--config", str(daemon.config)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert second.returncode == 1
    [line] = [orjson.loads(line) for line in second.stderr.splitlines()]
    assert line["event"] == "cannot_start"
    assert f"in use by process {daemon.process.pid}" in line["reason"]
    daemon.send()


def test_a_port_that_is_taken_is_told_in_one_line(start: Callable[..., Running], tmp_path: Path) -> None:
    daemon = start()
    host, port = daemon.address()
    (tmp_path / "other").mkdir()
    mine = {"name": "mine", "bind": [f"{host}:{port}"], "tls": "none", "access": "network", "networks": ["::1/128"]}
    other = Running(tmp_path / "other", listeners=[mine])
    assert other.process.wait(60) == 1
    [line] = [line for line in other.said() if line["level"] == "error"]
    assert line["reason"].startswith(f"listener mine: cannot listen on {host}:{port}: another program listens there")
    other.end()


def test_a_killed_worker_is_replaced_and_its_mail_is_not_lost(start: Callable[..., Running]) -> None:
    daemon = start(workers=2)
    victims = [worker["pid"] for worker in daemon.status()["workers"]]
    for pid in victims:
        daemon.send()
        os.kill(pid, signal.SIGKILL)
    daemon.send()

    def replaced() -> bool:
        return all(w["state"] == "ready" and w["restarts"] == 1 for w in daemon.status()["workers"])

    until(replaced)
    # not by the mail log: what a worker had committed when it was killed, it may not have written there yet
    until(lambda: delivered(daemon) == 3)
    assert "relayd_worker_restarts_total 2.0" in daemon.get("/metrics")


@pytest.mark.parametrize("workers", [1, 2])
def test_stopping_while_it_starts_is_no_fault(tmp_path: Path, workers: int) -> None:
    daemon = Running(tmp_path, workers=workers)
    daemon.hear("STATUS=starting")
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.process.wait(60) == 0
    assert not [line for line in daemon.said() if line["level"] == "error"]
    daemon.end()


def test_it_says_hello_to_a_person(start: Callable[..., Running]) -> None:
    daemon = start(log={"format": "console"})
    text = (daemon.directory / "log").read_text()
    host, port = daemon.address()
    assert f"{host}:{port}" in text
    [command] = [line.strip() for line in text.splitlines() if "smtplib" in line]
    done = subprocess.run(["bash", "-c", command], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
