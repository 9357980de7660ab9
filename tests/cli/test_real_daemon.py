"""Commands against a daemon that runs: two workers, real mail by SMTP, real sockets, real processes."""

from __future__ import annotations

import contextlib
import os
import signal
import smtplib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Site
from tests.support.daemon import PATIENCE

# its start, and many processes after one another, take their time on a busy machine
pytestmark = pytest.mark.timeout(400)

CONFIG = """\
hostname: relay.example.com
data_dir: ./data
workers: 2
listeners:
  - {name: local, bind: ["127.0.0.1:0"], tls: none, access: network, networks: [127.0.0.0/8]}
upstreams:
  sandbox: {type: sandbox}
  other: {type: sandbox}
routes:
  - upstream: sandbox
retry: {schedule: "1h*"}
"""


def until(ask: Callable[[], object | None], what: str) -> object:
    """The first answer, asked for again and again."""
    limit = time.monotonic() + PATIENCE
    while (answer := ask()) is None:
        assert time.monotonic() < limit, f"no {what} within {PATIENCE:g} s"
        time.sleep(0.05)
    return answer


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A daemon that has taken four mails, each with a recipient that is deferred for an hour."""
    site = Site(tmp_path_factory.mktemp("daemon"))
    site.config.write_text(CONFIG)
    with (site.directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "relayd", "serve", "--config", str(site.config)], stdout=log, stderr=log
        )
    try:
        until(lambda: process.poll() is not None or site.run("status").code == 0 or None, "status")
        assert process.poll() is None, (site.directory / "log").read_text()
        send(site)
        yield site
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        process.kill()
        code = process.wait()
    assert code == 0, (site.directory / "log").read_text()


def send(site: Site) -> None:
    [address] = site.run("status", "--json").json["status"]["listening"]["local"]
    host, _, port = address.rpartition(":")
    for place in range(4):
        # a connection each, so that both workers get some
        with smtplib.SMTP(host, int(port)) as client:
            client.sendmail(
                "a@shop.example.com",
                ["450@example.org", f"fine{place}@example.org"],
                "From: a@shop.example.com\r\nSubject: hello\r\n\r\nhello\r\n",
            )
    until(lambda: all_wait(site) or None, "deferred mail")


def all_wait(site: Site) -> bool:
    """All four, for the disk and for the workers: those that a worker has in hand yet, no command touches."""
    if len(deferred(site)) < 4:
        return False
    workers = site.run("status", "--json").json["status"]["workers"]
    lanes = [worker.get("upstreams", {"unknown": {"sending": True}}) for worker in workers]
    return not any(lane["sending"] for each in lanes for lane in each.values())


def deferred(site: Site) -> list[dict[str, Any]]:
    return [entry for entry in site.run("queue", "list", "--json").json if entry["state"] == "deferred"]


def test_holding_and_releasing_reach_the_mail_of_every_worker(daemon: Site) -> None:
    done = daemon.run("queue", "hold", "--recipient", "450@*", "--json")
    assert (done.code, done.err) == (0, "")
    assert done.json["recipients"] == 4
    assert {entry["state"] for entry in daemon.run("queue", "list", "--json").json} == {"held"}
    assert daemon.run("queue", "release", "--all", "--json").json["recipients"] == 4
    until(lambda: all_wait(daemon) or None, "second attempt")
    assert {entry["attempts"] for entry in deferred(daemon)} == {2}


def test_the_history_of_a_mail_under_way(daemon: Site) -> None:
    message = deferred(daemon)[0]["id"]
    found = daemon.run("message", "show", message, "--json").json
    assert {each["state"] for each in found["recipients"]} == {"deferred", "delivered"}
    assert "450 4.2.1" in found["attempts"][0]["transcript"]
    assert (
        b"Subject: hello"
        in subprocess.run(
            [sys.executable, "-m", "relayd", "-c", str(daemon.config), "message", "show", message, "--headers"],
            capture_output=True,
            check=True,
        ).stdout
    )


def test_the_sandbox_has_what_was_delivered(daemon: Site) -> None:
    found = daemon.run("sandbox", "list", "--json").json
    assert {f"fine{place}@example.org" for place in range(4)} <= {to for each in found for to in each["recipients"]}


def test_a_faulty_file_is_refused_and_a_sound_one_taken(daemon: Site) -> None:
    daemon.config.write_text(CONFIG + "rotues: []\n")
    done = daemon.run("reload")
    assert done.code == 1
    assert "rotues" in done.err
    daemon.config.write_text(CONFIG.replace("1h*", "2h*"))
    done = daemon.run("reload")
    assert (done.code, done.err) == (0, "")
    assert "retry.schedule" in done.out


def test_a_comparison_says_which_mail_would_move(daemon: Site) -> None:
    new: Path = daemon.directory / "new.yaml"
    new.write_text(CONFIG.replace("- upstream: sandbox", "- upstream: other"))
    found = daemon.run("config", "diff", str(new), "--json").json
    [move] = found["routes"]
    assert (move["from"], move["to"], move["recipients"]) == ("sandbox", "other", 4)


def test_a_second_daemon_on_the_same_data_refuses(daemon: Site) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "relayd", "serve", "-c", str(daemon.config)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_COLOR": "1"},
    )
    assert done.returncode == 1
    assert "in use" in done.stdout + done.stderr


def test_deleting_and_the_audit_beside_a_daemon(daemon: Site) -> None:
    ids = [entry["id"] for entry in deferred(daemon)]
    assert daemon.run("queue", "delete", *ids, "--yes", "--json").json["recipients"] == 4
    assert daemon.run("queue", "list", "--json").json == []
    done = daemon.run("audit")
    assert (done.code, done.err) == (0, "")
