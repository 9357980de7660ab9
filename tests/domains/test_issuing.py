"""Certificates from a real CA (pebble): got, renewed, refused, and what TLS clients are shown. The clock is moved."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import socket
import sqlite3
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from cryptography import x509

from relayd.config.models import Config
from relayd.domains import certificates
from relayd.domains.issued import CertificateSafe, Contexts
from relayd.domains.issuing import LEASE, CertificateDuty
from relayd.listener.certificate import ensure_certificate
from relayd.listener.tls import context_of
from relayd.spool.certificates import Certificate
from relayd.spool.domains import DomainStore, Editor, Everything, TrackingDomain, TrackingState
from relayd.spool.state import StateDB
from relayd.web.server import Health, Pages, WebServer
from relayd.web.tls import by_name
from tests.domains.sites import config_for, settings_for
from tests.support import pebble
from tests.support.clock import Clock
from tests.support.dns_world import World
from tests.support.pebble import Pebble

SHARED, BRANDED = "link.relay.test", "link.example.jp"
SECRET = b"the secret of this test, long enough"
HOUR = 3_600_000


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World() as running:
        running.zone("relay.test").add("A", SHARED, "127.0.0.1")
        running.zone("example.jp").add("CNAME", BRANDED, SHARED).add("A", "refused.example.jp", "127.0.0.1")
        yield running


@pytest.fixture(scope="module")
def plain() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


@pytest.fixture(scope="module")
def ca(world: World, plain: socket.socket) -> Iterator[Pebble]:
    if pebble.PROGRAM is None:
        pytest.skip("pebble is not installed (scripts/test installs it as root)")
    host, port = world.resolver
    with Pebble(f"{host}:{port}", plain.getsockname()[1]) as running:
        yield running


@pytest.fixture
def clock() -> Clock:
    return Clock(time.time_ns() // 1_000_000)


class Place:
    """A worker's part in certificates, with its web server; `twin` is another worker's, on the same state.db."""

    def __init__(self, state: StateDB, config: Config, clock: Clock) -> None:
        self.store, self.config, self.clock = DomainStore(state), config, clock
        self.known = Everything()
        self.duty = CertificateDuty(state, config, "1", clock)
        self.twin = CertificateDuty(state, config, "2", clock)
        self.contexts = Contexts(context_of, lambda: self.known)
        for part in (self.duty, self.twin, self.contexts):
            part.use(SECRET)
        self.secure = 0

    @contextlib.asynccontextmanager
    async def serving(self, plain: socket.socket, directory: Path) -> AsyncIterator[None]:
        ensure_certificate(self.config.tls, directory, "relay.test", datetime.datetime.now(datetime.UTC))
        fallback = context_of(directory / self.config.tls.certificate, directory / self.config.tls.key)
        tls = by_name(fallback, self.contexts.of, lambda: fallback)

        async def metrics() -> bytes:
            return b""

        with socket.create_server(("127.0.0.1", 0)) as sock:
            self.secure = sock.getsockname()[1]
            # the challenge is answered by the twin, as the kernel may hand the request to any worker
            pages = Pages(metrics, Health, self.twin.challenge, tls)
            server = WebServer({"web.public": [plain], "web.public_tls": [sock]}, pages)
            await server.start()
            yield
            await server.stop()

    async def tick(self) -> int:
        try:
            return await self.duty.tick(self.known, self.contexts.unusable)
        finally:
            self.known = await self.store.everything()

    def certificate(self, host: str = SHARED) -> Certificate:
        return {each.host: each for each in self.known.certificates}[host]

    async def change(self, host: str = SHARED, **facts: object) -> None:
        def work(editor: Editor) -> None:
            editor.put_certificate(replace(editor.certificate(host) or Certificate(host), **facts))  # type: ignore[arg-type]

        await self.store.change(work)
        self.known = await self.store.everything()

    async def kinds(self, host: str = SHARED) -> list[str]:
        return [event.kind for event in reversed(await self.store.history(host))]

    def shown(self, name: str | None, roots: str = "") -> x509.Certificate:
        """What a TLS client gets that asks for a name; it verifies where `roots` are given."""
        context = ssl.create_default_context(cadata=roots or None)
        if not roots:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with (
            socket.create_connection(("127.0.0.1", self.secure), timeout=30) as raw,
            context.wrap_socket(raw, server_hostname=name) as client,
        ):
            client.sendall(b"GET /.well-known/acme-challenge/unknown-unknown-1 HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 404")
            return x509.load_der_x509_certificate(client.getpeercert(binary_form=True) or b"")


@pytest_asyncio.fixture
async def place(tmp_path: Path, world: World, ca: Pebble, plain: socket.socket, clock: Clock) -> AsyncIterator[Place]:
    tracking = settings_for(world)["tracking"] | {
        "acme": {
            "directory": ca.directory,
            "agree_terms": True,
            "email": "ops@relay.test",
            "ca_file": str(ca.ca_file),
            "http_port": plain.getsockname()[1],
        }
    }
    web = {"public": ["127.0.0.1:0"], "public_tls": ["127.0.0.1:0"]}
    config = config_for(world, tmp_path, tracking=tracking, web=web)
    state = StateDB(tmp_path / "state.db")
    await state.open()
    place = Place(state, config, clock)
    async with place.serving(plain, config.data_dir):
        yield place
    await state.close()


async def verified(place: Place, name: str = BRANDED, **facts: object) -> None:
    tracking = TrackingDomain(name, TrackingState.VERIFIED, target=SHARED, **facts)  # type: ignore[arg-type]
    await place.store.change(lambda editor: editor.put_tracking(tracking))
    place.known = await place.store.everything()


async def test_got_shown_and_renewed(place: Place, ca: Pebble, tmp_path: Path) -> None:
    await verified(place)
    await verified(place, "front.example.jp", steps=3)  # its TLS front has one of its own
    pending = TrackingDomain("new.example.jp", target=SHARED)
    await place.store.change(lambda editor: editor.put_tracking(pending))
    own = await asyncio.to_thread(place.shown, SHARED)
    assert await place.tick() == 2
    assert [each.error for each in place.known.certificates] == ["", ""]
    roots = await asyncio.to_thread(ca.root)
    for host in (SHARED, BRANDED):
        seen = await asyncio.to_thread(place.shown, host, roots)
        assert seen.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(
            x509.DNSName
        ) == [host]
    for other in ("front.example.jp", "other.test", None):
        assert await asyncio.to_thread(place.shown, other) == own  # the listeners' own certificate
    assert await place.kinds() == ["certificate.issued"]
    assert await place.tick() == 0

    # keys of certificate and account are locked, and nothing is left of the challenges
    db = sqlite3.connect(tmp_path / "state.db")
    assert db.execute("SELECT count(*) FROM challenge").fetchone() == (0,)
    kept = [
        private for table in ("certificate", "ca_account") for (private,) in db.execute(f"SELECT private FROM {table}")
    ]
    db.close()
    assert len(kept) == 3
    assert not any(b"PRIVATE KEY" in private or len(private) < 100 for private in kept)

    # renewed before the last third of its lifetime begins, and shown without a restart
    first = place.certificate(BRANDED)
    assert first.not_before is not None
    assert first.not_after is not None
    third = first.not_before + (first.not_after - first.not_before) * 2 // 3
    assert third - 7 * 24 * HOUR < first.due < third
    place.clock.now = max(each.due for each in place.known.certificates)
    assert await place.tick() == 2
    assert place.certificate(BRANDED).chain != first.chain
    seen = await asyncio.to_thread(place.shown, BRANDED, roots)
    assert seen == x509.load_pem_x509_certificates(place.certificate(BRANDED).chain.encode())[0]
    assert await place.kinds(BRANDED) == ["certificate.issued", "certificate.renewed"]
    assert await place.tick() == 0  # a clock ahead of the CA's does not renew without end


async def test_a_port_that_leads_elsewhere_is_told_before_the_order(place: Place, world: World) -> None:
    await place.change()
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        acme = place.config.tracking.acme
        assert acme is not None
        port = elsewhere.getsockname()[1]
    tracking = place.config.tracking.model_copy(update={"acme": acme.model_copy(update={"http_port": port})})
    place.duty.apply(place.config.model_copy(update={"tracking": tracking}))
    await place.tick()
    failed = place.certificate()
    assert (
        failed.error
        == f"port {port} of {SHARED} does not lead here: 127.0.0.1 does not take the connection (connection refused)"
    )
    assert (failed.ordered_at, failed.failures) == (None, 1)
    assert 300_000 <= failed.due - place.clock() <= 330_000
    place.clock.now = failed.due
    await place.tick()
    assert place.certificate().due - place.clock() >= 600_000  # later and later
    assert await place.kinds() == ["certificate.failed", "certificate.failed"]

    place.duty.apply(place.config)
    there = world.zones["relay.test"].records.pop(SHARED)
    place.clock.now = place.certificate().due
    await place.tick()
    assert "has no address" in place.certificate().error
    world.zones["relay.test"].records[SHARED] = there


async def test_a_refused_order_waits_an_hour(place: Place) -> None:
    await verified(place, "refused.example.jp")
    await place.tick()
    refused = place.certificate("refused.example.jp")
    assert refused.ordered_at == place.clock()
    assert "rejectedIdentifier" in refused.error
    assert place.certificate().chain  # one host's trouble is not another's
    assert refused.due - place.clock() >= HOUR
    assert await place.tick() == 0
    place.clock.now = refused.due
    await place.tick()
    assert place.certificate("refused.example.jp").due - place.clock() >= 2 * HOUR


async def test_one_worker_orders_and_a_crash_does_not_order_again(place: Place, clock: Clock) -> None:
    state = place.duty._state
    assert await state.claim(LEASE, "2", clock(), 60_000)
    assert await place.tick() == 0
    await state.release(LEASE, "2")
    task = asyncio.create_task(place.duty.tick(place.known))
    while not (await place.store.everything()).certificates:  # noqa: ASYNC110 - another connection tells nobody
        await asyncio.sleep(0)
    task.cancel()  # as if it was killed in the middle of the order
    await asyncio.gather(task, return_exceptions=True)
    place.known = await place.store.everything()
    assert place.certificate().chain == ""
    assert place.certificate().ordered_at == clock()
    assert await place.tick() == 0
    clock.advance(3600)
    assert await place.tick() == 1
    assert place.certificate().chain


async def test_a_changed_secret_another_ca_and_one_that_forgets_us(place: Place, ca: Pebble) -> None:
    await place.tick()
    first = place.certificate()
    assert place.contexts.of(SHARED) is not None
    for part in (place.duty, place.contexts):
        part.use(SECRET + b"x")
    place.known = await place.store.everything()
    assert place.contexts.unusable() == [SHARED]

    ca.stop()
    await place.tick()
    failed = place.certificate()
    assert failed.error == "127.0.0.1: cannot be reached (ConnectionError)"
    assert failed.due - place.clock() < HOUR  # no order was made
    assert failed.chain == first.chain
    ca.begin_again()  # it has forgotten all accounts
    place.clock.now = failed.due
    await place.tick()
    second = place.certificate()
    assert second.error == ""
    assert second.chain != first.chain
    assert place.contexts.unusable() == []
    CertificateSafe(SECRET + b"x").open(second.private, SHARED)
    assert certificates.due(place.known, place.config, place.clock()) == []
    await place.change(directory="https://staging.test/dir")
    assert certificates.due(place.known, place.config, place.clock()) == [SHARED]
