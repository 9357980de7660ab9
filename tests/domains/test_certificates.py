"""When certificates are due, what failures mean, and what is said of CAs that misbehave (a small HTTP server)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from time import time
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.config.models import Acme, Config
from relayd.domains import certificates, keypair
from relayd.domains.ca import Conversation
from relayd.domains.certificates import ORDER_AGAIN, CAError, earliest, failed, got, ordering, pause, renew_at
from relayd.spool.certificates import Certificate
from relayd.spool.domains import Everything, TrackingDomain, TrackingState

HOUR, DAY = 3_600_000, 86_400_000
NOW = 1_800_000_000_000
CA = "https://ca.test/dir"
HOST = "link.relay.test"


@given(st.integers(0, NOW), st.integers(DAY // 24, 400 * DAY), st.floats(0, 1))
def test_renewal_begins_before_the_last_third(start: int, lifetime: int, chance: float) -> None:
    at = renew_at(start, start + lifetime, chance)
    assert start + lifetime // 2 < at <= start + lifetime * 2 // 3


@given(st.integers(0, 40), st.booleans(), st.floats(0, 1), st.integers(0, 10**9))
def test_after_a_failed_order_an_hour_passes_and_retry_after_is_kept(
    failures: int, ordered: bool, chance: float, asked: int
) -> None:
    known = ordering(Certificate(HOST, failures=failures), CA, NOW)
    later = failed(known, CA, CAError("no", retry_after=asked), ordered=ordered, now=NOW, chance=chance)
    wait = later.due - NOW
    assert later.failures == failures + 1
    assert wait >= (ORDER_AGAIN if ordered else 300_000)
    assert wait >= min(asked * 1000, 7 * DAY)
    assert wait <= max(7 * DAY, DAY * 1.1)
    assert earliest(later, NOW + 1) == NOW + ORDER_AGAIN
    assert earliest(Certificate(HOST), NOW) == NOW
    done = got(later, "chain", b"key", (NOW, NOW + 90 * DAY), now=NOW, chance=chance)
    assert (done.failures, done.error, done.failed_at) == (0, "", None)
    assert earliest(done, NOW + HOUR) == NOW + HOUR


def test_who_else_has_to_wait() -> None:
    assert pause(CAError("this host is refused", retry_after=10**6)) == 0
    assert pause(CAError("asked too often", retry_after=60, limited=True)) == 60_000
    assert pause(CAError("asked too often", retry_after=10**6, limited=True)) == HOUR
    assert pause(CAError("away", down=True)) == 300_000
    assert pause(CAError("away", retry_after=7200, down=True)) == 2 * HOUR


def test_an_old_certificate_of_a_ca_with_another_clock_is_not_renewed_without_end() -> None:
    done = got(Certificate(HOST), "chain", b"key", (NOW - 80 * DAY, NOW + 10 * DAY), now=NOW, chance=0.5)
    assert done.due == NOW + HOUR


def config(**acme: Any) -> Config:
    return Config.model_validate(
        {
            "hostname": "relay.test",
            "listeners": [{"name": "a", "bind": ["127.0.0.1:0"]}],
            "upstreams": {"sandbox": {"type": "sandbox"}},
            "routes": [{"upstream": "sandbox"}],
            "tracking": {"host": HOST, "acme": {"directory": CA, **acme}},
        }
    )


def test_what_is_due() -> None:
    states = {state: TrackingDomain(f"{state}.example.jp", state) for state in TrackingState}
    front = TrackingDomain("front.example.jp", TrackingState.VERIFIED, steps=3)
    hosts = (*states.values(), front)
    assert certificates.due(Everything(tracking=hosts), config(), NOW) == [HOST, "verified.example.jp"]
    kept = Certificate(HOST, chain="x", directory=CA, due=NOW + 1)
    there = Everything(certificates=(kept,))
    assert certificates.due(there, config(), NOW) == []
    assert certificates.due(there, config(), NOW + 1) == [HOST]
    assert certificates.due(there, config(), NOW, [HOST]) == [HOST]
    assert certificates.due(there, config(directory="https://other.test/dir"), NOW) == [HOST]
    assert certificates.due(there, config().model_copy(update={"tracking": type(config().tracking)()}), NOW) == []


class Handler(BaseHTTPRequestHandler):
    """Says what the test wants."""

    def _answer(self) -> None:
        status, headers, body = self.server.answers.get(self.path, (404, {}, b"nothing"))  # type: ignore[attr-defined]
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer()

    do_GET = do_HEAD = _answer  # noqa: N815 - named by the library

    def log_message(self, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    made = HTTPServer(("127.0.0.1", 0), Handler)
    made.answers = {}  # type: ignore[attr-defined]
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def problem(kind: str, detail: str) -> bytes:
    return orjson.dumps({"type": f"urn:ietf:params:acme:error:{kind}", "detail": detail})


LIMITED = (429, {"Retry-After": "120"}, problem("rateLimited", "too many"))
FORBIDDEN: tuple[int, dict[str, str], bytes] = (403, {}, problem("caa", "CAA record\x1b[31m forbids"))


@pytest.mark.parametrize(
    ("answer", "told", "retry_after", "flags"),
    [
        (LIMITED, "too many (rateLimited)", 120, (True, False)),
        ((503, {"Retry-After": formatdate(time() + 86400, usegmt=True)}, b"<html>"), "HTTP 503", 86400, (False, True)),
        (FORBIDDEN, "CAA record\N{REPLACEMENT CHARACTER}[31m forbids (caa)", 0, (False, False)),
        ((200, {}, b"<html>"), "not the answer of an ACME directory", 0, (False, False)),
        ((500, {}, b""), "HTTP 500", 0, (False, False)),
    ],
)
def test_what_a_ca_answers(
    server: HTTPServer, answer: tuple[int, dict[str, str], bytes], told: str, retry_after: int, flags: tuple[bool, bool]
) -> None:
    base = f"http://127.0.0.1:{server.server_port}"
    names = {"newNonce": f"{base}/nonce", "newAccount": f"{base}/account", "newOrder": f"{base}/order"}
    server.answers |= {  # type: ignore[attr-defined]
        "/dir": (200, {"Content-Type": "application/json"}, orjson.dumps(names)),
        "/nonce": (200, {"Replay-Nonce": "bm9uY2U"}, b""),
        "/order": answer,
    }
    talk = Conversation(Acme(directory=f"{base}/dir"), keypair.fresh_key(), f"{base}/account/1", "")
    talk.open()
    with pytest.raises(CAError) as caught:
        talk.order(keypair.request_for(HOST, keypair.fresh_key()))
    assert told in str(caught.value)
    assert str(caught.value).startswith("127.0.0.1: ")
    assert retry_after - 3600 <= caught.value.retry_after <= retry_after  # a date comes nearer while tests wait
    assert (caught.value.limited, caught.value.down) == flags


def test_a_directory_that_is_none(server: HTTPServer) -> None:
    url = f"http://127.0.0.1:{server.server_port}/dir"
    for answer in ((200, {}, b"[]"), (200, {}, b"{}"), (404, {}, b"")):
        server.answers["/dir"] = answer  # type: ignore[attr-defined]
        with pytest.raises(CAError, match=r"HTTP 404|not the answer of an ACME directory"):
            Conversation(Acme(directory=url), keypair.fresh_key(), "", "").open()
