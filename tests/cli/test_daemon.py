"""Commands that speak to a running daemon: its answers, its refusals, its silence. Here its control sockets only."""

from __future__ import annotations

from typing import Any

import pytest

from relayd import control
from relayd.control import ControlError, ControlServer
from tests.cli.conftest import Site
from tests.cli.served import serving

STATUS = {
    "listening": {"local": ["127.0.0.1:2525"]},
    "workers": [
        {
            "worker": 0,
            "state": "ready",
            "seconds": 3700,
            "restarts": 0,
            "ready": True,
            "not_ready": [],
            "draining": False,
            "connections": 3,
            "memory": 1024**2,
            "disk_free": 10 * 1024**3,
            "upstreams": {
                "acme": {
                    "paused": True,
                    "reason": "535 5.7.8 wrong \u001b[2J password",
                    "since": 1,
                    "next_probe": 1,
                    "in_memory": 4,
                    "sending": 0,
                    "connections": 0,
                }
            },
        },
        {"worker": 1, "state": "restarting", "seconds": 2, "restarts": 4, "last_fault": "killed by signal 9"},
    ],
}


def supervisor(site: Site, **verbs: Any) -> ControlServer:
    """The supervisor's socket with these verbs."""

    def handler(answer: Any) -> Any:
        async def handle(args: dict[str, Any]) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer(args) if callable(answer) else answer

        return handle

    return ControlServer(
        control.supervisor_socket(site.data), {name: handler(answer) for name, answer in verbs.items()}
    )


def worker(site: Site, slot: int, answer: Any, seen: list[Any]) -> ControlServer:
    """A worker that answers every act in this way, and notes what it was asked."""

    async def handle(args: dict[str, Any]) -> Any:
        seen.append((slot, args))
        if isinstance(answer, Exception):
            raise answer
        return answer

    verbs = {f"queue.{act}": handle for act in ("hold", "release", "retry", "fail", "delete")}
    return ControlServer(control.worker_socket(site.data, slot), verbs)


def test_reload_tells_what_changed(site: Site) -> None:
    with serving(supervisor(site, reload=["retry.lifetime: 5d -> 3d"])):
        done = site.run("reload")
        assert (done.code, done.err) == (0, "")
        assert "retry.lifetime: 5d -> 3d" in done.out
        assert site.run("reload", "--json").json == {"changes": ["retry.lifetime: 5d -> 3d"]}
    with serving(supervisor(site, reload=[])):
        assert "nothing had changed" in site.run("reload").out


def test_a_refused_reload_tells_every_fault(site: Site) -> None:
    refusal = ControlError("the new configuration is faulty, nothing was changed", ["relayd.yaml:3:1: error: port"])
    with serving(supervisor(site, reload=refusal)):
        done = site.run("reload")
    assert (done.code, done.out) == (1, "")
    assert done.err.splitlines() == [
        "relayd: the new configuration is faulty, nothing was changed",
        "  relayd.yaml:3:1: error: port",
    ]


def test_reload_and_status_without_a_daemon(site: Site) -> None:
    done = site.run("reload")
    assert done.code == 1
    assert "no relayd is running" in done.err
    done = site.run("status")
    assert (done.code, done.out) == (1, "")
    assert "not running" in done.err
    assert site.run("status", "--json").json["running"] is False


def test_status_for_people_and_programs(site: Site) -> None:
    with serving(supervisor(site, status=STATUS)):
        done = site.run("status")
        assert done.code == 0
        assert site.run("status", "--json").json["status"] == STATUS
    for words in ("127.0.0.1:2525", "1h01m", "1.0 MiB", "paused: 535", "restarted 4 times", "killed by signal 9"):
        assert words in done.out
    assert "\x1b" not in done.out


def test_acts_go_to_every_worker_and_are_summed_up(spool: Site) -> None:
    seen: list[Any] = []
    one = worker(spool, 0, {"recipients": 2, "messages": ["a", "b"], "busy": 1}, seen)
    two = worker(spool, 1, {"recipients": 1, "messages": ["c"], "busy": 0}, seen)
    with serving(one, two):
        done = spool.run("queue", "hold", "--upstream", "acme", "--reason", "why")
        assert done.code == 0
        found = spool.run("queue", "retry", "--all", "--json").json
    assert done.out.splitlines() == [
        "3 recipients of 3 messages held.",
        "1 message left alone: being sent at this moment.",
    ]
    assert found == {"recipients": 3, "messages": ["a", "b", "c"], "busy": 1, "refused": 0, "errors": []}
    assert [slot for slot, _ in seen[:2]] == [0, 1]
    assert seen[0][1]["filter"] == {"upstream": "acme"}
    assert seen[0][1]["reason"] == "why"
    assert seen[0][1]["by"]
    # the spool is the daemon's: nothing was done behind its back
    assert spool.states("fresh") == {"a@example.org": "queued"}


def test_a_worker_that_fails_does_not_hide_what_the_other_did(spool: Site) -> None:
    seen: list[Any] = []
    one = worker(spool, 0, ControlError("the disk is full"), seen)
    two = worker(spool, 1, {"recipients": 1, "messages": ["c"], "busy": 0}, seen)
    with serving(one, two):
        done = spool.run("queue", "delete", "--all", "--yes")
    assert done.code == 1
    assert "1 recipient of 1 message deleted." in done.out
    assert "worker 0: the disk is full" in done.err


@pytest.mark.parametrize("act", ["hold", "delete"])
def test_a_dry_run_asks_nobody(spool: Site, act: str) -> None:
    seen: list[Any] = []
    with serving(worker(spool, 0, {}, seen)):
        assert spool.run("queue", act, "--all", "--dry-run").code == 0
    assert seen == []
