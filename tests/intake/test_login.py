"""Logging in: right, wrong, unknown, too often, too many at once; what is hidden, slowed, refused and remembered."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address
from typing import Any

import pytest
from argon2 import extract_parameters

from relayd.intake import auth
from relayd.intake.auth import BusyError, PasswordVerifier, decoy
from relayd.intake.guesses import NETWORK_FACTOR, Failures, GuessLimiter
from relayd.spool.state import StateDB, StateError
from tests.intake.conftest import CRM_HASH, HASHER, SHOP_HASH, House, make_config
from tests.support.clock import Clock


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Delays that were asked for; none is waited for."""
    asked: list[float] = []
    real = asyncio.sleep

    async def sleep(delay: float) -> None:
        asked.append(delay)
        await real(0)

    monkeypatch.setattr("relayd.intake.intake.asyncio.sleep", sleep)
    return asked


async def test_a_right_login_sets_the_credential(house: House) -> None:
    session = house.session("smtps", peer="203.0.113.5")
    reply = await house.intake.authenticate(session, "shop", "open sesame")
    assert (reply.code, reply.enhanced) == (235, "2.7.0")
    assert session.credential is house.config.credentials[0]
    assert house.counts.successes == {"smtps": 1}


@pytest.mark.parametrize(
    ("username", "password"),
    [
        ("shop", "wrong"),
        ("shop", ""),
        ("nobody", "open sesame"),
        ("Shop", "open sesame"),
        ("crm", "open sesame"),
        ("", ""),
    ],
)
async def test_a_wrong_login_sets_nothing(house: House, username: str, password: str) -> None:
    session = house.session("smtps", peer="203.0.113.5")
    reply = await house.intake.authenticate(session, username, password)
    assert (reply.code, reply.enhanced) == (535, "5.7.8")
    assert session.credential is None
    assert house.counts.failures == {("password", "smtps"): 1}


async def test_guessing_is_slowed_then_refused_until_the_window_has_passed(house: House, waits: list[float]) -> None:
    session = house.session("smtps", peer="203.0.113.5")
    replies = [await house.intake.authenticate(session, "shop", f"guess {n}") for n in range(12)]
    assert [reply.code for reply in replies] == [535] * 10 + [421] * 2
    assert waits == [0.5, 1, 2, 4, 8, 8, 8, 8, 8, 8]
    assert (await house.intake.authenticate(session, "shop", "open sesame")).code == 421
    refused = house.intake.connect(session)
    assert refused is not None
    assert (refused.code, refused.enhanced) == (421, "4.7.0")
    assert house.counts.failures == {("password", "smtps"): 10, ("guessing", "smtps"): 3}
    house.clock.advance(house.config.limits.auth_window)
    assert house.intake.connect(session) is None
    assert (await house.intake.authenticate(session, "shop", "open sesame")).code == 235


async def test_a_valid_user_at_another_address_is_not_locked_out(house: House) -> None:
    guesser = house.session("smtps", peer="203.0.113.5")
    for n in range(11):
        await house.intake.authenticate(guesser, "shop", f"guess {n}")
    other = house.session("smtps", peer="203.0.113.6")
    assert house.intake.connect(other) is None
    assert (await house.intake.authenticate(other, "shop", "open sesame")).code == 235


async def test_many_guesses_at_once_learn_nothing_beyond_the_limit(house: House) -> None:
    sessions = [house.session("smtps", peer="203.0.113.5") for _ in range(30)]
    passwords = [f"guess {n}" for n in range(29)] + ["open sesame"]
    replies = await asyncio.gather(
        *(house.intake.authenticate(s, "shop", p) for s, p in zip(sessions, passwords, strict=True))
    )
    codes = [reply.code for reply in replies]
    # the right one came last, behind far more than ten wrong ones
    assert codes.count(535) == 10
    assert codes[-1] == 421
    assert sessions[-1].credential is None


async def test_a_host_that_may_send_by_network_is_not_shut_out_by_its_failed_logins(house: House) -> None:
    session = house.session(peer="192.0.2.9")
    for n in range(11):
        await house.intake.authenticate(session, "shop", f"guess {n}")
    assert house.intake.connect(session) is None
    assert (await house.intake.authenticate(session, "shop", "open sesame")).code == 421


class CountingPool:
    """Stands before the verifier's hasher and counts what reaches it."""

    def __init__(self, verifier: PasswordVerifier, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hashes: list[str] = []
        self._real = verifier._hasher

        monkeypatch.setattr(verifier, "_hasher", self)

    def verify(self, encoded: str, secret: bytes) -> bool:
        self.hashes.append(encoded)
        return self._real.verify(encoded, secret)


async def test_unknown_users_cost_a_hash_of_the_same_parameters(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = CountingPool(house.passwords, monkeypatch)
    assert await house.passwords.verify("nobody", "x") is None
    assert await house.passwords.verify("shop", "x") is None
    unknown, known = seen.hashes
    assert known == SHOP_HASH
    assert extract_parameters(unknown) == extract_parameters(known)


async def test_each_unknown_name_always_meets_the_same_cost(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    dear = HASHER.__class__(time_cost=2, memory_cost=16, parallelism=1).hash("x")
    credentials = [{"username": "a", "password": SHOP_HASH}, {"username": "b", "password": dear}]
    verifier = PasswordVerifier(make_config(credentials=credentials), clock)
    seen = CountingPool(verifier, monkeypatch)
    costs: dict[str, set[int]] = {}
    for name in [f"user{n}" for n in range(20)] * 2:
        await verifier.verify(name, "x")
        costs.setdefault(name, set()).add(extract_parameters(seen.hashes[-1]).memory_cost)
    assert all(len(cost) == 1 for cost in costs.values())
    assert set().union(*costs.values()) == {8, 16}
    await verifier.close()


def test_a_decoy_can_be_checked_and_fits_nothing() -> None:
    with pytest.raises(auth.VerifyMismatchError):
        HASHER.verify(decoy(extract_parameters(SHOP_HASH)), "")


async def test_success_is_remembered_for_a_minute_and_failure_never(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = CountingPool(house.passwords, monkeypatch)
    for _ in range(3):
        assert await house.passwords.verify("shop", "open sesame") is not None
    assert len(seen.hashes) == 1
    for _ in range(2):
        assert await house.passwords.verify("shop", "wrong") is None
    assert len(seen.hashes) == 3
    house.clock.advance(60)
    assert await house.passwords.verify("shop", "open sesame") is not None
    assert len(seen.hashes) == 4


async def test_a_pool_that_logs_in_at_once_costs_one_hash(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = CountingPool(house.passwords, monkeypatch)
    found = await asyncio.gather(*(house.passwords.verify("shop", "open sesame") for _ in range(50)))
    assert found == [house.config.credentials[0]] * 50
    assert len(seen.hashes) == 1


async def test_a_session_that_leaves_takes_nothing_from_those_that_wait_for_the_same_answer(house: House) -> None:
    leaving = asyncio.create_task(house.passwords.verify("shop", "open sesame"))
    staying = asyncio.create_task(house.passwords.verify("shop", "open sesame"))
    await asyncio.sleep(0)
    leaving.cancel()
    assert await staying is house.config.credentials[0]
    with pytest.raises(asyncio.CancelledError):
        await leaving


async def test_a_reload_forgets_successes_and_changes_passwords(house: House) -> None:
    assert await house.passwords.verify("shop", "open sesame") is not None
    house.passwords.apply(make_config(credentials=[{"username": "shop", "password": CRM_HASH}]))
    assert await house.passwords.verify("shop", "open sesame") is None
    assert await house.passwords.verify("shop", "correct horse") is not None


async def test_a_login_under_way_during_a_reload_does_not_pass_with_the_old_password(house: House) -> None:
    task = asyncio.create_task(house.passwords.verify("shop", "open sesame"))
    await asyncio.sleep(0)
    house.passwords.apply(make_config(credentials=[{"username": "shop", "password": CRM_HASH}]))
    assert await task is None


async def test_too_many_at_once_are_told_to_come_back(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "MAX_WAITING", 3)
    tasks = [asyncio.create_task(house.passwords.verify("shop", f"guess {n}", n)) for n in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(BusyError):
        await house.passwords.verify("shop", "open sesame", 4)
    reply = await house.intake.authenticate(house.session("smtps", peer="203.0.113.5"), "shop", "open sesame")
    assert (reply.code, reply.enhanced) == (454, "4.7.0")
    assert await asyncio.gather(*tasks) == [None] * 3


async def test_no_network_takes_all_the_places_of_those_who_wait(house: House) -> None:
    """Six networks may guess at once, with as many connections as they like: one more finds a place."""
    tasks = []
    for network in range(6):
        for n in range(auth.MAX_WAITING):
            tasks.append(asyncio.create_task(house.passwords.verify("shop", f"guess {n}", network)))
        await asyncio.sleep(0)
    assert len(house.passwords._running) < auth.MAX_WAITING
    assert await house.passwords.verify("shop", "open sesame", 99) is not None
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(result) for result in results} == {type(None), BusyError}


async def test_who_logs_in_again_and_again_waits_for_nobody(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = CountingPool(house.passwords, monkeypatch)
    for _ in range(10):
        assert await house.passwords.verify("shop", "open sesame") is not None
        house.clock.advance(59)
    assert len(seen.hashes) == 1
    monkeypatch.setattr(auth, "MAX_WAITING", 0)
    assert await house.passwords.verify("shop", "open sesame") is not None


async def test_a_credential_without_a_usable_hash_lets_nobody_in(clock: Clock) -> None:
    verifier = PasswordVerifier(make_config(credentials=[{"username": "shop", "password": "plain"}]), clock)
    assert await verifier.verify("shop", "plain") is None
    await verifier.close()


async def test_a_network_is_refused_as_a_whole_after_eight_times_as_many(clock: Clock) -> None:
    for one, neighbour, stranger in [
        ("203.0.113.{}", "203.0.113.250", "203.0.114.1"),
        ("2001:db8:1:2::{}", "2001:db8:1:2:ffff::1", "2001:db8:1:3::1"),
    ]:
        limiter = GuessLimiter(make_config(), clock)
        for n in range(10 * NETWORK_FACTOR):
            assert not limiter.blocked(ip_address(neighbour))
            limiter.failed(ip_address(one.format(n + 1)))
        assert limiter.blocked(ip_address(neighbour))
        assert not limiter.blocked(ip_address(stranger))


async def test_old_failures_leave_one_by_one(clock: Clock) -> None:
    limiter, peer = GuessLimiter(make_config(limits={"auth_failures": 2}), clock), ip_address("203.0.113.5")
    limiter.failed(peer)
    clock.advance(300)
    limiter.failed(peer)
    assert limiter.blocked(peer)
    clock.advance(300)
    assert not limiter.blocked(peer)
    limiter.failed(peer)
    assert limiter.blocked(peer)


def test_a_clock_that_steps_back_locks_nobody_out_for_longer() -> None:
    failures = Failures(3, 1000)
    for _ in range(3):
        failures.add(1, 1_000_000)
    assert failures.count(1, 1_000_500) == 3
    assert failures.count(1, 900_000) == 0


def test_memory_is_bounded_and_the_quietest_are_forgotten() -> None:
    failures = Failures(3, 10_000, max_keys=100)
    for n in range(1000):
        failures.add(0, n)
        failures.add(n + 1, n)
    assert len(failures) == 100
    assert failures.count(0, 1000) == 3
    assert failures.count(1, 1000) == 0
    for n in range(500):
        assert failures.add(7, n) <= 3


async def test_workers_share_failures_and_a_restart_remembers_them(clock: Clock, state: StateDB) -> None:
    peer = ip_address("203.0.113.5")
    one, two = (GuessLimiter(make_config(workers=2), clock, state) for _ in range(2))
    for limiter in [one, two] * 5:
        limiter.failed(peer)
    assert not one.blocked(peer)
    for limiter in [one, two, one, two, one]:
        await limiter.share()
    assert one.blocked(peer)
    assert two.blocked(peer)
    again = GuessLimiter(make_config(workers=2), clock, state)
    await again.start()
    assert again.blocked(peer)
    await again.stop()
    clock.advance(601)
    assert not one.blocked(peer)


async def test_failures_that_could_not_be_shared_are_shared_later(
    clock: Clock, state: StateDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = ip_address("203.0.113.5")
    one, two = (GuessLimiter(make_config(limits={"auth_failures": 1}), clock, state) for _ in range(2))
    one.failed(peer)

    async def broken(*_: Any) -> None:
        raise StateError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(state, "share_guesses", broken)
        await one.share()
    await one.share()
    await two.share()
    assert two.blocked(peer)
