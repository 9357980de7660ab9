"""The relays that can be measured. Each starts on free ports of the loopback, in a directory of its own."""

from __future__ import annotations

import contextlib
import datetime
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from relayd.config.models import TLSFiles
from relayd.listener.certificate import ensure_certificate

KEYS = ("rsa", "ed25519")


@dataclass(frozen=True, slots=True)
class Certificate:
    """What the servers of a run show, with names for the loopback; it vouches for itself."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Setup:
    """How a relay is to be set up."""

    sink: int
    """The upstream's port."""
    workers: int | str = "auto"
    sign: Sequence[str] = ()
    """Kinds of key that sign every mail, of KEYS."""
    tls: Certificate | None = None
    client_tls: bool = False
    """Clients come over TLS, from the first octet."""
    upstream_tls: bool = False
    """The upstream wants TLS, from the first octet."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """More keys of relayd's configuration."""


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

    def __init__(self, directory: Path, setup: Setup) -> None:
        """Raises RuntimeError when it does not start."""
        self.name = "relayd" + ("" if not setup.sign else " " + "+".join(setup.sign))
        self.port = free_port()
        self._directory = directory
        self._config = directory / "relayd.yaml"
        # JSON is YAML
        self._config.write_text(json.dumps(_config(directory, self.port, setup), indent=1))
        self.start()

    def start(self) -> float:
        """Start it; the seconds until it was ready. Raises RuntimeError when it is not."""
        began = time.monotonic()
        with (self._directory / "relayd.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "relayd", "serve", "--config", str(self._config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        with stopped_unless_started(self):
            self._wait(self._directory / "relayd.log")
        return time.monotonic() - began

    @property
    def pids(self) -> list[int]:
        return [self._process.pid]

    def stop(self) -> None:
        end(self._process, 40)

    def _wait(self, log: Path) -> None:
        deadline = time.monotonic() + 60
        while self._process.poll() is None and time.monotonic() < deadline:
            if re.search(rb'"event":"ready"', log.read_bytes()):
                return
            time.sleep(0.05)
        raise RuntimeError(f"relayd did not start:\n{log.read_text()[-2000:]}")


def _config(directory: Path, port: int, setup: Setup) -> dict[str, object]:
    keys = []
    for kind in setup.sign:
        path = directory / f"{kind}.pem"
        write_key(path, kind)
        keys.append({"domain": "bench.example", "selector": kind, "key": str(path)})
    upstream: dict[str, object] = {
        "host": "127.0.0.1",
        "port": setup.sink,
        "tls": "none",
        "limits": {"connections": 20},
    }
    config: dict[str, Any] = {
        "hostname": "relay.bench.example",
        "data_dir": str(directory / "data"),
        "workers": setup.workers,
        "listeners": [
            {
                "name": "bench",
                "bind": [f"127.0.0.1:{port}"],
                "tls": "implicit" if setup.client_tls else "none",
                "access": "network",
                "networks": ["127.0.0.0/8"],
            }
        ],
        "limits": {"connections_per_ip": 1000},
        "upstreams": {"sink": upstream},
        "routes": [{"upstream": "sink"}],
        "dkim": keys,
        "log": {"format": "json", "mail": str(directory / "mail.log")},
        "spool": {"min_free": "0%"},
    }
    if setup.tls is not None:
        config["tls"] = {"certificate": str(setup.tls.certificate), "key": str(setup.tls.key)}
        if setup.upstream_tls:
            upstream |= {"tls": "required", "implicit_tls": True, "ca_file": str(setup.tls.certificate)}
    _merge(config, setup.extra)
    return config


def _merge(config: dict[str, Any], extra: Mapping[str, Any]) -> None:
    for key, value in extra.items():
        if isinstance(value, dict) and isinstance(found := config.get(key), dict):
            _merge(found, value)
        else:
            config[key] = value


def write_key(path: Path, kind: str) -> None:
    """A fresh private key of this kind, readable by its owner only."""
    key = rsa.generate_private_key(65537, 2048) if kind == "rsa" else ed25519.Ed25519PrivateKey.generate()
    path.touch(0o600)
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


@contextlib.contextmanager
def stopped_unless_started(relay: Relay) -> Iterator[None]:
    """Around what starts it: whatever ends that early, an interrupt too, leaves nothing running."""
    try:
        yield
    except BaseException:
        relay.stop()
        raise


def end(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Ask a process to end, and make it where it has not after so long."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port() -> int:
    """A port of the loopback that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def certificate(directory: Path) -> Certificate:
    """A fresh self-signed certificate for the loopback."""
    files = TLSFiles(certificate=directory / "tls" / "fullchain.pem", key=directory / "tls" / "privkey.pem")
    ensure_certificate(files, directory, "localhost", datetime.datetime.now(datetime.UTC))
    files.certificate.parent.chmod(0o755)  # the certificate is for everybody, Postfix's processes too
    return Certificate(files.certificate, files.key)
