"""A whole intake on real parts (state.db, argon2 of low cost), its store and observer in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from argon2 import PasswordHasher

from relayd.config.models import Config
from relayd.core.mail import Message, Recipient
from relayd.intake.auth import PasswordVerifier
from relayd.intake.disk import DiskWatch
from relayd.intake.guesses import GuessLimiter
from relayd.intake.intake import Intake
from relayd.intake.networks import NetworkBook
from relayd.intake.observer import AuthFailure, Refusal
from relayd.intake.rates import RateBook
from relayd.intake.session import ClientSession
from relayd.spool.state import StateDB
from relayd.spool.store import Delivery
from tests.support.clock import Clock
from tests.support.memory_store import MemoryStore

HASHER = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
SHOP_HASH = HASHER.hash("open sesame")
CRM_HASH = HASHER.hash("correct horse")


def make_config(**changes: Any) -> Config:
    """A small valid configuration; `changes` replace top-level keys."""
    values: dict[str, Any] = {
        "hostname": "relay.example.com",
        "workers": 1,
        "networks": {"office": ["192.0.2.0/24", "2001:db8::/32"]},
        "listeners": [
            {"name": "submission", "bind": ["0.0.0.0:587"], "access": "network-or-auth", "networks": ["office"]},
            {"name": "smtps", "bind": ["0.0.0.0:465"], "tls": "implicit", "access": "auth"},
            {
                "name": "local",
                "bind": ["127.0.0.1:2525"],
                "tls": "none",
                "access": "network",
                "networks": ["127.0.0.0/8"],
            },
        ],
        "credentials": [
            {"username": "shop", "password": SHOP_HASH, "senders": ["*@shop.example.com", "info@example.com"]},
            {"username": "crm", "password": CRM_HASH, "rate": "3/min"},
        ],
        "upstreams": {"sandbox": {"type": "sandbox"}},
        "routes": [{"match": {"header": {"X-Kind": "*"}}, "upstream": "sandbox"}, {"upstream": "sandbox"}],
    }
    return Config.model_validate(values | changes)


class Counts:
    """An observer that counts."""

    def __init__(self) -> None:
        self.refusals: Counter[tuple[str, str]] = Counter()
        self.failures: Counter[tuple[str, str]] = Counter()
        self.successes: Counter[str] = Counter()

    def refused(self, reason: Refusal, listener: str) -> None:
        self.refusals[reason.value, listener] += 1

    def auth_failed(self, reason: AuthFailure, listener: str) -> None:
        self.failures[reason.value, listener] += 1

    def auth_succeeded(self, listener: str) -> None:
        self.successes[listener] += 1


@dataclass
class House:
    """An intake and all around it."""

    config: Config
    clock: Clock
    state: StateDB
    store: MemoryStore
    disk: DiskWatch
    counts: Counts
    kept: list[Delivery] = field(default_factory=list)
    lanes: dict[str, str | None] = field(default_factory=dict)
    intake: Intake = field(init=False)
    passwords: PasswordVerifier = field(init=False)

    def __post_init__(self) -> None:
        self.passwords = PasswordVerifier(self.config, self.clock)
        self.intake = Intake(
            self.config,
            self.store,  # type: ignore[arg-type]
            NetworkBook(self.config, self.state, self.clock),
            self.passwords,
            GuessLimiter(self.config, self.clock),
            RateBook(self.config, self.state, self.clock),
            self.disk,
            lane_of=self.lane_of,
            on_kept=self.kept.append,
            observer=self.counts,
            clock=self.clock,
        )

    def lane_of(self, message: Message, recipient: Recipient) -> str | None:
        return self.lanes.get(recipient.address, "sandbox")

    def session(self, listener: str = "submission", peer: str = "192.0.2.9", **facts: Any) -> ClientSession:
        """A client that has connected and said EHLO."""
        found = next(entry for entry in self.config.listeners if entry.name == listener)
        session = ClientSession(found, ip_address(peer), 40000, False, helo="app.example.com", esmtp=True)
        self.intake.connect(session)
        for name, value in facts.items():
            setattr(session, name, value)
        return session


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def state(tmp_path: Path) -> AsyncIterator[StateDB]:
    db = StateDB(tmp_path / "state.db")
    await db.open()
    yield db
    await db.close()


@pytest.fixture
async def house(tmp_path: Path, clock: Clock, state: StateDB) -> AsyncIterator[House]:
    made = House(make_config(), clock, state, MemoryStore(clock), DiskWatch(tmp_path, 0.0), Counts())
    yield made
    await made.passwords.close()
