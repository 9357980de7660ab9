"""Health and metrics over HTTP, and what a rude client gets."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator

import pytest
import trustme

from relayd.web import http as web
from relayd.web.server import Health, Pages, WebServer
from relayd.web.tls import by_name

TOKEN = "a-token_of_a_challenge-01"


class State:
    """What the pages show; tests change it."""

    def __init__(self) -> None:
        self.health = Health()
        self.fault: OSError | None = None
        self.port = 0

    async def metrics(self) -> bytes:
        if self.fault is not None:
            raise self.fault
        return b"relayd_workers 1.0\n"

    async def challenge(self, token: str) -> str | None:
        return f"{token}.thumb" if token == TOKEN else None


@pytest.fixture
async def state() -> AsyncIterator[State]:
    state = State()
    sock = socket.create_server(("127.0.0.1", 0))
    state.port = sock.getsockname()[1]
    server = WebServer({"web": [sock]}, Pages(state.metrics, lambda: state.health, state.challenge))
    await server.start()
    yield state
    await server.stop()
    assert sock.fileno() >= 0, "the socket is its owner's"
    sock.close()


async def talk(state: State, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", state.port)
    try:
        writer.write(request)
        async with asyncio.timeout(30):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def get(state: State, path: str, method: str = "GET") -> tuple[int, bytes]:
    answer = await talk(state, f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


async def test_healthz_while_the_loop_answers(state: State) -> None:
    assert await get(state, "/healthz") == (200, b'{"status":"ok"}')
    state.health = Health(alive=False)
    assert (await get(state, "/healthz"))[0] == 503


async def test_readyz_says_why_not(state: State) -> None:
    assert (await get(state, "/readyz"))[0] == 200
    state.health = Health(reasons=("disk space is low", "draining"))
    status, body = await get(state, "/readyz")
    assert status == 503
    assert json.loads(body) == {"status": "not ready", "reasons": ["disk space is low", "draining"]}
    assert (await get(state, "/healthz"))[0] == 200, "not ready is no reason to be restarted"


async def test_metrics_are_shown_as_they_are(state: State) -> None:
    assert await get(state, "/metrics") == (200, b"relayd_workers 1.0\n")


async def test_metrics_that_cannot_be_read_tell_nothing_of_the_fault(state: State) -> None:
    state.fault = OSError("secret path")
    status, body = await get(state, "/metrics")
    assert status == 503
    assert b"secret" not in body


@pytest.mark.parametrize("path", ["/", "/docs", "/redoc", "/openapi.json", "/metrics/", "/healthz/x"])
async def test_there_is_nothing_else(state: State, path: str) -> None:
    assert (await get(state, path))[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS"])
async def test_only_get_is_answered(state: State, method: str) -> None:
    assert (await get(state, "/metrics", method))[0] == 405


async def test_the_answer_does_not_name_the_software(state: State) -> None:
    answer = await talk(state, b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert b"uvicorn" not in answer.lower()


async def test_an_endless_header_is_cut_off(state: State) -> None:
    assert await talk(state, b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 10_000) == b""


async def test_an_endless_body_is_cut_off(state: State) -> None:
    head = b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n"
    answer = await talk(state, head + b"x" * 1_000_000)
    assert answer.count(b"HTTP/1.1") <= 1


async def test_a_client_that_says_nothing_is_dropped(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "HEAD_SECONDS", 0.05)
    assert await talk(state, b"GET /healthz HT") == b""


async def test_at_the_cap_who_waits_for_nothing_makes_room(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "CONNECTIONS", 2)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        inside, state.port = state.port, sock.getsockname()[1]
        server = WebServer({"web": [sock]}, Pages(state.metrics, lambda: state.health, state.challenge))
        await server.start()
        first = await asyncio.open_connection("127.0.0.1", state.port)
        first[1].write(b"GET /healthz HT")
        second = await asyncio.open_connection("127.0.0.1", state.port)
        assert (await get(state, "/healthz"))[0] == 200
        assert await _gone(first[0])
        second[1].write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await second[0].readline() == b"HTTP/1.1 200 OK\r\n"
        first[1].close()
        second[1].close()
        await server.stop()
        state.port = inside


async def test_silent_handshakes_are_few_and_keep_nobody_out(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "CONNECTIONS", 4)
    ca = trustme.CA()
    client = ssl.create_default_context()
    ca.configure_trust(client)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        tls = server_context(ca, "a.test")
        server = WebServer({"web.public_tls": [sock]}, Pages(state.metrics, Health, state.challenge, tls))
        await server.start()
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(9)]
        for reader, _ in silent[:4]:
            assert await _gone(reader)
        async with asyncio.timeout(60):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client, server_hostname="a.test")
            writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 404")
        # those that are left are let go of when it stops
        await server.stop()
        for reader, _ in silent:
            assert await _gone(reader)
        for _, each in [*silent, (reader, writer)]:
            each.close()


async def _gone(reader: asyncio.StreamReader) -> bool:
    """Wait until the server has closed without a word."""
    async with asyncio.timeout(60):
        try:
            return not await reader.read()
        except ConnectionError:
            return True


async def test_without_sockets_there_is_no_server() -> None:
    server = WebServer({}, Pages(State().metrics, Health, State().challenge))
    await server.start()
    await server.stop()


async def test_garbage_is_answered_and_nothing_breaks(state: State) -> None:
    assert (await talk(state, b"EHLO there\r\nMAIL FROM:<>\r\n\r\n")).startswith(b"HTTP/1.1 400")
    assert (await get(state, "/healthz"))[0] == 200


async def test_challenges_are_answered_and_nothing_else_is_public(state: State) -> None:
    path = "/.well-known/acme-challenge/"
    assert await get(state, path + TOKEN) == (200, f"{TOKEN}.thumb".encode())
    with socket.create_server(("127.0.0.1", 0)) as sock:
        inside, state.port = state.port, sock.getsockname()[1]
        server = WebServer({"web.public": [sock]}, Pages(state.metrics, lambda: state.health, state.challenge))
        await server.start()
        assert await get(state, path + TOKEN) == (200, f"{TOKEN}.thumb".encode())
        for unknown in (
            path + "x" * 20,
            path + "short",
            path + "..%2f..%2fsecret-of-length",
            path,
            "/metrics",
            "/healthz",
        ):
            assert (await get(state, unknown))[0] == 404
        await server.stop()
        state.port = inside
    assert (await get(state, "/healthz"))[0] == 200


async def test_the_certificate_is_picked_by_name_at_every_handshake(state: State) -> None:
    ca = trustme.CA()
    contexts = {name: server_context(ca, name) for name in ("a.test", "b.test")}
    known = {"a.test": contexts["a.test"]}
    tls = by_name(contexts["b.test"], known.get, lambda: contexts["b.test"])
    client = ssl.create_default_context()
    ca.configure_trust(client)
    client.check_hostname = False

    def shown(name: str | None) -> str:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=30) as raw,
            client.wrap_socket(raw, server_hostname=name) as secure,
        ):
            secure.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert secure.recv(100).startswith(b"HTTP/1.1 404")
            return str(secure.getpeercert()["subjectAltName"][0][1])  # type: ignore[index]

    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        server = WebServer({"web.public_tls": [sock]}, Pages(state.metrics, Health, state.challenge, tls))
        await server.start()
        asked = ("a.test", "A.TEST", "c.test", None)
        assert [await asyncio.to_thread(shown, name) for name in asked] == ["a.test", "a.test", "b.test", "b.test"]
        known["c.test"] = contexts["a.test"]
        assert await asyncio.to_thread(shown, "c.test") == "a.test"
        await server.stop()


def server_context(ca: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(name).configure_cert(context)
    return context
