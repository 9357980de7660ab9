"""The scripts: sound shell, an environment that is up to date, an installer that can be run twice."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.ports import free_port

ROOT = Path(__file__).parent.parent.parent
SHELL = [
    "scripts/run",
    "scripts/test",
    "scripts/check",
    "scripts/install-systemd",
    "scripts/lock/update",
    "scripts/bench",
    "scripts/profile",
    "scripts/torture",
    "scripts/lib/peer.sh",
    "scripts/lib/venv.sh",
    "scripts/peers/exim",
    "scripts/peers/haraka",
    "scripts/peers/opensmtpd",
    ".ci/run",
]
PASSING_ON = """
import asyncio, pathlib, sys

async def pass_on(reader, writer):
    while octets := await reader.read(65536):
        writer.write(octets)
    writer.close()

async def take(reader, writer):
    upstream = await asyncio.open_connection("127.0.0.1", int(sys.argv[2]))
    await asyncio.gather(pass_on(reader, upstream[1]), pass_on(upstream[0], writer))

async def main():
    assert pathlib.Path(sys.argv[3]).is_dir()
    server = await asyncio.start_server(take, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()

asyncio.run(main())
"""
"""The simplest relay: it passes on what either side says."""
MEASUREMENTS = [
    "--mails 40 --sign none --tls client upstream --workers 1",
    "recipients --mails 1 --recipients 30 --verp --workers 1",
]


def run(*command: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        check=False,
        cwd=ROOT,
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=100,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("script", SHELL)
def test_the_shell_understands_it(script: str) -> None:
    assert run("bash", "-n", script).stderr == ""


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck here")
@pytest.mark.parametrize("script", SHELL)
def test_shellcheck_has_nothing_to_say(script: str) -> None:
    answer = run("shellcheck", "-x", script)
    assert answer.returncode == 0, answer.stdout


@pytest.mark.parametrize("script", [name for name in SHELL if not name.endswith(".sh")])
def test_it_can_be_run(script: str) -> None:
    assert (ROOT / script).stat().st_mode & stat.S_IXUSR


def find_python(wanted: Path | str, path: Path) -> str:
    answer = run(
        "bash", "-c", ". scripts/lib/venv.sh; find_python", PYTHON=str(wanted), PATH=f"{path}:{os.environ['PATH']}"
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()


def test_a_python_that_is_too_old_or_broken_is_passed_over(tmp_path: Path) -> None:
    shim = tmp_path / "python3.11"
    shim.write_text("#!/bin/sh\necho 'pyenv: python3.11: command not found' >&2\nexit 127\n")
    shim.chmod(0o755)
    (tmp_path / "python3").symlink_to(sys.executable)
    assert find_python(shim, tmp_path) in ("/usr/bin/python3", "python3")


def test_the_python_that_is_asked_for_comes_first(tmp_path: Path) -> None:
    assert find_python(sys.executable, tmp_path) == sys.executable


def test_the_python_of_the_distribution_comes_next_where_it_makes_environments(tmp_path: Path) -> None:
    system = "/usr/bin/python3"
    usable = "import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))"
    expected = Path(system).exists() and run(system, "-c", usable).returncode == 0
    assert (find_python("", tmp_path) == system) is expected


def test_an_environment_that_is_up_to_date_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    stamp = run("bash", "-c", "cat scripts/lock/dev.txt pyproject.toml | sha256sum | cut -d' ' -f1").stdout.strip()
    (tmp_path / f".relayd-dev-{stamp}").touch()
    answer = run("bash", "-ec", ". scripts/lib/venv.sh; ensure_venv dev; echo done", RELAYD_VENV=str(tmp_path))
    assert (answer.stdout, answer.stderr) == ("done\n", "")


def install(root: Path) -> None:
    answer = run("scripts/install-systemd", "--root", str(root), "--prefix", "/srv/relayd", "--no-venv")
    assert answer.returncode == 0, answer.stderr
    assert "systemctl enable --now relayd" in answer.stdout


def test_the_installer_lays_everything_out(tmp_path: Path) -> None:
    install(tmp_path)
    unit = (tmp_path / "etc/systemd/system/relayd.service").read_text()
    assert "ExecStart=/usr/bin/env /srv/relayd/venv/bin/relayd serve --config /etc/relayd/relayd.yaml" in unit
    settings = (tmp_path / "etc/relayd/relayd.yaml").read_text()
    assert re.search(r"^data_dir: /var/lib/relayd$", settings, re.M)
    assert re.search(r"^secret: !file /run/credentials/relayd.service/secret$", settings, re.M)
    secret = tmp_path / "etc/relayd/credentials/secret"
    assert secret.stat().st_mode & 0o077 == 0
    assert len(secret.read_text().strip()) >= 43
    assert (tmp_path / "etc/relayd/relayd.yaml").stat().st_mode & 0o007 == 0


def test_what_it_installs_is_a_valid_configuration(tmp_path: Path) -> None:
    from relayd.config.load import load

    install(tmp_path)
    config = load(tmp_path / "etc/relayd/relayd.yaml")
    assert config.data_dir == Path("/var/lib/relayd")


def test_run_again_it_keeps_what_an_administrator_changed(tmp_path: Path) -> None:
    install(tmp_path)
    settings, secret = tmp_path / "etc/relayd/relayd.yaml", tmp_path / "etc/relayd/credentials/secret"
    settings.write_text("# mine\n")
    before = secret.read_text()
    install(tmp_path)
    assert settings.read_text() == "# mine\n"
    assert secret.read_text() == before


def test_the_installer_refuses_what_it_does_not_know() -> None:
    answer = run("scripts/install-systemd", "--rot", "/tmp")
    assert answer.returncode == 2
    assert "--root DIR" in answer.stderr


def bench(directory: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench_lib", *arguments, "--directory", str(directory)],
        check=False,
        cwd=ROOT / "scripts",
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=100,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("measurement", MEASUREMENTS)
def test_a_measurement_sends_its_mail_and_prints_a_table(measurement: str, tmp_path: Path) -> None:
    answer = bench(tmp_path, *measurement.split())
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "|---|" in answer.stdout


def test_any_command_with_a_port_is_a_peer_and_gets_a_directory_of_its_own(tmp_path: Path) -> None:
    relay = tmp_path / "relay.py"
    relay.write_text(PASSING_ON)
    port = free_port()
    peer = f"own={port}={sys.executable} {relay} {port} {{sink}} {{directory}}"
    answer = bench(tmp_path, "--mails", "20", "--warm-up", "0", "--tool", "own", "--sign", "--peer", peer)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert re.search(r"^\| own \|.*\| none \|$", answer.stdout, re.M)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("false {sink}", "false ended with status 1 before it listened"),
        ("/there/is/no/such-relay", "broken: [Errno 2] No such file or directory: '/there/is/no/such-relay'"),
    ],
)
def test_a_peer_that_does_not_start_is_named_without_a_traceback(command: str, message: str, tmp_path: Path) -> None:
    answer = bench(tmp_path, "--sign", "--peer", f"broken={free_port()}={command}")
    assert (answer.returncode, answer.stdout, answer.stderr) == (1, "", f"bench: {message}\n")


def test_another_relay_on_the_port_of_a_peer_is_not_measured_instead(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as there:
        port = there.getsockname()[1]
        answer = bench(tmp_path, "--sign", "--peer", f"own={port}=sleep 100")
    assert (answer.returncode, answer.stdout) == (1, "")
    assert answer.stderr == f"bench: own: something else listens on port {port} already\n"


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_a_benchmark_that_is_interrupted_leaves_nothing_running(end: signal.Signals, tmp_path: Path) -> None:
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    peer = f"own={free_port()}=sh -c 'exec >{fifo}; echo up; exec sleep 1000'"
    command = [sys.executable, "-m", "bench_lib", "--directory", str(tmp_path), "--sign", "--peer", peer]
    process = subprocess.Popen(command, cwd=ROOT / "scripts", stderr=subprocess.PIPE)
    with fifo.open() as alive:
        assert alive.readline() == "up\n"
        process.send_signal(end)
        assert alive.read() == ""  # its end: nobody holds the other side any more
    assert process.communicate(timeout=20) == (None, b"")
    assert process.returncode == 130


@pytest.mark.parametrize("peer", ["exin", "own=2525", "own=port=sleep 1", "own=2525=", "own=2525=sleep '1"])
def test_what_is_no_peer_is_said_before_anything_is_measured(peer: str, tmp_path: Path) -> None:
    answer = bench(tmp_path, "--peer", peer)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert f"error: {peer}: neither one of postfix, " in answer.stderr


@pytest.mark.parametrize(("name", "variable"), [("exim", "EXIM"), ("haraka", "HARAKA"), ("opensmtpd", "SMTPD")])
def test_a_peer_that_is_not_installed_is_said_before_anything_is_measured(
    name: str, variable: str, tmp_path: Path
) -> None:
    answer = bench(tmp_path, "--peer", name, **{variable: "/there/is/no/such-relay"})
    assert (answer.returncode, answer.stdout) == (2, "")
    assert f"error: {name}: not installed ({variable}: " in answer.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces are for root here")
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_whatever_a_peer_started_ends_with_its_script(end: signal.Signals, tmp_path: Path) -> None:
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    script = f'. scripts/lib/peer.sh; run_apart "" \'setsid sh -c "echo up; sleep 1000" >"$1" & wait\' {fifo}'
    process = subprocess.Popen(["bash", "-euc", script], cwd=ROOT, start_new_session=True)
    with fifo.open() as alive:
        assert alive.readline() == "up\n"
        process.send_signal(end)
        assert alive.read() == ""  # its end: nobody holds the other side any more
    process.wait(20)
