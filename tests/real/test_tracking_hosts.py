"""Tracking hosts with certificates, and sender accounts: two workers, bind9's DNS, and pebble as the CA."""

from __future__ import annotations

import asyncio
import smtplib
import socket
import ssl
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import argon2
import pytest

from relayd.domains.tracking import PROOF_WITHIN
from relayd.spool.domains import DomainStore, Editor, TrackingDomain
from relayd.spool.state import StateDB
from tests.real.test_domains import ok, publish, records
from tests.support import bind, pebble
from tests.support.bind import Bind
from tests.support.daemon import Daemon, local
from tests.support.pebble import Pebble

DOMAIN, SHARED, BRANDED, FRONTED = "example.jp", "link.relay.test", "link.example.jp", "go.example.jp"


@pytest.fixture
def dns() -> Iterator[Bind]:
    if bind.PROGRAM is None:
        pytest.skip("bind9 is not installed (scripts/test installs it as root)")
    with Bind((DOMAIN, "relay.test")) as running:
        for host in ("relay.test", SHARED, "tls.relay.test"):
            running.add("relay.test", host, "A", "127.0.0.1")
        yield running


def config(dns: Bind) -> dict[str, Any]:
    password = argon2.PasswordHasher(time_cost=1, memory_cost=1024).hash("correct horse")
    return {
        "workers": 2,
        "listeners": [local(), {"name": "apps", "bind": ["127.0.0.1:0"], "tls": "none", "access": "auth"}],
        "credentials": [{"username": "shop", "password": password, "accounts": ["news"]}],
        "web": {"bind": ["127.0.0.1:0"], "public": ["127.0.0.1:0"], "public_tls": ["127.0.0.1:0"]},
        "domains": {
            "recheck": "500ms",
            "resolvers": [f"127.0.0.1:{dns.port}"],
            "authoritative_port": dns.port,
            "timeout": "10s",
            "mail_host": "relay.test",
        },
        "tracking": {"host": SHARED, "tls_host": "tls.relay.test"},
    }


def submitted(daemon: Daemon, sender: str) -> int:
    """The code for the sender of a mail from an app that has logged in."""
    with smtplib.SMTP("127.0.0.1", daemon.port_of("apps"), timeout=60) as client:
        client.login("shop", "correct horse")
        return client.mail(sender)[0]


async def codes(daemon: Daemon, sender: str) -> set[int]:
    """What both workers answer: either may get a connection."""
    return {await asyncio.to_thread(submitted, daemon, sender) for _ in range(8)}


def names(daemon: Daemon, host: str, roots: str) -> str:
    """The host that a verifying TLS client gets a certificate for; "" where it gets none that it trusts."""
    context = ssl.create_default_context(cadata=roots)
    with socket.create_connection(("127.0.0.1", daemon.port_of("web.public_tls")), timeout=60) as raw:
        try:
            with context.wrap_socket(raw, server_hostname=host) as client:
                return str(client.getpeercert()["subjectAltName"][0][1])  # type: ignore[index]
        except ssl.SSLCertVerificationError:
            return ""


async def secured(daemon: Daemon, host: str, roots: str) -> bool:
    return {await asyncio.to_thread(names, daemon, host, roots) for _ in range(8)} == {host}


async def metrics(daemon: Daemon) -> str:
    url = f"http://{daemon.addresses('web')[0]}/metrics"
    return await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=30).read().decode())


async def change(daemon: Daemon, work: Callable[[Editor], None]) -> None:
    state = StateDB(daemon.data_dir / "state.db")
    await state.open()
    await DomainStore(state).change(work)
    await state.close()


async def move_back(daemon: Daemon, name: str, milliseconds: int) -> None:
    """As if so much time had gone by since the host was added."""

    def work(editor: Editor) -> None:
        found = editor.tracking(name)
        assert isinstance(found, TrackingDomain)
        assert found.deadline is not None
        moved = replace(found, added_at=found.added_at - milliseconds, deadline=found.deadline - milliseconds)
        editor.put_tracking(replace(moved, next_check=moved.next_check - milliseconds))

    await change(daemon, work)


async def move_order_back(daemon: Daemon, host: str, milliseconds: int) -> None:
    """As if its certificate had been ordered so much earlier."""

    def work(editor: Editor) -> None:
        known = editor.certificate(host)
        assert known is not None
        assert known.ordered_at is not None
        editor.put_certificate(replace(known, ordered_at=known.ordered_at - milliseconds))

    await change(daemon, work)


async def test_hosts_and_accounts_on_two_workers(tmp_path: Path, dns: Bind) -> None:
    async with Daemon(tmp_path, config(dns)) as daemon:
        # a sender account is on a verified domain, and every worker knows it once the command returns
        refused = await daemon.cli("sender", "add", "news", "--address", f"maildm@{DOMAIN}")
        assert "is not a verified sender domain" in refused.err
        await ok(daemon, "domain", "add", DOMAIN)
        for record in await records(daemon):
            publish(dns, record)
        await ok(daemon, "domain", "verify", DOMAIN)
        assert await codes(daemon, f"maildm@{DOMAIN}") == {553}
        assert (await daemon.cli("sender", "add", "ne#ws", "--address", f"maildm@{DOMAIN}")).code == 2
        added = await daemon.cli("sender", "add", "news", "--address", f"maildm@{DOMAIN}")
        assert "has no MX record" in added.err
        assert await codes(daemon, f"maildm@{DOMAIN}") == {250}
        assert await codes(daemon, f"other@{DOMAIN}") == {553}

        # one step: the CNAME alone does not do where the MX is wanted, too
        await ok(daemon, "tracking-domain", "add", BRANDED, "--require-mx")
        dns.add(DOMAIN, BRANDED, "CNAME", f"{SHARED}.")
        assert (await daemon.cli("tracking-domain", "verify", BRANDED)).code == 1
        chosen = await ok(daemon, "tracking-domain", "host", f"shop@{DOMAIN}")
        assert chosen.startswith(f"{SHARED}\n")
        assert f"{BRANDED} is pending" in chosen
        dns.add("relay.test", SHARED, "MX", "10 relay.test.")
        await daemon.wait_for_log("tracking.verified", domain=BRANDED)
        assert (await daemon.cli("tracking-domain", "host", f"news.{DOMAIN}", "--json")).json["host"] == BRANDED
        assert (await daemon.cli("tracking-domain", "host", "other.jp", "--json")).json["own"] is False

        # three steps, of which the second came too late: the registration is made anew
        proof = f"_token.{FRONTED}=_proof.relay.test"
        await ok(daemon, "tracking-domain", "add", FRONTED, "--steps", "3", "--proof", proof)
        dns.add(DOMAIN, FRONTED, "CNAME", f"{SHARED}.")
        await daemon.wait_for_log("tracking.step", domain=FRONTED)
        await move_back(daemon, FRONTED, PROOF_WITHIN)
        await daemon.wait_for_log("tracking.expired", domain=FRONTED)
        dns.add(DOMAIN, f"_token.{FRONTED}", "CNAME", "_proof.relay.test.")
        late = await daemon.cli("tracking-domain", "verify", FRONTED)
        assert (late.code, "remove" in late.err) == (1, True)
        await ok(daemon, "tracking-domain", "remove", FRONTED, "--yes")
        await ok(daemon, "tracking-domain", "add", FRONTED, "--steps", "3", "--proof", proof)
        await daemon.until(lambda: len(daemon.log("tracking.step", domain=FRONTED)) >= 2, "step 3 of the new one")
        dns.delete(DOMAIN, FRONTED, "CNAME")
        dns.add(DOMAIN, FRONTED, "CNAME", "tls.relay.test.")
        await daemon.wait_for_log("tracking.verified", domain=FRONTED)

        await certificates(daemon, dns)
        assert daemon.audit().clean


async def certificates(daemon: Daemon, dns: Bind) -> None:
    """One worker gets them, whichever worker the CA meets, and both show them without a restart."""
    if pebble.PROGRAM is None:
        pytest.skip("pebble is not installed (scripts/test installs it as root)")
    with Pebble(f"127.0.0.1:{dns.port}", daemon.port_of("web.public")) as ca:
        acme = {
            "directory": ca.directory,
            "agree_terms": True,
            "ca_file": str(ca.ca_file),
            "http_port": daemon.port_of("web.public"),
        }
        tracking = daemon.config["tracking"] | {"acme": acme}
        daemon.write_config(daemon.config | {"tracking": tracking})
        await daemon.control("reload")
        roots = await asyncio.to_thread(ca.root)
        for host in (SHARED, BRANDED):
            await daemon.wait_for_log("certificate.issued", domain=host)
            await daemon.until(lambda host=host: secured(daemon, host, roots), f"{host} from both workers")
        assert await asyncio.to_thread(names, daemon, FRONTED, roots) == ""  # its TLS front has one

        listed = {each["host"]: each for each in (await daemon.cli("tracking-domain", "list", "--json")).json}
        assert listed[BRANDED]["certificate"]["error"] is None
        assert listed[SHARED]["state"] == "shared"
        assert "Certificate: valid until" in await ok(daemon, "tracking-domain", "show", BRANDED)
        assert "links may be https" in await ok(daemon, "tracking-domain", "host", DOMAIN)
        await daemon.until(
            lambda: shown_in(daemon, f'relayd_certificate_expires_seconds{{host="{BRANDED}"}} '), "the metric"
        )

        # a new one by command
        first = listed[BRANDED]["certificate"]["chain"]
        early = await daemon.cli("tracking-domain", "renew", BRANDED)
        assert "less than an hour ago" in early.err
        await move_order_back(daemon, BRANDED, 3_600_000)
        await ok(daemon, "tracking-domain", "renew", BRANDED)
        await daemon.wait_for_log("certificate.renewed", domain=BRANDED)
        again = (await daemon.cli("tracking-domain", "show", BRANDED, "--json")).json["certificate"]["chain"]
        assert again != first
        await daemon.until(lambda: secured(daemon, BRANDED, roots), "both workers")
        assert "PRIVATE KEY" not in daemon.everything_said()


async def shown_in(daemon: Daemon, series: str) -> bool:
    return series in await metrics(daemon)
