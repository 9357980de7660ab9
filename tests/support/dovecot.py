"""A real Dovecot of our own: one user, private directory, a free port each for TLS, STARTTLS and plain IMAP.

What is in its folders is put there and looked at by Python's own imaplib, so that our client is judged by another.
"""

from __future__ import annotations

import getpass
import grp
import imaplib
import os
import pwd
import shutil
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import trustme

from tests.support.ports import free_ports

PROGRAM = shutil.which("dovecot", path="/usr/sbin:/usr/bin:/sbin:/bin")
USERNAME = "bounces@example.com"
PASSWORD = 'a "secret\\ wörd'


class Dovecot:
    """Ports: `imaps` (TLS from the first octet) and `imap` (STARTTLS, and plain where `plain` is set).

    `capabilities` replaces what the server offers after login.
    """

    def __init__(self, ca: trustme.CA, *, capabilities: str | None = None) -> None:
        assert PROGRAM is not None
        self.directory = Path(tempfile.mkdtemp(prefix="dovecot-", dir="/tmp"))  # sockets need a short path
        self.directory.chmod(0o755)
        self.ca_file = self.directory / "ca.pem"
        ca.cert_pem.write_to_path(str(self.ca_file))
        ca.issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(
            str(self.directory / "cert.pem")
        )
        self.imaps, self.imap = free_ports(2)
        self._capabilities = capabilities
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._write()
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def start(self) -> None:
        """Run it, and wait until it listens."""
        command = [str(PROGRAM), "-F", "-c", str(self.directory / "dovecot.conf")]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                with self.client() as client:
                    client.noop()
            except (OSError, imaplib.IMAP4.error):
                assert self._process.poll() is None, self.log
                time.sleep(0.05)
            else:
                return
        raise RuntimeError(f"Dovecot does not come up: {self.log}")

    def stop(self) -> None:
        """End it; what is in the folders stays."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)
            self._process = None

    @property
    def log(self) -> str:
        """What it wrote."""
        file = self.directory / "log"
        return file.read_text(errors="replace") if file.exists() else ""

    def _write(self) -> None:
        # it reads no mail as root: there, mails are somebody's who is nobody here
        mail = pwd.getpwnam("mail") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
        group = grp.getgrgid(mail.pw_gid).gr_name
        home = self.directory / "home"
        home.mkdir()
        if os.geteuid() == 0:
            os.chown(home, mail.pw_uid, mail.pw_gid)
        users = self.directory / "users"
        users.write_text(f"{USERNAME}:{{PLAIN}}{PASSWORD}:{mail.pw_uid}:{mail.pw_gid}::{home}\n")
        users.chmod(0o644)
        own = "" if os.geteuid() == 0 else f"default_internal_user = {getpass.getuser()}\n"
        own += "" if os.geteuid() == 0 else f"default_login_user = {getpass.getuser()}\n"
        own += "" if os.geteuid() == 0 else f"default_internal_group = {group}\n"
        own += f"imap_capability = {self._capabilities}\n" if self._capabilities else ""
        (self.directory / "dovecot.conf").write_text(f"""\
{_before_2_4(self.directory, users) if _version() < (2, 4) else _since_2_4(self.directory, users)}
base_dir = {self.directory}/run
state_dir = {self.directory}/state
log_path = {self.directory}/log
auth_mechanisms = plain login
auth_verbose = yes
first_valid_uid = 1
listen = 127.0.0.1
protocols = imap
ssl = yes
{own}
service imap-login {{
  chroot =
  inet_listener imap {{
    port = {self.imap}
  }}
  inet_listener imaps {{
    port = {self.imaps}
    ssl = yes
  }}
}}
service anvil {{
  chroot =
}}
""")

    # -- another client

    @contextmanager
    def client(self, folder: str = "INBOX") -> Iterator[imaplib.IMAP4_SSL]:
        """Logged in by imaplib, the folder open."""
        context = ssl.create_default_context(cafile=str(self.ca_file))
        client = imaplib.IMAP4_SSL("localhost", self.imaps, ssl_context=context, timeout=20)
        try:
            client.authenticate("PLAIN", lambda _: f"\0{USERNAME}\0{PASSWORD}".encode())
            client.select(folder)
            yield client
        finally:
            client.shutdown()

    def put(self, *mails: bytes, folder: str = "INBOX") -> None:
        """Have mails arrive."""
        with self.client() as client:
            for mail in mails:
                answer = client.append(folder, "", "", mail)
                assert answer[0] == "OK", answer

    def flags(self, folder: str = "INBOX") -> list[str]:
        """The flags of each mail in a folder."""
        with self.client(folder) as client:
            if client.search(None, "ALL")[1] == [b""]:
                return []
            _, found = client.fetch("1:*", "(FLAGS)")
            return [line.decode() for line in found if isinstance(line, bytes)]

    def recreate(self, folder: str) -> None:
        """Delete a folder and make it anew: its UIDVALIDITY changes."""
        with self.client() as client:
            client.delete(folder)
            client.create(folder)

    def logins(self) -> int:
        """How many logins there were so far."""
        return self.log.count("Login: user=")


def _version() -> tuple[int, ...]:
    assert PROGRAM is not None
    said = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(int(number) for number in said.split()[0].split(".")[:2])


def _before_2_4(directory: Path, users: Path) -> str:
    return f"""\
ssl_cert = <{directory}/cert.pem
ssl_key = <{directory}/cert.pem
disable_plaintext_auth = no
mail_location = mdbox:~/mail
passdb {{
  driver = passwd-file
  args = scheme=PLAIN username_format=%u {users}
}}
userdb {{
  driver = passwd-file
  args = username_format=%u {users}
}}
"""


def _since_2_4(directory: Path, users: Path) -> str:
    return f"""\
dovecot_config_version = 2.4.0
dovecot_storage_version = 2.4.0
ssl_server_cert_file = {directory}/cert.pem
ssl_server_key_file = {directory}/cert.pem
auth_allow_cleartext = yes
mail_driver = mdbox
mail_path = ~/mail
passdb passwd-file {{
  passwd_file_path = {users}
  default_password_scheme = PLAIN
  auth_username_format = %{{user}}
}}
userdb passwd-file {{
  passwd_file_path = {users}
  auth_username_format = %{{user}}
}}
"""
