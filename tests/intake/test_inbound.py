"""An inbound listener: mail from anyone, to addresses of our own, within limits of its own; what is fetched too."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from relayd.core.mail import INBOUND, Envelope, Recipient
from relayd.core.token import ReturnPaths
from relayd.delivery.routing import RouteTable
from relayd.intake.disk import DiskWatch
from relayd.spool.state import StateDB
from relayd.spool.store import StoreFullError
from tests.intake.conftest import Counts, House, make_config
from tests.intake.test_intake import code
from tests.support.clock import Clock
from tests.support.memory_store import MemoryStore

MX = {"name": "mx", "role": "inbound", "bind": ["127.0.0.1:0"], "tls": "none"}
LETTER = b"Subject: no date, no id\r\nX-Relay-Campaign: kept\r\n\r\nhello\r\n"


@pytest.fixture
async def house(tmp_path: Path, clock: Clock, state: StateDB) -> AsyncIterator[House]:
    listeners = [listener.model_dump(mode="json") for listener in make_config().listeners]
    config = make_config(listeners=[*listeners, MX], bounces={"domain": "bounce.example"})
    made = House(config, clock, state, MemoryStore(clock), DiskWatch(tmp_path, 0.0), Counts())
    made.intake._lane_of = RouteTable(config.routes).upstream_for
    yield made
    await made.passwords.close()


@pytest.fixture
def paths(house: House) -> ReturnPaths:
    """The addresses that the house has issued."""
    paths = ReturnPaths("bounce.example", b"a secret", 86_400_000)
    house.intake.apply(house.config, paths)
    return paths


def at_mx(house: House, **others: Any) -> Any:
    return house.session("mx", **others)


async def test_anyone_may_send_to_what_we_issued(house: House, paths: ReturnPaths) -> None:
    session = at_mx(house, peer="203.0.113.9")
    assert house.intake.connect(session) is None
    for sender in ("", "someone@elsewhere.example"):
        assert house.intake.mail(session, Envelope(sender), 0) is None
    path = paths.address(1234, 0, house.clock())
    envelope = Envelope("")
    for address in (path, path.upper(), "postmaster@bounce.example", "Abuse@bounce.example", "postmaster"):
        assert house.intake.rcpt(session, envelope, Recipient(address), 0) is None, address
    for address in ("a@example.net", "info@bounce.example", "b+x@bounce.example", path.replace("b+", "c+")):
        assert code(house.intake.rcpt(session, envelope, Recipient(address), 0)) == "550 5.1.1", address
    assert house.counts.refusals["forged", "mx"] == 1
    assert house.counts.refusals["unknown-recipient", "mx"] == 3
    house.clock.now += 3 * 86_400_000
    assert code(house.intake.rcpt(session, envelope, Recipient(path), 0)) == "550 5.1.1"


async def test_other_domains_of_ours_are_as_good(house: House) -> None:
    others = {"bounce.example.jp"}
    paths = ReturnPaths("bounce.example", b"a secret", 86_400_000, others.__contains__)
    house.intake.apply(house.config, paths)
    session = at_mx(house, peer="203.0.113.9")
    path = paths.address(1234, 0, house.clock(), "bounce.example.jp")
    ours = (path, path.replace("@bounce.example.jp", "@bounce.example"), "abuse@bounce.example.jp")
    for address in ours:
        assert house.intake.rcpt(session, Envelope(""), Recipient(address), 0) is None, address
    for address in ("info@bounce.example.jp", "b+x@bounce.example.jp", "postmaster@example.jp", path + ".evil.example"):
        assert code(house.intake.rcpt(session, Envelope(""), Recipient(address), 0)) == "550 5.1.1", address
    others.clear()
    for address in (path, "abuse@bounce.example.jp"):
        assert code(house.intake.rcpt(session, Envelope(""), Recipient(address), 0)) == "550 5.1.1", address


async def test_what_came_back_is_kept_as_it_came(house: House, paths: ReturnPaths) -> None:
    session = at_mx(house, peer="203.0.113.9", helo="mx.example.org")
    path = paths.address(1234, 0, house.clock())
    reply = await house.intake.submit(session, Envelope(""), (Recipient(path),), LETTER)
    assert code(reply) == "250 2.0.0"
    (entry,) = house.store.accepted
    trace, _, rest = entry.content.partition(b"Subject:")
    assert trace.startswith(b"Received: from mx.example.org ([203.0.113.9])")
    assert b"Date:" not in trace and b"Message-ID" not in trace
    assert b"Subject:" + rest == LETTER
    assert entry.message.origin.inbound
    (delivery,) = house.kept
    assert delivery.recipients[0].lane == INBOUND


async def test_its_own_limits(house: House, paths: ReturnPaths) -> None:
    session = at_mx(house)
    limit = min(house.config.limits.message_size, 16 * 1024**2)
    assert code(house.intake.mail(session, Envelope(""), limit + 1)) == "552 5.3.4"
    assert house.intake.mail(session, Envelope(""), limit) is None
    most = min(house.config.limits.recipients, 100)
    assert code(house.intake.rcpt(session, Envelope(""), Recipient("postmaster"), most)) == "452 4.5.3"


async def test_without_a_domain_nothing_is_taken(house: House) -> None:
    session = at_mx(house)
    assert code(house.intake.rcpt(session, Envelope(""), Recipient("postmaster"), 0)) == "550 5.1.1"


async def test_fetched_mail_is_kept_as_it_was(house: House, paths: ReturnPaths) -> None:
    number = await house.intake.submit_fetched("returns", "imap.example", "bounces@example.com", LETTER)
    (entry,) = house.store.accepted
    assert (entry.message.id, entry.content) == (number, LETTER)
    assert (entry.message.origin.listener, entry.message.origin.inbound) == ("mailbox returns", True)
    house.disk.low = True
    with pytest.raises(StoreFullError):
        await house.intake.submit_fetched("returns", "imap.example", "bounces@example.com", LETTER)
