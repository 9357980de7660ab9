"""Load generator and sink as processes: our own, or Postfix's smtp-source and smtp-sink where they are installed."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bench_lib.dialogue import sink_count
from bench_lib.relays import Certificate


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent."""

    mails: int
    connections: int
    size: int
    recipients: int
    reuse: bool
    timeout: float
    tls: bool = False
    rate: float | None = None
    """Mails a second; None: as many as go through."""
    times: Path | None = None
    """Number the mails and write here when each was promised."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What the generator saw."""

    seconds: float
    accepted: int
    refused: int
    p50: float | None
    """Seconds from the final dot to 250; None where the tool does not tell."""
    p99: float | None


class Sink(Protocol):
    """Takes mail and counts it."""

    port: int

    def count(self) -> int:
        """Mails so far."""

    def stop(self) -> None:
        """End it."""


class OwnSink:
    """sink.py; with `tls` TLS from the first octet."""

    def __init__(self, *, tls: Certificate | None = None, port: int = 0, times: Path | None = None) -> None:
        command = [sys.executable, "-m", "bench_lib.sink", "--port", str(port)]
        if tls is not None:
            command += ["--certificate", str(tls.certificate), "--key", str(tls.key)]
        if times is not None:
            command += ["--times", str(times)]
        self._tls = tls is not None
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def count(self) -> int:
        return sink_count(self.port, tls=self._tls)

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()


def own_source(port: int, load: Load) -> Sent:
    """generator.py. Raises subprocess.CalledProcessError."""
    command = [sys.executable, "-m", "bench_lib.generator", "--port", str(port), "--count", str(load.mails)]
    command += ["--connections", str(load.connections), "--size", str(load.size), "--timeout", str(load.timeout)]
    command += ["--recipients", str(load.recipients)] + ([] if load.reuse else ["--new-connections"])
    command += ["--tls"] if load.tls else []
    command += [] if load.rate is None else ["--rate", str(load.rate)]
    command += [] if load.times is None else ["--times", str(load.times)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, check=True)
    return Sent(**json.loads(done.stdout))


class PostfixSink:
    """smtp-sink, which shows a running count."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        user = ["-u", "nobody"] if os.getuid() == 0 else []
        # a pipe would fill while nobody asks, and the sink stand still
        self._shown = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop()
        self._process = subprocess.Popen(
            [_find("smtp-sink"), "-c", *user, f"127.0.0.1:{self.port}", "1000"],
            stdout=self._shown,
            stdin=subprocess.DEVNULL,
        )
        self._wait()

    def _wait(self) -> None:
        for _ in range(100):
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise RuntimeError("smtp-sink did not start")

    def count(self) -> int:
        end = os.fstat(self._shown.fileno()).st_size
        shown = re.findall(rb"(\d+)\r", os.pread(self._shown.fileno(), 64, max(end - 64, 0)))
        return int(shown[-1]) if shown else 0

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._shown.close()


def postfix_source(port: int, load: Load) -> Sent:
    """smtp-source. Raises subprocess.CalledProcessError: it gives up at the first refusal."""
    reuse = ["-d"] if load.reuse else []
    command = [_find("smtp-source"), *reuse, "-s", str(load.connections), "-m", str(load.mails), "-l", str(load.size)]
    command += ["-f", "app@bench.example", "-t", "you@example.org", "-r", str(load.recipients)]
    started = time.perf_counter()
    subprocess.run([*command, f"127.0.0.1:{port}"], stdin=subprocess.DEVNULL, check=True, timeout=load.timeout)
    return Sent(time.perf_counter() - started, load.mails, 0, None, None)


def has_postfix_tools() -> bool:
    """Whether smtp-source and smtp-sink are installed."""
    return all(map(_which, ("smtp-source", "smtp-sink")))


def _which(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


def _find(name: str) -> str:
    path = _which(name)
    if path is None:
        raise RuntimeError(f"{name} is not installed: it comes with postfix")
    return path
