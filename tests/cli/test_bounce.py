"""relayd bounce explain: for people, for programs, from files and standard input, and for a bare reply."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from relayd.cli.main import app
from tests.core.bounce.test_reports import ONE, report

RUNNER = CliRunner()


@pytest.fixture
def returned(tmp_path: Path) -> Path:
    path = tmp_path / "bounce.eml"
    path.write_bytes(
        report(
            ONE.format("failed", "5.2.2") + "\nFinal-Recipient: rfc822; b@b.example\nStatus: 5.1.1\nAction: failed\n"
        )
    )
    return path


def test_for_people(returned: Path) -> None:
    result = RUNNER.invoke(app, ["bounce", "explain", str(returned)])
    assert result.exit_code == 0
    assert "taro@b.example" in result.output
    assert "mailbox-full (soft)" in result.output
    assert "The mailbox is full." in result.output
    assert "メールボックスがいっぱい" in result.output
    assert "user-unknown (hard)" in result.output


def test_for_programs(returned: Path) -> None:
    result = RUNNER.invoke(app, ["bounce", "explain", "--json", str(returned)])
    assert [each["class"] for each in json.loads(result.stdout)] == ["mailbox-full", "user-unknown"]
    result = RUNNER.invoke(app, ["bounce", "explain", "-", "--json"], input=returned.read_bytes())
    assert [each["recipient"] for each in json.loads(result.stdout)] == ["taro@b.example", "b@b.example"]


def test_a_bare_reply() -> None:
    result = RUNNER.invoke(app, ["bounce", "explain", "--json", "--reply", "550 5.1.1 No such user"])
    value = json.loads(result.stdout)
    assert (value["class"], value["hard"], value["reply_code"], value["cmc_status"]) == ("user-unknown", True, 550, 2)


@pytest.mark.parametrize("arguments", [[], ["x", "--reply", "550 no"], ["--reply", "hello"], ["/does/not/exist"]])
def test_wrong_usage(arguments: list[str]) -> None:
    result = RUNNER.invoke(app, ["bounce", "explain", *arguments])
    assert result.exit_code in (1, 2)
    assert "relayd: " in result.output
    assert "Traceback" not in result.output
