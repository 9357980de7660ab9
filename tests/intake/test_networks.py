"""Networks: lookups against the standard library; lists from a real HTTP server, what is kept of them and believed."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from relayd.config.models import Config
from relayd.intake import fetches
from relayd.intake.cidr import CidrSet, unmap
from relayd.intake.fetches import FetchError, check_url, parse_list
from relayd.intake.networks import NetworkBook
from relayd.spool.state import StateDB
from tests.intake.conftest import make_config
from tests.support.clock import Clock

ADDRESSES = st.one_of(
    st.ip_addresses(v=4), st.ip_addresses(v=6), st.ip_addresses(network="192.0.2.0/24"),
    st.ip_addresses(network="2001:db8::/64"),
)  # fmt: skip
NETWORKS = st.builds(
    lambda address, share: ip_network((address, round(address.max_prefixlen * share)), strict=False),
    ADDRESSES,
    st.floats(0, 1),
)


@given(st.lists(NETWORKS, max_size=8), ADDRESSES)
def test_a_set_of_networks_holds_what_they_hold(networks: list[Any], peer: Any) -> None:
    peer = unmap(peer)
    plain = [n for n in networks if not (n.version == 6 and n.subnet_of(ip_network("::ffff:0:0/96")))]
    assert (peer in CidrSet(plain)) == any(peer in network for network in plain)


def test_mapped_addresses_and_networks_are_ipv4() -> None:
    assert unmap(ip_address("::ffff:192.0.2.1")) == ip_address("192.0.2.1")
    assert unmap(ip_address("2001:db8::1")) == ip_address("2001:db8::1")
    mapped = CidrSet([ip_network("::ffff:192.0.2.0/120")])
    assert ip_address("192.0.2.9") in mapped
    assert ip_address("192.0.3.9") not in mapped
    # all of IPv6 is not all of IPv4
    assert ip_address("192.0.2.9") not in CidrSet([ip_network("::/0")])


async def test_the_first_name_that_holds_the_peer_is_found(clock: Clock, state: StateDB) -> None:
    config = make_config(networks={"office": ["192.0.2.0/24"], "all": ["0.0.0.0/0", "::/0"]})
    book = NetworkBook(config, state, clock)
    peer = ip_address("192.0.2.1")
    assert book.lookup(peer, ["office", "all"]) == "office"
    assert book.lookup(peer, ["all", "office"]) == "all"
    assert book.lookup(peer, ["198.51.100.0/24", "192.0.2.1"]) == "192.0.2.1"
    assert book.lookup(peer, ["no such network"]) is None
    assert book.lookup(peer, []) is None
    assert book.lookup(ip_address("::ffff:192.0.2.1"), ["office"]) == "office"
    book.apply(make_config(networks={"office": ["198.51.100.0/24"]}))
    assert book.lookup(peer, ["office"]) is None


class ListServer:
    """Answers what it is told to, and counts."""

    def __init__(self) -> None:
        self.answer: Any = {"ip_addresses": ["203.0.113.1", "2001:db8::/48"]}
        self.status = 200
        self.raw: bytes | None = None
        self.asked = 0
        self.headers: dict[str, str] = {}
        self.url = ""

    async def handle(self, _: web.Request) -> web.Response:
        self.asked += 1
        if self.raw is not None:
            return web.Response(body=self.raw, status=self.status, headers=self.headers)
        return web.json_response(self.answer, status=self.status, headers=self.headers)

    def config(self, **changes: Any) -> Config:
        fetched = {"url": self.url, "path": "ip_addresses", "refresh": "1h", "fallback": ["198.51.100.7"]} | changes
        return make_config(networks={"crm": fetched})


@pytest.fixture
async def server() -> AsyncIterator[ListServer]:
    made = ListServer()
    app = web.Application()
    app.router.add_get("/ips", made.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/ips"
    yield made
    await runner.cleanup()


def lets_in(book: NetworkBook, *peers: str) -> list[bool]:
    return [book.lookup(ip_address(peer), ["crm"]) == "crm" for peer in peers]


OLD, FETCHED, FALLBACK = "203.0.113.1", "203.0.113.2", "198.51.100.7"


async def test_the_fallback_stands_until_the_first_fetch(server: ListServer, clock: Clock, state: StateDB) -> None:
    book = NetworkBook(server.config(), state, clock)
    assert lets_in(book, OLD, FALLBACK) == [False, True]
    server.status = 503
    await book.refresh()
    assert lets_in(book, OLD, FALLBACK) == [False, True]
    server.status = 200
    clock.advance(3600)
    await book.refresh()
    assert lets_in(book, OLD, FALLBACK, "2001:db8::5") == [True, False, True]


async def test_it_is_fetched_once_each_refresh(server: ListServer, clock: Clock, state: StateDB) -> None:
    book = NetworkBook(server.config(), state, clock)
    for _ in range(10):
        await book.refresh()
        clock.advance(300)  # 50 minutes in all: less than any jitter makes of an hour
    assert server.asked == 1
    clock.advance(600)
    await book.refresh()
    assert server.asked == 2


async def test_a_vanished_address_stays_for_keep_removed(server: ListServer, clock: Clock, state: StateDB) -> None:
    book = NetworkBook(server.config(keep_removed="2h"), state, clock)
    await book.refresh()
    server.answer = {"ip_addresses": [FETCHED]}
    clock.advance(3600)
    await book.refresh()
    assert lets_in(book, OLD, FETCHED) == [True, True]
    clock.advance(3600)
    await book.refresh()
    assert lets_in(book, OLD, FETCHED) == [True, True]
    # its time ends even while the server is away
    server.status = 500
    clock.advance(3600)
    await book.refresh()
    assert lets_in(book, OLD, FETCHED) == [False, True]


async def test_what_is_listed_stays_however_long_the_server_is_away(
    server: ListServer, clock: Clock, state: StateDB
) -> None:
    book = NetworkBook(server.config(keep_removed="1h"), state, clock)
    await book.refresh()
    server.status = 500
    for _ in range(100):
        clock.advance(86400)
        await book.refresh()
    assert lets_in(book, OLD) == [True]


FAULTY: dict[str, dict[str, Any]] = {
    "an error": {"status": 404},
    "a redirect": {"status": 302, "headers": {"Location": "http://127.0.0.1:1/"}},
    "no JSON": {"raw": b"<html>"},
    "another shape": {"answer": ["203.0.113.2"]},
    "no list": {"answer": {"ip_addresses": "203.0.113.2"}},
    "an empty list": {"answer": {"ip_addresses": []}},
    "an entry that is none": {"answer": {"ip_addresses": [FETCHED, "localhost"]}},
    "a number": {"answer": {"ip_addresses": [FETCHED, 5]}},
    "half the Internet": {"answer": {"ip_addresses": [FETCHED, "0.0.0.0/1"]}},
    "all of IPv6": {"answer": {"ip_addresses": [FETCHED, "::/0"]}},
    "all of IPv4, mapped": {"answer": {"ip_addresses": [FETCHED, "::ffff:0:0/96"]}},
    "too many entries": {"answer": {"ip_addresses": [FETCHED] * 10_001}},
    "too long": {"raw": b" " * 1024**2 + b'{"ip_addresses": ["203.0.113.2"]}'},
}


@pytest.mark.parametrize("fault", FAULTY)
async def test_a_faulty_answer_keeps_the_last_good_one(
    server: ListServer, clock: Clock, state: StateDB, fault: str
) -> None:
    book = NetworkBook(server.config(), state, clock)
    await book.refresh()
    for name, value in FAULTY[fault].items():
        setattr(server, name, value)
    clock.advance(3600)
    await book.refresh()
    assert server.asked == 2
    assert lets_in(book, OLD, FETCHED, FALLBACK) == [True, False, False]
    kept = (await state.networks())["crm"]
    assert kept.failures == 1


async def test_after_a_failure_it_is_tried_again_sooner(server: ListServer, clock: Clock, state: StateDB) -> None:
    book = NetworkBook(server.config(), state, clock)
    server.status = 500
    await book.refresh()
    clock.advance(31)
    await book.refresh()
    assert server.asked == 2
    clock.advance(31)
    await book.refresh()
    assert server.asked == 2
    server.status = 200
    clock.advance(31)
    await book.refresh()
    assert server.asked == 3
    assert lets_in(book, OLD) == [True]


async def test_a_restart_keeps_what_was_fetched(server: ListServer, clock: Clock, tmp_path: Path) -> None:
    path = tmp_path / "again.db"
    first = StateDB(path)
    await first.open()
    await NetworkBook(server.config(), first, clock).refresh()
    await first.close()
    second = StateDB(path)
    await second.open()
    server.status = 500
    book = NetworkBook(server.config(), second, clock)
    await book.start()
    assert lets_in(book, OLD, FALLBACK) == [True, False]
    await book.stop()
    await second.close()


async def test_one_worker_fetches_and_all_know(server: ListServer, clock: Clock, state: StateDB) -> None:
    books = [NetworkBook(server.config(), state, clock) for _ in range(4)]
    await asyncio.gather(*(book.refresh() for book in books))
    assert server.asked == 1
    for book in books:
        await book.refresh()
        assert lets_in(book, OLD) == [True]


async def test_a_changed_url_is_another_list(server: ListServer, clock: Clock, state: StateDB) -> None:
    book = NetworkBook(server.config(), state, clock)
    await book.refresh()
    book.apply(server.config(url=server.url + "?v=2"))
    assert lets_in(book, OLD, FALLBACK) == [False, True]
    await book.refresh()
    assert server.asked == 2
    assert lets_in(book, OLD, FALLBACK) == [True, False]


async def test_a_reload_that_leaves_the_url_alone_leaves_no_gap(
    server: ListServer, clock: Clock, state: StateDB
) -> None:
    book = NetworkBook(server.config(), state, clock)
    await book.refresh()
    book.apply(server.config(refresh="2h"))
    assert lets_in(book, OLD, FALLBACK) == [True, False]
    await book.refresh()
    assert lets_in(book, OLD, FALLBACK) == [True, False]


async def test_its_task_fetches_by_itself_and_ends(
    server: ListServer, clock: Clock, state: StateDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = NetworkBook(server.config(), state, clock)
    told = asyncio.Event()
    real = book._allow

    def allow(name: str, networks: Any) -> None:
        real(name, networks)
        if server.asked:
            told.set()

    monkeypatch.setattr(book._fetches, "_allow", allow)
    await book.start()
    await told.wait()
    assert lets_in(book, OLD) == [True]
    await book.stop()
    assert [task.get_name() for task in asyncio.all_tasks() if task.get_name() == "fetch networks"] == []


@pytest.mark.parametrize(
    ("url", "fine"),
    [
        ("https://api.example.com/ips", True),
        ("http://127.0.0.1:8080/ips", True),
        ("http://[::1]:8080/ips", True),
        ("http://localhost/ips", True),
        ("http://api.example.com/ips", False),
        ("http://127.0.0.1.example.com/ips", False),
        ("ftp://127.0.0.1/ips", False),
        ("file:///etc/passwd", False),
        ("https:///ips", False),
        ("", False),
    ],
)
def test_only_https_is_believed_except_on_this_machine(url: str, fine: bool) -> None:
    if fine:
        check_url(url)
    else:
        with pytest.raises(FetchError):
            check_url(url)


def test_a_path_leads_into_the_answer() -> None:
    assert parse_list(b'{"a": {"b": ["192.0.2.1"]}}', "a.b") == [ip_network("192.0.2.1")]
    assert parse_list(b'["192.0.2.0/24", " 2001:db8::/32 "]', "") == [
        ip_network("192.0.2.0/24"),
        ip_network("2001:db8::/32"),
    ]
    with pytest.raises(FetchError, match=r"no 'a\.c'"):
        parse_list(b'{"a": {"b": []}}', "a.c")


@pytest.mark.parametrize("kind", ["{}.0.0.0/8", "20{:02x}::/16"])
def test_a_list_of_many_wide_networks_is_as_little_believed_as_one_that_is_too_wide(kind: str) -> None:
    networks = [kind.format(number) for number in range(1, 18)]
    assert len(parse_list(orjson.dumps([*networks[:16], networks[0]]), "")) == 17
    with pytest.raises(FetchError, match="more addresses than 16 networks"):
        parse_list(orjson.dumps(networks), "")


@given(st.binary(max_size=200), st.text("ab.", max_size=5))
def test_no_answer_raises_anything_but_its_own_error(octets: bytes, path: str) -> None:
    try:
        found = parse_list(octets, path)
    except FetchError:
        return
    assert all(isinstance(network, ipaddress.IPv4Network | ipaddress.IPv6Network) for network in found)


async def test_an_unreachable_server_is_a_fetch_error() -> None:
    with pytest.raises(FetchError, match="no answer") as caught:
        await fetches.fetch("http://127.0.0.1:1/?token=secret")
    assert "secret" not in str(caught.value)
