"""Secrets of every kind in one daemon, an upstream that repeats them, and every command: none of them is ever seen.

What each other daemon of the suite says and keeps is searched at its end (tests/support/daemon.py), and what each test
prints (tests/conftest.py).
"""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from tests.endtoend.client import send_one
from tests.endtoend.conftest import MakeDaemon
from tests.support import canaries
from tests.support.daemon import Daemon, Secret, Tagged, local, smtp_upstream
from tests.support.fake_upstream import FakeUpstream

PASSWORD = "canary-päss/word+1"
BLOB = base64.b64encode(f"\0relay\0{PASSWORD}".encode()).decode()
ECHO = f"{PASSWORD} {BLOB} {base64.b64encode(PASSWORD.encode()).decode()}"


@pytest.mark.parametrize(
    "seen",
    [
        "canary-of-mine",
        base64.b64encode(b"\0user\0planted secret").decode(),
        base64.b64encode(b"xplanted secret").decode(),
        base64.urlsafe_b64encode(b"xyplanted secretz").decode(),
        "planted%20secret",
        b"planted secret".hex(),
        "-----BEGIN PRIVATE KEY-----",
        canaries.HASH,
    ],
)
def test_a_secret_is_found_however_it_is_written(seen: str) -> None:
    canaries.plant("planted secret")
    assert canaries.leaks(f"a log line with {seen} in it".encode())
    assert not canaries.leaks(b"a log line with a planted tree and a canary in it")


def _everything(daemon_dir: Path, fake: FakeUpstream) -> dict[str, Any]:
    key = ed25519.Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = daemon_dir / "dkim.pem"
    path.touch(0o600)
    path.write_bytes(pem)
    # a port at which nobody listens: what is tried there fails, and says so
    oauth = {
        "client_id": "c",
        "client_secret": Secret("canary-client-secret"),
        "refresh_token": Secret("canary-refresh-token"),
        "token_url": "http://127.0.0.1:9/canaryless",
    }
    nowhere = {"host": "localhost", "port": 9, "username": "u"}
    return {
        "secret": Secret("canary-secret-of-the-daemon-0123456789"),
        "listeners": [local(), local("login", access="auth", networks=[])],
        "upstreams": {
            "acme": smtp_upstream(fake),
            "token": nowhere | {"oauth": oauth},
            "env": nowhere | {"password": Tagged("!env", "ENV_PASSWORD")},
        },
        "routes": [{"match": {"recipient_domain": "token.test"}, "upstream": "token"}, {"upstream": "acme"}],
        "dkim": [{"domain": "example.com", "selector": "s1", "key": str(path)}],
        "web": {"bind": ["127.0.0.1:0"]},
        "retry": {"schedule": "200ms*", "lifetime": "3s"},
    }


COMMANDS = [
    "config show", "config check", "config schema", "status --json", "status", "upstream list", "upstream show acme",
    "upstream show token", "upstream test acme", "upstream test token", "upstream test env", "queue list --json",
    "stats", "audit", "why a@example.org", "domain list", "sender list", "block list", "inbound list",
    "tracking-domain list", "bounce list", "route explain --from app@example.com --to a@example.org", "reload",
    "no such command", "upstream test nonesuch",
]  # fmt: skip


async def test_no_secret_of_any_kind_is_ever_seen(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    script = {"AUTH": [None, f"535 5.7.8 {ECHO}"], "RCPT": f"450 4.2.1 {ECHO}", "QUIT": f"221 {ECHO}"}
    secure: dict[str, Any] = {"tls": "starttls", "users": {"relay": PASSWORD}, "require_auth": True, "auth": ["PLAIN"]}
    async with FakeUpstream(script, extensions=["PIPELINING", f"XECHO {ECHO}"], **secure) as fake:
        daemon = make_daemon(_everything(tmp_path, fake), env={"ENV_PASSWORD": "canary-env-password"})
        await daemon.start()
        number = await send_one(daemon.port, "app@example.com", "a@example.org")
        await send_one(daemon.port, "app@example.com", "b@token.test")
        await daemon.wait_for_event("deferred", id=number)
        await _log_in_wrongly(daemon.port_of("login"))
        for command in [*COMMANDS, f"message show {number}", f"message show {number} --json"]:
            await daemon.cli(*command.split())
        await _faulty_files(daemon)
        assert not canaries.leaks(await _get(daemon.port_of("web"), "/metrics"))
        # bounces tell what the upstream said
        await daemon.wait_for_event("expired", id=number)
        await daemon.wait_for_log("report made", id=number)
        assert fake.logins
        assert await daemon.stop() == 0
        daemon.check_secrets()


async def _log_in_wrongly(port: int) -> None:
    """Passwords at every place where a client might say one."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    plain = base64.b64encode(b"\0canary-user\0canary-password").decode()
    for line in (
        "EHLO client.example",
        f"AUTH PLAIN {plain}",
        "AUTH LOGIN",
        base64.b64encode(b"canary-password-as-user").decode(),
        base64.b64encode(b"canary-password").decode(),
        f"PASS {plain}",
    ):
        writer.write(line.encode() + b"\r\n")
        while (answer := await reader.readline()) and answer[3:4] == b"-":
            pass
    writer.close()


async def _faulty_files(daemon: Daemon) -> None:
    """Files that say secrets at wrong places: what is wrong is told without them."""
    good = daemon.path.read_text()
    for wrong in (
        "secret: [canary-in-a-list]\n",
        "upstreams: {acme: {host: h, pasword: canary-misspelt}}\n",
        "upstreams: {acme: {host: h, password: {x: canary-in-a-map}}}\n",
        "credentials: [{username: u, password: canary-plain-text}]\n",
        "secret: canary-\n\t- no: yaml\n",
    ):
        daemon.write_text(wrong)
        for command in ("config check", "reload"):
            await daemon.cli(*command.split())
    daemon.write_text(good)


async def _get(port: int, path: str) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {quote(path)} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return answer
