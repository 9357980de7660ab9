"""A real Postfix of our own: private configuration, queue and ports. `Postfix` is an upstream with TLS and a login.

That one relays all it takes to a capture server, so that a test sees the octets that would have gone to the world.
remote_postfix.py has the other side: one that reports what became of the mail.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Self

import trustme

from tests.support.capture import Capture
from tests.support.ports import free_ports

USERNAME = "relayd"
PASSWORD = "horse battery staple"
HOSTNAME = "upstream.test"
UNKNOWN = "unknown@example.net"
"""A recipient that it refuses: 550 5.1.1."""
BUSY = "busy@example.net"
"""A recipient that it defers: 450 4.2.1."""

_SBIN = "/usr/sbin:/usr/bin:/sbin:/bin"
PROGRAM = shutil.which("postfix", path=_SBIN)
SASLPASSWD = shutil.which("saslpasswd2", path=_SBIN)


def why_not() -> str | None:
    """What keeps Postfix from running here; None when nothing does."""
    if PROGRAM is None or SASLPASSWD is None:
        return "Postfix or sasl2-bin is not installed (scripts/test installs them as root)"
    return None if os.geteuid() == 0 else "Postfix starts as root only"


class Instance:
    """One private Postfix: started on entry, gone with all its files on exit. What it sends on goes to `capture`."""

    def __init__(self, ports: int) -> None:
        # not below pytest's directories: those are closed to the users that Postfix runs as, and too long for sockets
        self.directory = Path(tempfile.mkdtemp(prefix="postfix-", dir="/tmp"))
        self.directory.chmod(0o755)
        self.config = self.directory / "etc"
        self.capture = Capture()
        self.ports = free_ports(ports, host="::")

    def __enter__(self) -> Self:
        self.capture.__enter__()
        self._write()
        self._postfix("start")
        for port in self.ports:
            _await_port(port)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._postfix("abort", check=False)
        self._await_end()
        shutil.rmtree(self.directory, ignore_errors=True)
        self.capture.__exit__(kind, error, trace)

    @property
    def log(self) -> str:
        """Its mail log so far."""
        file = self.directory / "log" / "mail.log"
        return file.read_text(errors="replace") if file.exists() else ""

    def _postfix(self, command: str, *, check: bool = True) -> None:
        assert PROGRAM is not None
        env = {"PATH": _SBIN, "LANG": "C"}
        done = subprocess.run(
            [PROGRAM, "-c", str(self.config), command], env=env, capture_output=True, text=True, timeout=60, check=False
        )
        if check and done.returncode:
            raise RuntimeError(f"postfix {command}: {done.stdout}{done.stderr}\n{self.log}")

    def _await_end(self) -> None:
        pid_file = self.directory / "queue" / "pid" / "master.pid"
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                os.kill(int(pid_file.read_text()), 0)
            except (OSError, ValueError):
                return
            time.sleep(0.02)

    def _write(self) -> None:
        for name in ("etc", "queue", "log"):
            (self.directory / name).mkdir()
        data = self.directory / "data"
        data.mkdir()
        shutil.chown(data, "postfix", "postfix")
        (self.config / "main.cf").write_text(self._main())
        (self.config / "master.cf").write_text(self._master())

    def _main(self) -> str:
        return "".join(f"{name} = {value}\n" for name, value in (self._common() | self._settings()).items())

    def _common(self) -> dict[str, object]:
        """What any private Postfix needs."""
        return {
            "compatibility_level": "3.6",
            "queue_directory": self.directory / "queue",
            "data_directory": self.directory / "data",
            "maillog_file": self.directory / "log" / "mail.log",
            "maillog_file_prefixes": self.directory / "log",
            "mydestination": "",
            "inet_interfaces": "all",
            "inet_protocols": "all",
            "alias_maps": "",
            "alias_database": "",
            "local_recipient_maps": "",
            "smtpd_client_connection_count_limit": "0",
            "smtpd_peername_lookup": "no",
            "smtp_tls_security_level": "none",
        }

    def _settings(self) -> dict[str, object]:
        """What this one needs besides."""
        raise NotImplementedError

    def _master(self) -> str:
        lines = self._doors()
        lines += [f"{name} unix {flags}" for name, flags in _SERVICES.items()]
        lines.append("postlog unix-dgram n - n - 1 postlogd")
        return "\n".join(lines) + "\n"

    def _doors(self) -> list[str]:
        """Its listeners, as master.cf names them."""
        raise NotImplementedError


class Postfix(Instance):
    """Ports: `smtps` (TLS from the first octet), `submission` and `alternative` (STARTTLS); on IPv4 and IPv6."""

    def __init__(self, ca: trustme.CA) -> None:
        super().__init__(3)
        self.ca_file = self.directory / "ca.pem"
        ca.cert_pem.write_to_path(str(self.ca_file))
        certificate = ca.issue_cert(HOSTNAME, "localhost", "127.0.0.1", "::1")
        certificate.private_key_and_cert_chain_pem.write_to_path(str(self.directory / "cert.pem"))
        (self.directory / "cert.pem").chmod(0o600)
        self.smtps, self.submission, self.alternative = self.ports

    def _write(self) -> None:
        super()._write()
        self._write_sasl()

    def _write_sasl(self) -> None:
        assert SASLPASSWD is not None
        database = self.directory / "sasldb2"
        (self.config / "sasl").mkdir()
        # Debian's Postfix looks beside its main.cf
        (self.config / "sasl" / "smtpd.conf").write_text(
            f"pwcheck_method: auxprop\nauxprop_plugin: sasldb\nmech_list: PLAIN LOGIN\nsasldb_path: {database}\n"
        )
        command = [SASLPASSWD, "-p", "-c", "-f", str(database), "-u", HOSTNAME, USERNAME]
        subprocess.run(command, input=PASSWORD.encode(), check=True, capture_output=True, timeout=60)
        shutil.chown(database, "postfix", "postfix")

    def _settings(self) -> dict[str, object]:
        answers = f"{{ {UNKNOWN} = 550 5.1.1 No such user }}, {{ {BUSY} = 450 4.2.1 The mailbox is busy }}"
        return {
            "myhostname": HOSTNAME,
            "mynetworks": "192.0.2.255/32",
            "default_transport": f"smtp:[127.0.0.1]:{self.capture.port}",
            "relay_transport": f"smtp:[127.0.0.1]:{self.capture.port}",
            # nothing of a message is touched on the way through
            "local_header_rewrite_clients": "",
            "disable_mime_output_conversion": "yes",
            "smtp_line_length_limit": "0",
            "smtp_connection_cache_on_demand": "yes",
            "message_size_limit": str(80 * 1024 * 1024),
            "smtpd_tls_cert_file": self.directory / "cert.pem",
            "smtpd_tls_key_file": self.directory / "cert.pem",
            "smtpd_tls_auth_only": "yes",
            "cyrus_sasl_config_path": str(self.config / "sasl"),  # Debian 12 looks there by itself, 13 does not
            "smtpd_sasl_auth_enable": "yes",
            "smtpd_sasl_local_domain": HOSTNAME,
            "smtpd_relay_restrictions": "permit_sasl_authenticated, reject",
            "smtpd_recipient_restrictions": f"check_recipient_access inline:{{ {answers} }}, "
            "permit_sasl_authenticated, reject",
            "smtputf8_enable": "yes",
        }

    def _doors(self) -> list[str]:
        lines = []
        for host in ("127.0.0.1", "[::1]"):
            for port, level in (
                (self.smtps, "-o smtpd_tls_wrappermode=yes"),
                (self.submission, "-o smtpd_tls_security_level=encrypt"),
                (self.alternative, "-o smtpd_tls_security_level=encrypt"),
            ):
                lines.append(f"{host}:{port} inet n - n - - smtpd {level}")
        return lines


_SERVICES = {
    "cleanup": "n - n - 0 cleanup",
    "qmgr": "n - n 300 1 qmgr",
    "tlsmgr": "- - n 1000? 1 tlsmgr",
    "rewrite": "- - n - - trivial-rewrite",
    "bounce": "- - n - 0 bounce",
    "defer": "- - n - 0 bounce",
    "trace": "- - n - 0 bounce",
    "verify": "- - n - 1 verify",
    "flush": "n - n 1000? 0 flush",
    "proxymap": "- - n - - proxymap",
    "smtp": "- - n - - smtp",
    "relay": "- - n - - smtp",
    "error": "- - n - - error",
    "retry": "- - n - - error",
    "discard": "- - n - - discard",
    "anvil": "- - n - 1 anvil",
    "scache": "- - n - 1 scache",
}


def _await_port(port: int) -> None:
    """Until it takes connections. Postfix's `start` returns a moment before."""
    deadline = time.monotonic() + 30
    while True:
        with closing(socket.socket()) as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing listens on port {port}")
        time.sleep(0.02)
