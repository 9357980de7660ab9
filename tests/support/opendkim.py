"""opendkim as a verifier of whole messages: its test mode, with keys asked of a DNS server that the test runs."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.support.dns import ZoneServer

PROGRAM = shutil.which("opendkim", path="/usr/sbin:/usr/bin:/sbin:/bin")

_RESULT = re.compile(
    r'dkim=(\w+)(?:\s+reason="([^"]*)")?(?:\s+\([^)]*\))?\s+header\.d=(\S+)(?:\s+header\.[ia]=\S+)*\s+header\.s=([^\s;]+)'
)
"""One judged signature in the Authentication-Results field that opendkim would add (RFC 8601)."""


@dataclass(frozen=True)
class Verdict:
    """What opendkim says of one signature."""

    domain: str
    selector: str
    result: str
    """pass, fail, permerror, neutral … (RFC 8601)"""
    reason: str = ""


def verdicts(content: bytes, dns: ZoneServer) -> list[Verdict]:
    """One verdict for each signature in the message, in the order opendkim has them. Fails where opendkim does."""
    assert PROGRAM is not None
    with tempfile.TemporaryDirectory(prefix="opendkim-") as name:
        directory = Path(name)
        resolver, config, message = directory / "unbound.conf", directory / "opendkim.conf", directory / "message"
        resolver.write_text("server:\n  do-not-query-localhost: no\n")
        config.write_text(
            f"Mode v\nSyslog no\nNameservers 127.0.0.1@{dns.port}\nResolverConfiguration {resolver}\nDNSTimeout 5\n"
            "MaximumSignaturesToVerify 10\n"
        )
        message.write_bytes(content)
        command = [PROGRAM, "-x", str(config), "-t", str(message), "-vv"]
        done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    output = done.stdout.decode(errors="replace")
    found = [Verdict(d, s, result, reason) for result, reason, d, s in _RESULT.findall(output)]
    assert found, f"opendkim judged nothing: {output}\n{done.stderr.decode(errors='replace')}"
    return found


def verify(content: bytes, dns: ZoneServer) -> bool:
    """Every signature in the message holds, and there is one."""
    return all(verdict.result == "pass" for verdict in verdicts(content, dns))
