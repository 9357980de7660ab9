"""What a person reads once the daemon listens on a terminal: where, and one command that sends a first mail.

Text alone; who shows it is daemon.py's.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path

from relayd.config.models import Access, Config, Listener, ListenerTLS, SandboxUpstream


def welcome(config: Config, addresses: Mapping[str, Sequence[str]], command: str = "relayd") -> str:
    """Lines to print. `addresses`: where each listener, and "web", really listens. `command`: how relayd is called."""
    lines = ["", f"relayd listens ({config.hostname}):"]
    for listener in config.listeners:
        for address in addresses.get(listener.name, []):
            lines.append(f"  {address:<22} {listener.name}: {listener.access.value}, tls {listener.tls.value}")
    lines += [f"  {address:<22} http: /healthz /readyz /metrics" for address in addresses.get("web", [])]
    for use, what in (("web.public", "http"), ("web.public_tls", "https")):
        lines += [f"  {address:<22} {what}: tracking hosts, for the world" for address in addresses.get(use, [])]
    first = _first_mail(config, addresses)
    if first is not None:
        lines += ["", "Send a first mail:", f"  {first}"]
        if any(isinstance(upstream, SandboxUpstream) for upstream in config.upstreams.values()):
            lines += ["and see what became of it:", f"  {command} sandbox list"]
    return "\n".join(lines) + "\n\n"


def command_line(config_path: Path, program: str | None = None) -> str:
    """How a person calls this relayd with this configuration from the directory we run in. `program`: as argv[0]."""
    called = Path(program or sys.argv[0])
    found = shutil.which(called.name)
    words = [called.name if found is not None and Path(found).resolve() == called.resolve() else _nearby(called)]
    if called.name != "relayd":  # python -m relayd
        words = [_nearby(Path(sys.executable)), "-m", "relayd"]
    return shlex.join([*words, "--config", _nearby(config_path)])


def _nearby(path: Path) -> str:
    """As seen from the working directory where it lies below that; absolute elsewhere."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _first_mail(config: Config, addresses: Mapping[str, Sequence[str]]) -> str | None:
    """A command for a listener that takes mail from this machine without TLS or login; Python is here for sure."""
    for listener in config.listeners:
        for address in addresses.get(listener.name, []):
            host, _, port = address.rpartition(":")
            target = {"0.0.0.0": "127.0.0.1", "[::]": "::1"}.get(host, host.strip("[]"))  # noqa: S104 - read, not bound
            if _open_to(listener, config, target):
                script = (
                    f"import smtplib; smtplib.SMTP('{target}', {port}).sendmail('app@example.com', "
                    f"['you@example.org'], 'Subject: Hello\\n\\nFirst mail.\\n')"
                )
                return f'python3 -c "{script}"'
    return None


def _open_to(listener: Listener, config: Config, source: str) -> bool:
    if listener.tls is ListenerTLS.IMPLICIT or listener.require_tls or listener.proxy_protocol:
        return False
    if listener.access not in {Access.NETWORK, Access.NETWORK_OR_AUTH} or not ip_address(source).is_loopback:
        return False
    networks = []
    for name in listener.networks:
        named = config.networks.get(name)
        if isinstance(named, list):
            networks += named
        elif named is None:
            networks.append(ip_network(name, strict=False))
    return any(ip_address(source) in network for network in networks)
