"""A reply as octets: every line with its code, the enhanced one where there is one."""

from __future__ import annotations

import pytest

from relayd.core.reply import Reply


@pytest.mark.parametrize(
    ("reply", "octets"),
    [
        (Reply(250, "2.0.0", "OK"), b"250 2.0.0 OK\r\n"),
        (Reply(354, "", "Go on"), b"354 Go on\r\n"),
        (Reply(550, "5.7.1", "No\nAsk first"), b"550-5.7.1 No\r\n550 5.7.1 Ask first\r\n"),
        (Reply(214, "", "a\nb\nc"), b"214-a\r\n214-b\r\n214 c\r\n"),
        (Reply(553, "5.6.7", "花子"), "553 5.6.7 花子\r\n".encode()),
    ],
)
def test_the_octets_of_a_reply(reply: Reply, octets: bytes) -> None:
    assert reply.wire() == octets
