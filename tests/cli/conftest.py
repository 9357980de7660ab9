"""A data directory as a daemon leaves it, and commands run on it."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from relayd.cli.main import app
from relayd.config.models import Spool
from relayd.core.ids import MessageId, format_id
from relayd.core.lifecycle import Stage, State
from relayd.core.mail import Envelope, Message, Recipient
from relayd.spool.sqlite import SqliteStore
from relayd.spool.store import Waiting
from tests.support.daemon import Finished
from tests.support.mail import CONTENT, make_attempt, make_message, make_settlement

CONFIG = """\
hostname: relay.example.com
data_dir: ./data
workers: 1
listeners:
  - {name: local, bind: ["127.0.0.1:0"], tls: none, access: network, networks: [127.0.0.0/8]}
credentials:
  - {username: shop, password: "$argon2id$v=19$m=65536,t=3,p=4$c29tZXNhbHQ$RdescudvJCsgt3ub+b5dWRWJTmaaJObG",
     senders: ["*@shop.example.com"], rate: 600/min}
upstreams:
  sandbox: {type: sandbox}
  acme: {host: smtp.acme.example, port: 587, username: u, password: !env RELAYD_TEST_SECRET}
routes:
  - match: {sender_domain: shop.example.com, campaign: newsletter}
    upstream: acme
  - match: {sender: "*@example.co.jp"}
    upstream: acme
  - upstream: sandbox
"""
CANARY = "canary-4f2a-secret"


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass
class Site:
    """A configuration file, its data directory, and what is in its spool."""

    directory: Path
    ids: dict[str, str] = field(default_factory=dict)

    @property
    def config(self) -> Path:
        return self.directory / "relayd.yaml"

    @property
    def data(self) -> Path:
        return self.directory / "data"

    def run(self, *args: str, stdin: str | None = None) -> Finished:
        """Run a command with this configuration, in this process."""
        return run("--config", str(self.config), *args, stdin=stdin)

    def fill(self, work: Callable[[SqliteStore], Awaitable[None]], slot: int = 0, slots: int = 1) -> None:
        """Write to the spool by its own store."""

        async def filled() -> None:
            store = SqliteStore(self.data / "spool", slot, slots, Spool(), now_ms)
            await store.open()
            try:
                await work(store)
            finally:
                await store.close()

        asyncio.run(filled())

    def states(self, name: str) -> dict[str, str]:
        """Where the recipients of a message stand."""
        found = self.run("message", "show", self.ids[name], "--json").json
        return {each["recipient"]: each["state"] for each in found["recipients"]}


def run(*args: str, stdin: str | None = None) -> Finished:
    """Run a command in this process. An exception that reaches the outside fails the test."""
    done = CliRunner().invoke(app, list(args), input=stdin, prog_name="relayd")
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Finished(done.exit_code, done.stdout, done.stderr)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A configuration, its secret not to be had, and no spool yet."""
    monkeypatch.delenv("RELAYD_TEST_SECRET", raising=False)
    monkeypatch.delenv("RELAYD_CONFIG", raising=False)
    made = Site(tmp_path)
    made.config.write_text(CONFIG)
    return made


@pytest.fixture
def secret(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The secret of the configuration is there."""
    monkeypatch.setenv("RELAYD_TEST_SECRET", CANARY)


async def put(
    store: SqliteStore, *waiting: Waiting, content: bytes = CONTENT, accepted_at: int | None = None, **facts: Any
) -> Message:
    """Have a message accepted by a store."""
    facts.setdefault("sender", "news@shop.example.com")
    number: MessageId = store.mint()
    if accepted_at is not None:
        facts["accepted_at"] = accepted_at
    message = make_message(number, content=content, envelope=Envelope(facts["sender"]), **facts)
    await store.accept(message, waiting, content)
    return message


def wait_for(n: int, address: str, lane: str = "acme", state: State = State.QUEUED) -> Waiting:
    """A recipient due now, or held."""
    return Waiting(n, Recipient(address), lane, state, due=None if state is State.HELD else now_ms())


TRANSCRIPT = "   0.012 > RCPT TO:<greylisted@example.org>\n   0.044 < 450 4.2.0 Greylisted"


def fill(site: Site) -> None:
    """Mail of two workers: `fresh` queued, `late` deferred, `mixed` one delivered and one bounced, `held`."""

    async def first(store: SqliteStore) -> None:
        site.ids["fresh"] = format_id((await put(store, wait_for(0, "a@example.org"), subject="日本語の件名")).id)
        late = wait_for(0, "greylisted@example.org")
        message = await put(store, late, accepted_at=now_ms() - 7_200_000)
        site.ids["late"] = format_id(message.id)
        at = now_ms()
        deferred = make_settlement(
            message, [late], State.DEFERRED, at=at, due=at + 600_000, upstream="acme", reply="450 4.2.0 Greylisted"
        )
        attempt = make_attempt([0], at=at, reply="450 4.2.0 Greylisted", stage=Stage.RCPT, transcript=TRANSCRIPT)
        await store.settle(replace(deferred, attempt=attempt))

    async def second(store: SqliteStore) -> None:
        both = [wait_for(0, "good@example.org"), wait_for(1, "bad@example.org")]
        message = await put(store, *both, sender="info@example.co.jp")
        site.ids["mixed"] = format_id(message.id)
        await store.settle(make_settlement(message, both[:1], State.DELIVERED, at=now_ms()))
        await store.settle(
            make_settlement(message, both[1:], State.BOUNCED, at=now_ms(), reply="550 5.1.1 No such user")
        )
        held = wait_for(0, "h@example.net", "sandbox", State.HELD)
        site.ids["held"] = format_id((await put(store, held, sender="")).id)

    site.fill(first, 0, 2)
    site.fill(second, 1, 2)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The spool of `fill`, made once: each test gets a copy."""
    made = Site(tmp_path_factory.mktemp("template"))
    fill(made)
    return made


@pytest.fixture
def spool(site: Site, template: Site) -> Site:
    """A data directory with the mail of `fill` and no daemon."""
    shutil.copytree(template.data, site.data)
    site.ids.update(template.ids)
    return site
