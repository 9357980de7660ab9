"""Any other relay as a peer: a command that keeps running and takes mail on a port of the loopback."""

from __future__ import annotations

import shlex
import subprocess

from bench_lib.postfix import await_port
from bench_lib.relays import Setup, end


class Command:
    """NAME=PORT=COMMAND; `{sink}` in the command is the upstream's port."""

    def __init__(self, case: str, setup: Setup) -> None:
        """Raises RuntimeError when nothing listens on the port within half a minute."""
        self.name, port, command = case.split("=", 2)
        self.port = int(port)
        words = shlex.split(command.replace("{sink}", str(setup.sink)))
        self._process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            await_port(self.port)
        except RuntimeError:
            self.stop()
            raise

    @property
    def pids(self) -> list[int]:
        return [self._process.pid]

    def stop(self) -> None:
        end(self._process, 20)
