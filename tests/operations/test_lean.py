"""What processes that run for long have loaded: every module counts, once for each of them, as long as they live."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from relayd.workers import examination
from relayd.workers.examination import ExaminationError, examine
from relayd.workers.interpreter import command
from relayd.workers.sealing import seal, unseal
from tests.operations.configs import config


def loaded(script: str) -> set[str]:
    """Names of modules that a fresh interpreter has loaded after `script`, with those of their packages."""
    code = f"{script}\nimport sys; print(*(name for name, module in sys.modules.items() if module is not None))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_a_supervisor_loads_neither_the_configuration_nor_what_its_workers_are_made_of() -> None:
    found = loaded("import relayd.workers.daemon")
    assert "relayd.workers.supervisor" in found
    heavy = {"pydantic", "yaml", "cryptography", "argon2", "typer", "click", "aiosmtpd", "aiosmtplib", "dns", "sqlite3"}
    parts = {f"relayd.{part}" for part in ("config", "cli", "app", "delivery", "domains", "intake", "listener", "web")}
    assert not found & (heavy | parts)


@pytest.mark.parametrize("role", ["daemon", "worker", "examine"])
def test_no_process_of_the_daemon_loads_what_shows_tracebacks_in_colour(role: str) -> None:
    script = f"""
import contextlib
from relayd.workers.__main__ import main
with contextlib.suppress(IndexError):
    main([{role!r}])  # without its arguments it ends, once it has loaded what it needs
import relayd.logs
"""
    assert not loaded(script) & {"rich", "pygments"}


def test_orders_carry_the_whole_configuration_and_show_no_secret() -> None:
    upstreams = {"acme": {"host": "smtp.example", "username": "u", "password": "canary-one"}}
    whole = config(upstreams=upstreams, routes=[{"upstream": "acme"}], workers=2)
    orders = seal(whole)
    assert unseal(orders.sealed) == whole
    assert (orders.worker_count, orders.listeners[0].name, orders.listeners[0].bind) == (2, "local", ("127.0.0.1:0",))
    assert orders.log.secrets == {"canary-one"}
    assert "canary" not in repr(orders)
    with pytest.raises(TypeError):
        unseal(b"N.")


def test_a_worker_without_keys_and_domains_loads_neither_openssl_nor_a_resolver() -> None:
    found = loaded("import relayd.app, relayd.workers.worker")
    assert "relayd.delivery.dkim" in found
    assert not found & {"cryptography", "dns", "yaml", "typer", "argparse"}


async def test_a_daemon_that_was_upgraded_on_disk_asks_to_be_restarted(tmp_path: Path) -> None:
    file = tmp_path / "relayd.yaml"
    file.write_text("hostname: x.example\n")
    orders = seal(config())
    report = await examine(file, orders)
    assert report.orders is None and any("upstreams" in fault for fault in report.faults)
    with pytest.raises(ExaminationError, match="restart it"):
        await examine(file, dataclasses.replace(orders, version="0.0.1"))


@pytest.mark.parametrize("answer", ["b''", "b'garbage'", "pickle.dumps(7)"])
async def test_an_examiner_that_tells_nothing_usable_is_no_fault_of_the_daemon(
    answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = seal(config())
    script = f"import pickle, sys; sys.stdout.buffer.write({orders.version.encode()!r} + b'\\n' + {answer})"
    monkeypatch.setattr(examination, "command", lambda *words: (sys.executable, "-c", script))
    with pytest.raises(ExaminationError, match="told"):
        await examine(tmp_path / "relayd.yaml", orders)


def test_another_process_of_ours_looks_into_the_working_directory_only_where_we_came_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["/usr/local/bin", *sys.path])
    assert command("worker", "5") == (sys.executable, "-P", "-m", "relayd.workers", "worker", "5")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert command("worker") == (sys.executable, "-m", "relayd.workers", "worker")
