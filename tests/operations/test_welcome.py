"""What a newcomer reads at the start: where relayd listens, and commands that work as they are printed."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from relayd.config.load import load
from relayd.workers.welcome import command_line, welcome

ROOT = Path(__file__).parent.parent.parent
ADDRESSES = {"local": ["127.0.0.1:2525"], "submission": ["127.0.0.1:2587"], "web": ["127.0.0.1:8025"]}


def test_it_says_where_and_how_to_send_a_first_mail_and_where_to_look() -> None:
    text = welcome(load(ROOT / "config.example.yaml"), ADDRESSES, "bin/relayd --config my.yaml")
    assert all(address in text for group in ADDRESSES.values() for address in group)
    [first] = [line.strip() for line in text.splitlines() if "smtplib" in line]
    program, dash, script = shlex.split(first)
    assert (program, dash) == ("python3", "-c")
    assert "('127.0.0.1', 2525)" in script
    compile(script, "first mail", "exec")
    assert "  bin/relayd --config my.yaml sandbox list\n" in text


@pytest.mark.parametrize("program", [[str(Path(sys.executable).parent / "relayd")], [sys.executable, "-m", "relayd"]])
def test_the_command_it_names_is_this_relayd_with_this_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: list[str]
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "a folder" / "relayd.yaml"
    called = program[0] if len(program) == 1 else str(ROOT / "relayd" / "__main__.py")
    line = command_line(config, called)
    assert shlex.split(line) == [*program, "--config", "a folder/relayd.yaml"]
    done = subprocess.run([*shlex.split(line)[:-2], "version"], env=os.environ, check=False, capture_output=True)
    assert done.returncode == 0


def test_a_relayd_on_the_path_is_called_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "relayd"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert command_line(Path("/etc/relayd/relayd.yaml"), str(program)) == "relayd --config /etc/relayd/relayd.yaml"
