"""The secret is the configured one, or made once, privately, and the same for everyone ever after."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from relayd.config.load import load
from relayd.config.models import Config
from relayd.config.secret import resolve_secret, secret_path
from tests.support.config_files import minimal, written


def config(directory: Path, extra: str = "") -> Config:
    return load(written(directory, minimal(extra)), {"S": "x" * 40})


def test_a_configured_secret_is_used_and_none_is_made(tmp_path: Path) -> None:
    given = config(tmp_path, "secret: !env S\n")
    assert resolve_secret(given) == b"x" * 40
    assert not secret_path(given).exists()


def test_a_missing_secret_is_made_once_and_privately(tmp_path: Path) -> None:
    made = config(tmp_path, "secret: !file /nowhere/secret\n")
    secret = resolve_secret(made)
    assert len(secret) >= 32
    assert resolve_secret(made) == secret
    assert stat.S_IMODE(secret_path(made).stat().st_mode) == 0o600
    assert stat.S_IMODE(made.data_dir.stat().st_mode) == 0o700
    assert [path.name for path in made.data_dir.iterdir()] == ["secret"]


def test_two_machines_make_two_secrets(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert resolve_secret(config(tmp_path / "a")) != resolve_secret(config(tmp_path / "b"))


def test_workers_that_start_together_get_the_same_secret(tmp_path: Path) -> None:
    made = config(tmp_path)
    with ThreadPoolExecutor(16) as pool:
        assert len(set(pool.map(lambda _: resolve_secret(made), range(64)))) == 1


def test_an_empty_secret_file_is_not_taken(tmp_path: Path) -> None:
    made = config(tmp_path)
    made.data_dir.mkdir()
    secret_path(made).touch(0o600)
    with pytest.raises(OSError, match="is empty"):
        resolve_secret(made)
