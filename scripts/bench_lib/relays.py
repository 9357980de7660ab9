"""The relays that can be measured. Each starts on free ports of the loopback, in a directory of its own."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

KEYS = ("rsa", "ed25519")


class Relay(Protocol):
    """Something that takes mail on a port and hands it to the sink."""

    name: str
    port: int

    @property
    def pids(self) -> list[int]:
        """The roots of its process trees."""

    def stop(self) -> None:
        """End it."""


class Relayd:
    """Our own."""

    def __init__(self, directory: Path, sink: int, *, workers: int | str, sign: Sequence[str]) -> None:
        """`sign`: kinds of key that sign every mail, of KEYS. Raises RuntimeError when it does not start."""
        self.name = "relayd" + ("" if not sign else " " + "+".join(sign))
        self.port = free_port()
        config = directory / "relayd.yaml"
        # JSON is YAML
        config.write_text(json.dumps(_config(directory, self.port, sink, workers, sign), indent=1))
        self._log = (directory / "relayd.log").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "relayd", "serve", "--config", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        self._wait(directory / "relayd.log")

    @property
    def pids(self) -> list[int]:
        return [self._process.pid]

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(40)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _wait(self, log: Path) -> None:
        deadline = time.monotonic() + 60
        while self._process.poll() is None and time.monotonic() < deadline:
            if re.search(rb'"event":"ready"', log.read_bytes()):
                return
            time.sleep(0.05)
        self.stop()
        raise RuntimeError(f"relayd did not start:\n{log.read_text()[-2000:]}")


def _config(directory: Path, port: int, sink: int, workers: int | str, sign: Sequence[str]) -> dict[str, object]:
    keys = []
    for kind in sign:
        path = directory / f"{kind}.pem"
        write_key(path, kind)
        keys.append({"domain": "bench.example", "selector": kind, "key": str(path)})
    return {
        "hostname": "relay.bench.example",
        "data_dir": str(directory / "data"),
        "workers": workers,
        "listeners": [
            {
                "name": "bench",
                "bind": [f"127.0.0.1:{port}"],
                "tls": "none",
                "access": "network",
                "networks": ["127.0.0.0/8"],
            }
        ],
        "limits": {"connections_per_ip": 1000},
        "upstreams": {
            "sink": {"host": "127.0.0.1", "port": sink, "tls": "none", "limits": {"connections": 20}},
        },
        "routes": [{"upstream": "sink"}],
        "dkim": keys,
        "log": {"format": "json", "mail": str(directory / "mail.log")},
        "spool": {"min_free": "0%"},
    }


def write_key(path: Path, kind: str) -> None:
    """A fresh private key of this kind, readable by its owner only."""
    key = rsa.generate_private_key(65537, 2048) if kind == "rsa" else ed25519.Ed25519PrivateKey.generate()
    path.touch(0o600)
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def free_port() -> int:
    """A port of the loopback that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
