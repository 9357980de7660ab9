"""The command as a whole: quick help, exit codes, one clear line for every failure, both ways to start it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from relayd.cli import audit
from relayd.cli.reference import render
from tests.cli.conftest import Site, run


def relayd(*args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """A real process."""
    env = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **environ}
    return subprocess.run([sys.executable, "-m", "relayd", *args], capture_output=True, text=True, env=env, check=False)


def test_the_console_script_and_the_module_are_the_same() -> None:
    script = Path(sys.executable).with_name("relayd")
    done = subprocess.run([script, "version"], capture_output=True, text=True, check=True)
    assert done.stdout == relayd("version").stdout
    assert done.stdout.startswith("relayd ")
    assert run("version", "--json").json["relayd"] in done.stdout


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from relayd.cli.main import app; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"pydantic", "aiosmtpd", "aiosmtplib", "aiohttp", "fastapi", "cryptography", "structlog"} & set(loaded)


def test_every_command_explains_itself() -> None:
    text = render()
    for words in ("relayd serve", "relayd queue delete", "relayd config hash-password", "relayd sandbox export"):
        assert f"`{words}`" in text
    assert "--config" in text
    assert "None" not in text


@pytest.mark.parametrize(
    "args",
    [["--nonsense"], ["nonsense\x1b[2J"], ["queue", "list", "--limit", "\x1b"], ["config", "check", "/does/not/exist"]],
)
def test_wrong_usage_is_exit_code_2(args: list[str]) -> None:
    done = relayd(*args)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stderr


def test_the_environment_names_the_configuration(spool: Site) -> None:
    done = relayd("queue", "list", RELAYD_CONFIG=str(spool.config))
    assert done.returncode == 0
    assert spool.ids["fresh"] in done.stdout


def test_config_may_stand_before_or_behind_the_command(spool: Site) -> None:
    behind = run("queue", "list", "--json", "-c", str(spool.config))
    assert behind.code == 0
    assert behind.json == run("-c", str(spool.config), "queue", "list", "--json").json


def test_a_terminal_without_japanese_gets_escapes_instead_of_a_traceback(spool: Site) -> None:
    done = relayd("-c", str(spool.config), "message", "show", spool.ids["fresh"], PYTHONIOENCODING="latin-1")
    assert done.returncode == 0
    assert "\\u65e5" in done.stdout


def test_a_closed_pipe_is_no_traceback(spool: Site) -> None:
    command = f"{sys.executable} -m relayd -c {spool.config} queue list --json | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


def test_an_unforeseen_failure_tells_its_kind_and_no_secret(spool: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("password=hunter2")

    monkeypatch.setattr(audit, "data_dir_of", fail)
    done = spool.run("audit")
    assert done.code == 1
    assert done.err == 'relayd: internal error (RuntimeError). Run "relayd --debug …" to see where.\n'
    debugged = run("--debug", "-c", str(spool.config), "audit")
    assert debugged.code == 1
    assert "test_main.py" in debugged.err


def test_a_daemon_that_breaks_leaves_a_traceback_in_its_log(
    spool: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: Path) -> int:
        raise RuntimeError("broken")

    monkeypatch.setattr("relayd.workers.start.serve", broken)
    with capture_logs() as logs:
        assert spool.run("serve").code == 1
    assert [(entry["event"], entry["exc_info"]) for entry in logs] == [("crashed", True)]


def test_a_file_that_may_not_be_read_is_one_line(spool: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "/var/lib/relayd/spool")

    monkeypatch.setattr(audit, "data_dir_of", fail)
    done = spool.run("audit")
    assert (done.code, done.err) == (1, "relayd: /var/lib/relayd/spool: Permission denied\n")


def test_no_is_no(spool: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relayd.cli.common.terminal", lambda: True)
    for answer in ("n\n", "\n", ""):
        done = spool.run("queue", "delete", "--all", stdin=answer)
        assert done.code == 1
        assert "3 recipients of 3 messages will be deleted." in done.err
    assert spool.run("queue", "list", "--json").json
    assert spool.run("queue", "delete", "--all", stdin="y\n").code == 0
    assert spool.run("queue", "list", "--json").json == []


def test_audit_of_a_sound_spool(spool: Site) -> None:
    done = spool.run("audit")
    assert (done.code, done.err) == (0, "")
    assert "Clean" in done.out
    found = spool.run("audit", "--json").json
    assert found["clean"] is True
    assert found["accepted"] == 5
    assert found["final"] == {"delivered": 1, "bounced": 1}


def test_audit_tells_what_is_wrong_and_fails(spool: Site) -> None:
    [segment] = (spool.data / "spool" / "000").glob("*.db")
    segment.write_bytes(b"not a database" * 1000)
    done = spool.run("audit")
    assert done.code == 1
    assert str(segment) in done.err
    assert "Clean" not in done.out
    assert spool.run("audit", "--json").json["clean"] is False


def test_the_page_of_commands_is_current() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "cli.md"
    assert page.read_text() == render(), "run scripts/generate-docs"
