"""Postfix as a peer, alone or with opendkim as its milter: Debian's packages, tuned as a competent operator would.

Needs root, as Postfix does. It runs below a directory of its own and touches no system configuration.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

from bench_lib.relays import Setup, free_port, stopped_unless_started, write_key

_SBIN = "/usr/sbin:/usr/bin:/sbin:/bin"
_SERVICES = """\
127.0.0.1:{port} inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
tlsmgr unix - - n 1000? 1 tlsmgr
tlsproxy unix - - n - 0 tlsproxy
postlog unix-dgram n - n - 1 postlogd
"""


def why_not(*, dkim: bool) -> str | None:
    """What keeps this peer from running here; None when nothing does."""
    wanted = ["postfix", *(["opendkim"] if dkim else [])]
    missing = [name for name in wanted if shutil.which(name, path=_SBIN) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    return None if os.geteuid() == 0 else "Postfix starts as root only"


class Postfix:
    """One instance. With `dkim` every mail is signed with RSA-2048 by opendkim."""

    def __init__(self, directory: Path, setup: Setup, *, dkim: bool) -> None:
        """Raises RuntimeError when it does not start."""
        self.name = "postfix-opendkim" if dkim else "postfix"
        self.port = free_port()
        self.pid = 0
        self._directory = directory
        self._config = directory / "etc"
        self._milter: subprocess.Popen[bytes] | None = None
        # its processes run as users of their own
        for path in (directory, *directory.parents):
            if path.stat().st_uid == os.geteuid() and path != Path("/"):
                path.chmod(path.stat().st_mode | 0o711)
        with stopped_unless_started(self):
            self._start(setup, dkim=dkim)

    @property
    def pids(self) -> list[int]:
        """The roots of its process trees."""
        return [self.pid, *([self._milter.pid] if self._milter else [])]

    def stop(self) -> None:
        """End all of it."""
        self._postfix("abort", check=False)
        if self._milter is not None:
            self._milter.terminate()
            self._milter.wait(20)
        deadline = time.monotonic() + 20
        while Path(f"/proc/{self.pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.05)

    def _start(self, setup: Setup, *, dkim: bool) -> None:
        milter = self._start_milter() if dkim else None
        self._write(setup, milter)
        self._postfix("start")
        await_port(self.port)
        self.pid = int((self._directory / "queue" / "pid" / "master.pid").read_text())

    def _write(self, setup: Setup, milter: int | None) -> None:
        for name in ("etc", "queue", "log"):
            (self._directory / name).mkdir()
        data = self._directory / "pfdata"
        data.mkdir()
        shutil.chown(data, "postfix", "postfix")
        sink_host = f"[127.0.0.1]:{setup.sink}"
        settings = {
            "compatibility_level": "3.6",
            "queue_directory": self._directory / "queue",
            "data_directory": data,
            "maillog_file": self._directory / "log" / "mail.log",
            "maillog_file_prefixes": self._directory / "log",
            "myhostname": "peer.bench.example",
            "mydestination": "",
            "mynetworks": "127.0.0.0/8",
            "inet_interfaces": "127.0.0.1",
            "inet_protocols": "ipv4",
            "alias_maps": "",
            "alias_database": "",
            "local_recipient_maps": "",
            "relayhost": sink_host,
            "smtpd_relay_restrictions": "permit_mynetworks, reject",
            "smtpd_recipient_restrictions": "",
            "smtpd_peername_lookup": "no",
            "smtpd_client_connection_count_limit": "0",
            "smtpd_client_connection_rate_limit": "0",
            "smtp_dns_support_level": "disabled",
            "smtp_tls_security_level": "none",
            "local_header_rewrite_clients": "",
            # tuning: no throttle at the door, many carriers, connections kept
            "in_flow_delay": "0",
            "default_process_limit": "200",
            "default_destination_concurrency_limit": "20",
            "initial_destination_concurrency": "20",
            "smtp_connection_cache_destinations": sink_host,
            "smtp_connection_reuse_count_limit": "0",
            "qmgr_message_active_limit": "40000",
            "qmgr_message_recipient_limit": "40000",
        }
        if milter is not None:
            settings |= {"smtpd_milters": f"inet:127.0.0.1:{milter}", "milter_default_action": "tempfail"}
        settings |= _tls(setup)
        text = "".join(f"{name} = {value}\n" for name, value in settings.items())
        (self._config / "main.cf").write_text(text)
        (self._config / "master.cf").write_text(_SERVICES.format(port=self.port))

    def _start_milter(self) -> int:
        port = free_port()
        key = self._directory / "dkim.pem"
        write_key(key, "rsa")
        key.chmod(0o600)
        config = self._directory / "opendkim.conf"
        config.write_text(
            f"Socket inet:{port}@127.0.0.1\nDomain bench.example\nSelector rsa\nKeyFile {key}\n"
            "Canonicalization relaxed/relaxed\nMode s\nSignatureAlgorithm rsa-sha256\nInternalHosts 127.0.0.0/8\n"
            "OversignHeaders From\nSyslog no\nBackground no\nRequireSafeKeys no\n"
        )
        program = shutil.which("opendkim", path=_SBIN)
        assert program is not None
        self._milter = subprocess.Popen(
            [program, "-f", "-x", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        await_port(port)
        return port

    def _postfix(self, command: str, *, check: bool = True) -> None:
        done = subprocess.run(
            [shutil.which("postfix", path=_SBIN) or "postfix", "-c", str(self._config), command],
            env={"PATH": _SBIN, "LANG": "C"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if check and done.returncode:
            raise RuntimeError(f"postfix {command}: {done.stdout}{done.stderr}")


def listens(port: int) -> bool:
    """Whether something does on the loopback."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def await_port(port: int, process: subprocess.Popen[bytes] | None = None) -> None:
    """Wait until something listens there. Raises RuntimeError after half a minute, or when the process has ended."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if listens(port):
            return
        if process is not None and process.poll() is not None:
            raise RuntimeError(f"{process.args[0]} ended with status {process.returncode} before it listened")
        time.sleep(0.05)
    raise RuntimeError(f"nothing listens on port {port}")


def _tls(setup: Setup) -> dict[str, object]:
    """TLS from the first octet on either side; connections to the upstream are kept there, too (tlsproxy)."""
    settings: dict[str, object] = {}
    if setup.tls is None:
        return settings
    if setup.client_tls:
        settings |= {
            "smtpd_tls_security_level": "encrypt",
            "smtpd_tls_wrappermode": "yes",
            "smtpd_tls_chain_files": f"{setup.tls.key}, {setup.tls.certificate}",
        }
    if setup.upstream_tls:
        settings |= {
            "smtp_tls_security_level": "verify",
            "smtp_tls_verify_cert_match": "localhost",
            "smtp_tls_wrappermode": "yes",
            "smtp_tls_CAfile": setup.tls.certificate,
            "smtp_tls_connection_reuse": "yes",
        }
    return settings
