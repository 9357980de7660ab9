"""Those who send much read in turn, and nothing of what they send is lost or mixed up."""

from __future__ import annotations

import asyncio
import ssl
from itertools import pairwise
from typing import Any

import pytest

from relayd.listener.turnstile import AT_ONCE, MUCH, Turnstile
from tests.listener.conftest import Serve, until
from tests.support.fake_door import KEPT


class Reader:
    def __init__(self, name: int, read: list[int], turnstile: Turnstile | None = None) -> None:
        self.name, self.read, self.turnstile = name, read, turnstile

    def read_in_turn(self) -> None:
        self.read.append(self.name)
        if self.turnstile is not None and len(self.read) < 20:
            self.turnstile.queue(self)


async def test_two_read_on_in_a_turn_of_the_loop_in_the_order_in_which_they_came() -> None:
    turnstile, read = Turnstile(asyncio.get_running_loop()), list[int]()
    for name in range(5):
        turnstile.queue(Reader(name, read))
    seen = []
    for _ in range(10):
        seen.append(len(read))
        await asyncio.sleep(0)
    assert read == [0, 1, 2, 3, 4]
    assert max(after - before for before, after in pairwise(seen)) == AT_ONCE


async def test_who_queues_again_comes_behind_the_others() -> None:
    turnstile, read = Turnstile(asyncio.get_running_loop()), list[int]()
    for name in range(3):
        turnstile.queue(Reader(name, read, turnstile))
    for _ in range(20):
        await asyncio.sleep(0)
    assert read[:12] == [0, 1, 2] * 4


@pytest.mark.parametrize("tls", ["none", "implicit"])
async def test_many_that_send_much_at_once_all_get_through(
    serve: Serve, tls: str, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    over: dict[str, Any] = {} if tls == "none" else {"ssl": client_tls, "server_hostname": "relay.example.com"}
    served = await serve(tls=tls, context=server_tls if over else None)
    contents = [b"Subject: %d\r\n\r\n" % n + b"%d is the number of this one.\r\n" % n * 60_000 for n in range(8)]
    assert all(len(content) > 10 * MUCH for content in contents)

    async def one(content: bytes) -> None:
        client = await served.greeted(**over)
        for command in ("MAIL FROM:<a@x.test>", "RCPT TO:<b@y.test>", "DATA"):
            await client.ask(command)
        # what comes behind the message without waiting is obeyed behind it
        client.send(content + b".\r\nNOOP\r\nQUIT\r\n")
        assert await client.reply() == str(KEPT)
        assert (await client.reply()).startswith("250 ")
        assert (await client.reply()).startswith("221 ")

    await asyncio.gather(*map(one, contents))
    assert sorted(served.contents) == sorted(contents)


async def test_who_goes_while_it_waits_for_its_turn_leaves_nothing_behind(serve: Serve) -> None:
    served = await serve()
    for _ in range(4):
        client = await served.greeted()
        for command in ("MAIL FROM:<a@x.test>", "RCPT TO:<b@y.test>", "DATA"):
            await client.ask(command)
        client.send(b"A line of the text.\r\n" * 100_000)
        await asyncio.sleep(0)
        client.writer.transport.abort()
    await until(lambda: not served.server.connections)
    assert not served.contents
