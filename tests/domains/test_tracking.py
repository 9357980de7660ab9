"""Tracking domains: one step and three, the 72 hours, which host links use. The clock is moved by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from relayd.config.models import Config
from relayd.domains.changes import DomainError
from relayd.domains.hosts import HostWish, add, find, remove
from relayd.domains.service import Checker
from relayd.domains.tracking import PROOF_WITHIN, expected, host_for, ready_hosts, steps
from relayd.spool.domains import DomainStore, TrackingDomain, TrackingState
from relayd.spool.state import StateDB
from tests.support.clock import Clock
from tests.support.dns_world import World, Zone

HOST = "link.example.jp"


@pytest.fixture
def world() -> Iterator[World]:
    with World() as running:
        yield running


@pytest.fixture
def zone(world: World) -> Zone:
    world.zone("relay.test").add("MX", "link.relay.test", "10 relay.test").add("A", "tls.relay.test", "192.0.2.9")
    return world.zone("example.jp", negative_ttl=1)


@pytest.fixture
def store(state: StateDB) -> DomainStore:
    return DomainStore(state)


async def made(store: DomainStore, config: Config, clock: Clock, **wish: object) -> TrackingDomain:
    return await add(HostWish(HOST, **wish), config, store, clock)  # type: ignore[arg-type]


async def test_one_step(store: DomainStore, config: Config, clock: Clock, zone: Zone) -> None:
    await made(store, config, clock)
    checker = Checker(store, config, clock)
    assert (await checker.check_tracking(HOST))[0].state is TrackingState.PENDING
    zone.add("CNAME", HOST, "link.relay.test")
    tracking, _ = await checker.check_tracking(HOST)
    assert tracking.state is TrackingState.VERIFIED
    zone.records.clear()
    assert (await checker.check_tracking(HOST))[0].state is TrackingState.DEGRADED
    zone.add("CNAME", HOST, "link.relay.test")
    assert (await checker.check_tracking(HOST))[0].state is TrackingState.VERIFIED
    kinds = [event.kind for event in await store.history(HOST)]
    assert kinds == ["tracking.recovered", "tracking.degraded", "tracking.verified", "tracking.added"]


async def test_the_cname_alone_is_not_enough_where_mx_is_required(
    store: DomainStore, config: Config, clock: Clock, zone: Zone, world: World
) -> None:
    await made(store, config, clock, require_mx=True)
    checker = Checker(store, config, clock)
    world.zones["relay.test"].records.pop("link.relay.test")
    world.zones["relay.test"].add("A", "link.relay.test", "192.0.2.8")
    zone.add("CNAME", HOST, "link.relay.test")
    assert (await checker.check_tracking(HOST))[0].state is TrackingState.PENDING
    world.zones["relay.test"].add("MX", "link.relay.test", "10 relay.test")
    assert (await checker.check_tracking(HOST))[0].state is TrackingState.VERIFIED


async def test_three_steps_with_an_underscore_lost_in_the_value(
    store: DomainStore, config: Config, clock: Clock, zone: Zone
) -> None:
    proof = f"_token.{HOST}=_value.proof.relay.test"
    tracking = await made(store, config, clock, steps=3, proof=proof)
    assert [step.number for step in steps(tracking)] == [1, 2, 3]
    checker = Checker(store, config, clock)
    tracking, _ = await checker.check_tracking(HOST)
    assert (tracking.state, tracking.step) == (TrackingState.PENDING, 1)
    zone.add("CNAME", HOST, "link.relay.test")
    tracking, _ = await checker.check_tracking(HOST)
    assert (tracking.state, tracking.step) == (TrackingState.PENDING, 2)
    clock.advance(71 * 3600)
    zone.add("CNAME", f"token.{HOST}", "_value.proof.relay.test")  # a HOST without its underscore is never accepted
    tracking, findings = await checker.check_tracking(HOST)
    assert (tracking.step, findings[0].cause) == (2, "no-underscore")
    zone.add("CNAME", f"_token.{HOST}", "value.proof.relay.test")
    tracking, _ = await checker.check_tracking(HOST)
    assert (tracking.state, tracking.step) == (TrackingState.PENDING, 3)
    clock.advance(100 * 3600)  # step 3 has no deadline
    zone.records[HOST][0].value = "tls.relay.test"
    tracking, _ = await checker.check_tracking(HOST)
    assert tracking.state is TrackingState.VERIFIED
    assert [step.done for step in steps(tracking)] == [True, True, True]


async def test_all_steps_at_once(store: DomainStore, config: Config, clock: Clock, zone: Zone) -> None:
    tracking = await made(store, config, clock, steps=3)
    zone.add("CNAME", tracking.proof_host, tracking.proof_value).add("CNAME", HOST, "tls.relay.test")
    assert (await Checker(store, config, clock).check_tracking(HOST))[0].state is TrackingState.VERIFIED


@pytest.mark.parametrize("hours", [71.99, 72.01])
async def test_the_proof_is_awaited_for_72_hours(
    store: DomainStore, config: Config, clock: Clock, zone: Zone, hours: float
) -> None:
    tracking = await made(store, config, clock, steps=3)
    assert tracking.deadline == clock() + PROOF_WITHIN
    zone.add("CNAME", HOST, "link.relay.test")
    checker = Checker(store, config, clock)
    await checker.check_tracking(HOST)
    clock.advance(hours * 3600)
    zone.add("CNAME", tracking.proof_host, tracking.proof_value)
    tracking, _ = await checker.check_tracking(HOST)
    if hours < 72:
        assert (tracking.state, tracking.step) == (TrackingState.PENDING, 3)
        return
    assert tracking.state is TrackingState.EXPIRED
    assert (await checker.check_tracking(HOST))[0].state is TrackingState.EXPIRED
    with pytest.raises(DomainError, match="expired: remove it first"):
        await made(store, config, clock, steps=3)
    await remove(HOST, store, clock)
    again = await made(store, config, clock, steps=3)
    assert again.state is TrackingState.PENDING
    assert again.proof_value != tracking.proof_value


def test_what_cannot_be_added(config: Config, clock: Clock) -> None:
    from relayd.domains.hosts import planned

    for wish, problem in [
        (HostWish(HOST, 2), "1 or 3"),
        (HostWish("co.jp"), "public suffix"),
        (HostWish("link.relay.test"), "shared host itself"),
        (HostWish(HOST, 1, proof="_a.link.example.jp=_b.test"), "--steps 3"),
        (HostWish(HOST, 3, proof=f"token.{HOST}=_b.relay.test"), "must begin with _"),
        (HostWish(HOST, 3, proof="_token.other.jp=_b.relay.test"), "must begin with _"),
        (HostWish(HOST, 3, proof="nonsense"), "HOST=VALUE"),
    ]:
        with pytest.raises(DomainError, match=problem):
            planned(wish, config, clock())
    bare = config.model_copy(update={"tracking": config.tracking.model_copy(update={"host": None})})
    with pytest.raises(DomainError, match=r"tracking\.host"):
        planned(HostWish(HOST), bare, clock())


async def test_an_unknown_host_names_the_known_ones(store: DomainStore, config: Config, clock: Clock) -> None:
    await made(store, config, clock)
    with pytest.raises(DomainError, match=HOST):
        find(await store.everything(), "other.example.jp")


def test_links_use_a_verified_host_of_the_same_organisation() -> None:
    ready = [
        TrackingDomain(name, TrackingState.VERIFIED)
        for name in ("link.example.jp", "go.shop.example.jp", "t.other.co.jp")
    ]
    pending = replace(ready[0], name="new.third.jp", state=TrackingState.PENDING)
    hosts = ready_hosts([*ready, pending])
    assert host_for("example.jp", hosts, "link.relay.test") == "link.example.jp"
    assert host_for("shop.example.jp", hosts, "link.relay.test") == "go.shop.example.jp"
    assert host_for("other.co.jp", hosts, "link.relay.test") == "t.other.co.jp"
    assert host_for("another.co.jp", hosts, "link.relay.test") == "link.relay.test"  # co.jp is no organisation
    assert host_for("third.jp", hosts, "link.relay.test") == "link.relay.test"
    assert host_for("", hosts, "link.relay.test") == "link.relay.test"


def test_every_step_has_its_records() -> None:
    tracking = TrackingDomain(
        HOST,
        steps=3,
        target="link.relay.test",
        tls_target="tls.relay.test",
        proof_host=f"_a.{HOST}",
        proof_value="_b.c",
    )
    values = [[record.value for record in expected(replace(tracking, step=step))] for step in (1, 2, 3)]
    assert values == [["link.relay.test", "_b.c"], ["_b.c"], ["tls.relay.test", "_b.c"]]
