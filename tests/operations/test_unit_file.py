"""systemd/relayd.service: hardened, accepted by systemd, and telling the same as the rest of the project."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
UNIT = ROOT / "systemd" / "relayd.service"
MOST_EXPOSED = 2.0

analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")


def service() -> dict[str, str]:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT)
    return dict(parser["Service"])


@analyze
def test_exposure_is_at_most_2_0() -> None:
    answer = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(UNIT)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    match = re.search(r"Overall exposure level for \S+: (\d+\.\d)", answer.stdout)
    assert match is not None, answer.stdout + answer.stderr
    assert float(match[1]) <= MOST_EXPOSED


@analyze
def test_systemd_has_nothing_to_say_installed_or_not() -> None:
    answer = subprocess.run(
        ["systemd-analyze", "verify", str(UNIT)], check=False, capture_output=True, text=True, timeout=60
    )
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")


def test_systemd_follows_our_state_and_watches_the_event_loop() -> None:
    unit = service()
    assert unit["Type"] == "notify"
    assert unit["NotifyAccess"] == "main"
    assert int(unit["WatchdogSec"]) > 0
    assert "-HUP $MAINPID" in unit["ExecReload"]
    assert int(unit["FileDescriptorStoreMax"]) > 0
    assert unit["KillMode"] == "mixed", "workers are told to drain by the supervisor, not killed with it"


def test_it_asks_for_the_scheduling_policy_that_its_filter_does_not_let_relayd_ask_for() -> None:
    assert service()["CPUSchedulingPolicy"] == "batch"


def test_it_runs_without_privileges_but_for_low_ports() -> None:
    unit = service()
    assert unit["User"] == "relayd"
    assert unit["AmbientCapabilities"] == unit["CapabilityBoundingSet"] == "CAP_NET_BIND_SERVICE"
    assert unit["LoadCredential"].startswith("secret:")


def test_a_faulty_configuration_is_not_started_over_and_over() -> None:
    from relayd.cli.common import FAULT

    assert service()["RestartPreventExitStatus"] == str(FAULT)


def test_there_is_more_time_to_stop_than_shutdown_takes_by_default() -> None:
    from relayd.config.models import Config

    assert int(service()["TimeoutStopSec"]) > Config.model_fields["shutdown"].default
