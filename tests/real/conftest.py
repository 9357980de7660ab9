"""Real parts on loopback: Postfix as upstream, DNS with our keys, opendkim, and a running relayd between them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import argon2
import pytest
import pytest_asyncio
import trustme

from tests.endtoend.conftest import make_daemon
from tests.support import dkim_keys, opendkim
from tests.support import postfix as postfix_support
from tests.support.clients import Way
from tests.support.daemon import Daemon, Secret, local
from tests.support.dns import ZoneServer
from tests.support.postfix import Postfix

__all__ = ["make_daemon"]

pytest.register_assert_rewrite("tests.real.checks")

DOMAIN = "example.com"
"""Whose mail is signed; senders are below it, one subdomain for each upstream."""
SELECTORS = ("ed25519", "rsa")
APP, APP_PASSWORD = "shop", "correct horse"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """As for tests/endtoend: whole stories with many processes take their time on a busy machine."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(400))


@pytest.fixture(scope="session")
def ca() -> trustme.CA:
    """Issues the certificates of Postfix and relayd."""
    return trustme.CA()


@pytest.fixture(scope="session")
def postfix(ca: trustme.CA) -> Iterator[Postfix]:
    """A running Postfix that demands TLS and a login, and relays to `postfix.capture`."""
    reason = postfix_support.why_not()
    if reason:
        pytest.skip(reason)
    with Postfix(ca) as running:
        yield running


@pytest.fixture(scope="session")
def dns() -> Iterator[ZoneServer]:
    """The DNS that verifiers ask for keys; tests may add names."""
    zone = {f"{kind}._domainkey.{DOMAIN}": dkim_keys.txt_record(kind) for kind in ("rsa", "ed25519")}
    with ZoneServer(zone) as running:
        yield running


@pytest.fixture(scope="session", autouse=True)
def _opendkim() -> None:
    if opendkim.PROGRAM is None:
        pytest.skip("opendkim is not installed (scripts/test installs it as root)")


def upstream(postfix: Postfix, port: int, **others: Any) -> dict[str, Any]:
    """The section of an upstream that is this Postfix by one of its ports."""
    section: dict[str, Any] = {
        "host": "localhost",
        "port": port,
        "username": postfix_support.USERNAME,
        "password": Secret(postfix_support.PASSWORD),
        "ca_file": str(postfix.ca_file),
    }
    if port == postfix.smtps:
        section["implicit_tls"] = True  # by itself on port 465 only
    return section | others


def sections(directory: Path, postfix: Postfix, ca: trustme.CA) -> dict[str, Any]:
    """A configuration with three listeners, three ways to Postfix (chosen by sender domain), and two DKIM keys."""
    certificate = ca.issue_cert("localhost", "127.0.0.1", "::1")
    chain, key = directory / "chain.pem", directory / "key.pem"
    certificate.cert_chain_pems[0].write_to_path(str(chain))
    key.touch(0o600)
    certificate.private_key_pem.write_to_path(str(key))
    both = ["127.0.0.1:0", "[::1]:0"]
    ways = {"smtps": postfix.smtps, "submission": postfix.submission, "alternative": postfix.alternative}
    return {
        "tls": {"certificate": str(chain), "key": str(key)},
        "listeners": [
            {"name": "submission", "bind": both, "tls": "starttls", "access": "auth"},
            {"name": "smtps", "bind": both, "tls": "implicit", "access": "auth"},
            local(bind=both, networks=["127.0.0.0/8", "::1/128"]),
        ],
        "credentials": [
            {
                "username": APP,
                "password": argon2.PasswordHasher(time_cost=1, memory_cost=1024).hash(APP_PASSWORD),
                "senders": [f"*@{DOMAIN}", f"*@*.{DOMAIN}"],
            }
        ],
        "upstreams": {name: upstream(postfix, port) for name, port in ways.items()},
        "routes": [
            *({"match": {"sender_domain": f"{name}.{DOMAIN}"}, "upstream": name} for name in ways),
            {"upstream": "submission"},
        ],
        "dkim": [
            {"domain": DOMAIN, "selector": kind, "key": str(dkim_keys.key_file(kind))} for kind in ("rsa", "ed25519")
        ],
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def relay(tmp_path_factory: pytest.TempPathFactory, postfix: Postfix, ca: trustme.CA) -> AsyncIterator[Daemon]:
    """A daemon that runs for all tests of a module, by `python -m relayd serve`, as an operator starts it."""
    directory = tmp_path_factory.mktemp("relay")
    async with Daemon(directory, sections(directory, postfix, ca), execute=True) as daemon:
        yield daemon


def way_in(daemon: Daemon, listener: str, postfix: Postfix, *, ipv6: bool = False) -> Way:
    """How clients reach a listener: `local` is plain, the others want TLS and the app's login."""
    host = "::1" if ipv6 else "127.0.0.1"
    [port] = [
        int(address.rpartition(":")[2]) for address in daemon.addresses(listener) if (":" in address[:-6]) is ipv6
    ]
    if listener == "local":
        return Way(port, host)
    return Way(port, host, APP, APP_PASSWORD, postfix.ca_file)
