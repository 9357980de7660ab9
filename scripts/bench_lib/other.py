"""Other relays as peers: those that `scripts/peers` knows how to start, or any command that takes mail on a port."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from bench_lib.postfix import await_port, listens
from bench_lib.relays import Setup, end, free_port, stopped_unless_started

_SCRIPTS = Path(__file__).parent.parent / "peers"
SCRIPTED = ("exim", "haraka", "opensmtpd")


def why_not_scripted(name: str) -> str | None:
    """What keeps a peer of SCRIPTED from running here; None when nothing does."""
    asked = subprocess.run([_SCRIPTS / name, "--check"], capture_output=True, text=True, check=False)
    return None if asked.returncode == 0 else asked.stderr.strip() or f"its check ended with {asked.returncode}"


def scripted(name: str, directory: Path, setup: Setup) -> Command:
    """A peer of SCRIPTED. Raises RuntimeError when it does not start."""
    port = free_port()
    return Command(name, port, [str(_SCRIPTS / name), str(port), str(setup.sink), str(directory)])


def parse_command(case: str) -> tuple[str, int, list[str]]:
    """The parts of NAME=PORT=COMMAND. Raises ValueError."""
    name, port, command = case.split("=", 2)
    words = shlex.split(command)
    if not words:
        raise ValueError("no command")
    return name, int(port), words


def given(case: str, directory: Path, setup: Setup) -> Command:
    """NAME=PORT=COMMAND; `{sink}` is the upstream's port, `{directory}` a place for its queue. Raises RuntimeError."""
    name, port, words = parse_command(case)
    return Command(
        name, port, [word.replace("{sink}", str(setup.sink)).replace("{directory}", str(directory)) for word in words]
    )


class Command:
    """A command that keeps running and takes mail on a port of the loopback."""

    def __init__(self, name: str, port: int, words: Sequence[str]) -> None:
        """Raises RuntimeError when it ends, or nothing listens on the port within half a minute."""
        self.name, self.port = name, port
        if listens(port):
            raise RuntimeError(f"{name}: something else listens on port {port} already")
        try:
            self._process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        except OSError as error:
            raise RuntimeError(f"{name}: {error}") from error
        with stopped_unless_started(self):
            await_port(port, self._process)

    @property
    def pids(self) -> list[int]:
        return [self._process.pid]

    def stop(self) -> None:
        end(self._process, 20)
