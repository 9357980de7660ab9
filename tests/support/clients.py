"""Mail programs and libraries that applications really use, each told to send one mail.

All run as programs of their own; what comes back is their exit status and what they printed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

REAL = Path(__file__).resolve().parents[1] / "real"
PATIENCE = 60
"""Seconds for a client to send one mail."""


@dataclass(frozen=True)
class Way:
    """How to reach a submission server; STARTTLS and a login where `username` is given."""

    port: int
    host: str = "127.0.0.1"
    username: str | None = None
    password: str = ""
    ca_file: Path | None = None


@dataclass(frozen=True)
class Letter:
    """What to send."""

    sender: str
    recipient: str
    subject: str = "Your order"
    text: str = "Thank you for your order."


@dataclass(frozen=True)
class Done:
    """How a client ended."""

    status: int
    output: str


Client = Callable[[Way, Letter], Done]


def swaks(way: Way, letter: Letter) -> Done:
    """Swiss Army Knife for SMTP (Perl)."""
    command = ["swaks", "--server", way.host, "--port", str(way.port), "--timeout", "30", "--helo", "client.test"]
    command += ["--from", letter.sender, "--to", letter.recipient, "--header", f"Subject: {letter.subject}"]
    command += ["--body", letter.text]
    if way.username:
        command += ["--tls", "--tls-verify", "--tls-ca-path", str(way.ca_file)]
        command += ["--auth", "LOGIN", "--auth-user", way.username, "--auth-password", way.password]
    return _run(command)


def says_smtputf8(name: str) -> bool:
    """Whether this client says SMTPUTF8 with each mail: msmtp does since 1.8.28 where it is offered."""
    if name != "msmtp":
        return False
    said = subprocess.run(["msmtp", "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(int(number) for number in said.split()[2].split(".")) >= (1, 8, 28)


def msmtp(way: Way, letter: Letter) -> Done:
    """The sendmail substitute of many servers."""
    lines = ["defaults", "account relay", f"host {way.host}", f"port {way.port}", f"from {letter.sender}", "timeout 30"]
    if way.username:
        lines += ["tls on", "tls_starttls on", f"tls_trust_file {way.ca_file}", "auth plain"]
        lines += [f"user {way.username}", f'password "{way.password}"']
    with tempfile.TemporaryDirectory(prefix="msmtp-") as name:
        file = Path(name) / "msmtprc"
        file.touch(0o600)
        file.write_text("\n".join([*lines, "account default : relay", ""]))
        return _run(["msmtp", "-C", str(file), letter.recipient], stdin=_raw(letter, "\n"))


def curl(way: Way, letter: Letter) -> Done:
    """curl, as shell scripts send mail."""
    host = f"[{way.host}]" if ":" in way.host else way.host
    command = ["curl", "--silent", "--show-error", "--max-time", "30", "--url", f"smtp://{host}:{way.port}/client.test"]
    command += ["--mail-from", letter.sender, "--mail-rcpt", letter.recipient, "--upload-file", "-"]
    if way.username:
        command += ["--ssl-reqd", "--cacert", str(way.ca_file), "--user", f"{way.username}:{way.password}"]
    return _run(command, stdin=_raw(letter, "\r\n"))


def django(way: Way, letter: Letter) -> Done:
    """django.core.mail.send_mail."""
    return _run(
        [sys.executable, "-W", "ignore", str(REAL / "django_client.py")],
        stdin=_job(way, letter),
        # Django verifies certificates by the default context, which OpenSSL's variable gives its CA
        env={"SSL_CERT_FILE": str(way.ca_file)} if way.ca_file else {},
    )


def nodemailer(way: Way, letter: Letter) -> Done:
    """nodemailer, as Node applications send mail."""
    return _run(["node", str(REAL / "nodemailer_client.js")], stdin=_job(way, letter))


CLIENTS: Mapping[str, Client] = {
    "swaks": swaks,
    "msmtp": msmtp,
    "curl": curl,
    "django": django,
    "nodemailer": nodemailer,
}


def why_not(name: str) -> str | None:
    """What keeps this client from running here; None when nothing does."""
    if name == "django":
        return None
    program = "node" if name == "nodemailer" else name
    if shutil.which(program) is None:
        return f"{program} is not installed (scripts/test installs it as root)"
    if name == "nodemailer" and not (REAL / "node_modules" / "nodemailer").is_dir():
        return "nodemailer is not installed (scripts/test installs it)"
    return None


def on_ipv6(way: Way) -> Way:
    """The same, by IPv6."""
    return replace(way, host="::1")


def _raw(letter: Letter, newline: str) -> bytes:
    lines = [f"From: {letter.sender}", f"To: {letter.recipient}", f"Subject: {letter.subject}", "", letter.text, ""]
    return newline.join(lines).encode()


def _job(way: Way, letter: Letter) -> bytes:
    job = {
        "host": way.host,
        "port": way.port,
        "username": way.username,
        "password": way.password,
        "ca_file": str(way.ca_file) if way.ca_file else None,
        "sender": letter.sender,
        "recipient": letter.recipient,
        "subject": letter.subject,
        "text": letter.text,
    }
    return json.dumps(job).encode()


def _run(command: Sequence[str], *, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> Done:
    done = subprocess.run(
        command,
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **(env or {})},
        timeout=PATIENCE,
        check=False,
    )
    return Done(done.returncode, done.stdout.decode(errors="replace"))
