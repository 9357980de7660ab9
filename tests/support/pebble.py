"""pebble on loopback: Let's Encrypt's own CA for tests, which looks up hosts in a DNS of ours and comes to any port."""

from __future__ import annotations

import json
import os
import shutil
import ssl
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

import trustme

from tests.support.ports import free_ports

PROGRAM = shutil.which("pebble", path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin")
_PATIENCE = 30.0


class Pebble:
    """A running pebble. It refuses one nonce in twenty, as it does by default: clients must bear that."""

    def __init__(self, dns: str, http_port: int) -> None:
        """`dns`: host:port of the server it asks. `http_port`: where it looks for proofs."""
        self.dns, self.http_port, self.port = dns, http_port, 0
        self._directory = tempfile.TemporaryDirectory(prefix="pebble-")
        self.ca_file = Path(self._directory.name) / "ca.pem"
        self._management = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._ca = trustme.CA()

    def __enter__(self) -> Self:
        directory = Path(self._directory.name)
        self._ca.cert_pem.write_to_path(str(self.ca_file))
        own = self._ca.issue_cert("127.0.0.1", "localhost")
        own.cert_chain_pems[0].write_to_path(str(directory / "cert.pem"))
        own.private_key_pem.write_to_path(str(directory / "key.pem"))
        for _ in range(5):
            wanted, self._management = free_ports(2)
            if self._start(directory, wanted):
                self.port = wanted
                return self
            self.stop()
        raise AssertionError((directory / "log").read_text())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._directory.cleanup()

    @property
    def directory(self) -> str:
        """What clients begin with."""
        return f"https://127.0.0.1:{self.port}/dir"

    def root(self) -> str:
        """The certificate that all it issues lead to, as PEM."""
        with urllib.request.urlopen(
            f"https://127.0.0.1:{self._management}/roots/0", context=self._context(), timeout=_PATIENCE
        ) as answer:
            return str(answer.read().decode())

    def begin_again(self) -> None:
        """Start it once more after `stop`, at the same place."""
        assert self._start(Path(self._directory.name), self.port), self.log()

    def stop(self) -> None:
        """End it: it forgets all accounts."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(_PATIENCE)
            self._process = None

    def _start(self, directory: Path, port: int) -> bool:
        settings = {
            "listenAddress": f"127.0.0.1:{port}",
            "managementListenAddress": f"127.0.0.1:{self._management}",
            "certificate": str(directory / "cert.pem"),
            "privateKey": str(directory / "key.pem"),
            "httpPort": self.http_port,
            "tlsPort": 1,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": False,
            "certificateValidityPeriod": 90 * 86400,
            "domainBlocklist": ["refused.example.jp"],
        }
        (directory / "config.json").write_text(json.dumps({"pebble": settings}))
        assert PROGRAM is not None
        with (directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [PROGRAM, "-config", str(directory / "config.json"), "-dnsserver", self.dns],
                stdout=log,
                stderr=log,
                env={**os.environ, "PEBBLE_VA_NOSLEEP": "1", "PEBBLE_AUTHZREUSE": "0"},
            )
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"https://127.0.0.1:{port}/dir", context=self._context(), timeout=5):
                    return True
            except OSError:
                time.sleep(0.05)
        return False

    def log(self) -> str:
        """What it said."""
        return (Path(self._directory.name) / "log").read_text()

    def _context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.ca_file))
