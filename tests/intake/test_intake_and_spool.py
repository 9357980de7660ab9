"""Intake on the real spool: what 250 promised is on disk, and delivery gets the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relayd.core.event import EventKind
from relayd.core.ids import parse_id
from relayd.core.mail import Envelope, Recipient
from relayd.intake.disk import DiskWatch
from relayd.spool.sqlite import SqliteStore
from relayd.spool.state import StateDB
from tests.intake.conftest import Counts, House, make_config
from tests.support.clock import Clock

MAIL = b"From: a@shop.example.com\r\nSubject: x\r\n\r\n" + b"body\r\n" * 500


@pytest.fixture
async def spooled(tmp_path: Path, clock: Clock, state: StateDB) -> AsyncIterator[House]:
    config = make_config()
    store = SqliteStore(tmp_path / "spool", 0, 1, config.spool, clock)
    await store.open()
    made = House(config, clock, state, store, DiskWatch(tmp_path, 0.0), Counts())  # type: ignore[arg-type]
    yield made
    await made.passwords.close()
    await store.close()


async def test_what_was_promised_is_in_the_spool(spooled: House) -> None:
    session = spooled.session()
    recipients = [Recipient("a@example.net"), Recipient("b@example.net")]
    replies = await asyncio.gather(
        *(spooled.intake.submit(session, Envelope("info@example.com"), recipients, MAIL) for _ in range(20))
    )
    ids = {parse_id(reply.text.rpartition(" ")[2]) for reply in replies}
    assert len(ids) == 20
    assert {delivery.message.id for delivery in spooled.kept} == ids
    for delivery in spooled.kept:
        history = await spooled.store.history(delivery.message.id)  # type: ignore[attr-defined]
        assert history.message == delivery.message
        assert history.recipients == delivery.recipients
        assert [event.kind for event in history.events] == [EventKind.ACCEPTED] * 2
        content = await spooled.store.content(delivery.message.id)  # type: ignore[attr-defined]
        assert content == delivery.content
        assert content.endswith(MAIL)
