"""Messages are found by their Message-ID header, over all segments, back to a moment and no further."""

from __future__ import annotations

import pytest

from relayd.spool import walks
from tests.spool.conftest import OpenStore
from tests.support.clock import Clock
from tests.support.mail import CONTENT, make_message, make_waiting

DAY = 86_400


async def test_found_over_all_segments(open_store: OpenStore, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walks, "SCANNED", 2)
    store = await open_store(segment=DAY)
    assert await store.by_message_id(["<0@x>"], 0) == {}
    begun = clock()
    numbers = []
    for place in range(10):
        number = store.mint()
        await store.accept(make_message(number, message_id=f"<{place % 4}@x>"), [make_waiting()], CONTENT)
        numbers.append(number)
        clock.advance(DAY / 2)
    found = await store.by_message_id(["<0@x>", "<3@x>", "<none@x>"], begun)
    assert found == {"<0@x>": [numbers[0], numbers[4], numbers[8]], "<3@x>": [numbers[3], numbers[7]]}
    later = await store.by_message_id(["<0@x>", "<3@x>"], begun + 2 * DAY * 1000)
    assert later == {"<0@x>": [numbers[4], numbers[8]], "<3@x>": [numbers[7]]}
