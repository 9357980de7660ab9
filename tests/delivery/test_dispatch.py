"""The whole dispatcher on a real spool: nothing lost, nothing twice, whatever is changed while mail is in hand."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from relayd.core.ids import MessageId, format_id
from relayd.core.lifecycle import Act, OnUncertain, Outcome, State
from relayd.core.mail import Message
from relayd.core.session import Outgoing
from relayd.core.units import Millis
from relayd.delivery import crew, rerouting, writing
from relayd.delivery.behind import BEHIND
from relayd.spool.filter import QueueFilter
from relayd.spool.store import NoSuchMessageError, Settlement, StoreError, UnwritableError
from tests.support.dispatching import (
    LATER,
    NO_LINE,
    NOT_YOU,
    QUOTA,
    SILENCE,
    TAKEN,
    ScriptedUpstream,
    World,
    until,
)


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(writing, "WRITE_AGAIN", 0.01)
    monkeypatch.setattr(rerouting, "AGAIN", 0.01)
    world = World(tmp_path)
    yield world
    await world.close()
    assert world.memory.used == 0
    assert not +world.watcher.connections_now


class Hold:
    """Answers of an upstream that wait until `open` is set."""

    def __init__(self, upstream: ScriptedUpstream, outcome: Outcome = TAKEN) -> None:
        self.open = asyncio.Event()
        self.outcome = outcome
        self.waiting = 0
        upstream.answer = self.answer

    async def answer(self, mail: Outgoing) -> Sequence[Outcome]:
        self.waiting += 1
        await self.open.wait()
        self.waiting -= 1
        return [self.outcome] * len(mail.recipients)


async def test_mail_is_sent_once_and_settled(world: World) -> None:
    await world.open(world.plan("acme"))
    mails = [await world.accept(f"r{n}@example.org") for n in range(20)]
    await world.settled(*mails)
    assert set(world.upstreams["acme"].accepted.values()) == {1}
    assert world.upstreams["acme"].most_open <= 4


class Renamed:
    """From becomes an address of another domain on the way out."""

    def sender(self, message: Message) -> str:
        return message.envelope.sender

    def content(self, message: Message, content: bytes) -> tuple[bytes, str]:
        return content, "team.example"


@pytest.mark.parametrize(("outward", "domain"), [(None, "example.com"), (Renamed(), "team.example")])
async def test_return_paths_go_by_the_from_that_leaves(world: World, outward: Renamed | None, domain: str) -> None:
    def path(message: MessageId, n: int, now: Millis, from_domain: str) -> str:
        return f"{format_id(message)}-{n}@bounce.{from_domain}"

    world.settings["acme"] = {"return_path": path, "outward": outward}
    await world.open(world.plan("acme"))
    mail = await world.accept("a@example.org", "b@example.org")
    null = await world.accept("c@example.org", sender="")
    await world.settled(mail, null)
    senders = sorted(sent.envelope.sender for sent in world.upstreams["acme"].transactions)
    assert senders == ["", f"{format_id(mail)}-0@bounce.{domain}", f"{format_id(mail)}-1@bounce.{domain}"]


async def test_a_backlog_is_carried_by_all_connections(world: World) -> None:
    await world.open(world.plan("acme"))
    await world.dispatcher.stop(0)
    mails = [await world.accept(f"r{n}@example.org", push=False) for n in range(20)]
    hold = Hold(world.upstreams["acme"])
    await world.store.close()
    await world.open(world.plan("acme"))
    await until(lambda: hold.waiting == 4)
    hold.open.set()
    await world.settled(*mails)


async def test_idle_connections_are_closed_each_in_its_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "IDLE", 0.1)
    await world.open(world.plan("acme"))
    acme = world.upstream("acme")
    hold = Hold(acme)
    mails = [await world.accept(f"r{n}@example.org") for n in range(4)]
    await until(lambda: hold.waiting == 4)
    hold.open.set()
    await world.settled(*mails)
    for n in range(5):  # one after the other: the connection that is used goes on, the others leave meanwhile
        await asyncio.sleep(0.03)
        await world.settled(await world.accept(f"s{n}@example.org"))
    assert acme.most_open == 4
    await until(lambda: acme.open_now == 0)
    await until(lambda: world.dispatcher._lines["acme"].crew.size == 0)
    acme.most_open = 0
    await world.settled(await world.accept("late@example.org"))
    assert acme.most_open == 1


# -- reload while mail is in hand


@pytest.mark.parametrize("connections", [1, 2, 9])
async def test_another_number_of_connections_interrupts_nothing(world: World, connections: int) -> None:
    await world.open(world.plan("acme"))
    hold = Hold(world.upstreams["acme"])
    mails = [await world.accept(f"r{n}@example.org") for n in range(12)]
    await until(lambda: hold.waiting == 4)
    world.settings["acme"] = {"connections": connections}
    await world.reload(world.plan("acme"))
    await until(lambda: hold.waiting == max(connections, 4))
    hold.open.set()
    await world.settled(*mails)
    assert set(world.upstreams["acme"].accepted.values()) == {1}
    world.upstreams["acme"].most_open = 0
    mails = [await world.accept(f"s{n}@example.org") for n in range(30)]
    await world.settled(*mails)
    assert world.upstreams["acme"].most_open <= connections


async def test_a_settlement_on_its_way_is_waited_for_when_connections_change(world: World) -> None:
    await world.open(world.plan("acme"))
    may_write = asyncio.Event()

    async def slow_disk(settlement: Settlement) -> None:
        await may_write.wait()

    world.tricky.before = slow_disk
    mail = await world.accept("r@example.org")
    await until(lambda: bool(world.upstreams["acme"].accepted))
    world.settings["acme"] = {"connections": 7}
    await world.reload(world.plan("acme"))
    await asyncio.sleep(0.2)
    assert len(world.upstreams["acme"].transactions) == 1
    may_write.set()
    await world.settled(mail)
    assert len(world.upstreams["acme"].transactions) == 1


@pytest.mark.parametrize("outcome", [TAKEN, LATER, SILENCE, NO_LINE])
async def test_a_removed_upstream_finishes_what_it_has_in_hand(world: World, outcome: Outcome) -> None:
    await world.open(world.plan("acme", "other"))
    hold = Hold(world.upstreams["acme"], outcome)
    mails = [await world.accept(f"r{n}@example.org") for n in range(8)]
    await until(lambda: hold.waiting == 4)
    sent = {mail.id for mail in world.upstreams["acme"].transactions}
    await world.reload(world.plan("other"))
    rest = [mail for mail in mails if format_id(mail) not in sent]
    await world.settled(*rest)
    assert {number for number, _ in world.upstreams["other"].accepted} == {format_id(mail) for mail in rest}
    hold.open.set()
    if outcome is not TAKEN:
        # the walk after the last flight brings the others to the upstream that the routes say now
        await until(lambda: len(world.upstreams["other"].accepted) == 8)
    await world.settled(*mails)
    assert set(world.upstreams["other"].accepted.values()) == {1}
    assert len(world.upstreams["acme"].transactions) == 4


async def test_an_upstream_that_is_removed_and_brought_back_sends_nothing_twice(world: World) -> None:
    await world.open(world.plan("acme", "other"))
    hold = Hold(world.upstreams["acme"])
    mails = [await world.accept(f"r{n}@example.org") for n in range(3)]
    await until(lambda: hold.waiting == 3)
    await world.reload(world.plan("other"))
    await asyncio.sleep(0.05)
    await world.reload(world.plan("acme", "other"))
    late = await world.accept("late@example.org")
    await until(lambda: hold.waiting == 4)
    hold.open.set()
    await world.settled(*mails, late)
    assert len(world.upstreams["acme"].transactions) == 4
    assert not world.upstreams["other"].transactions


async def test_mail_of_a_paused_upstream_takes_the_new_route(world: World) -> None:
    await world.open(world.plan("acme", "other"))
    world.upstreams["acme"].refuses = NO_LINE
    mails = [await world.accept(f"r{n}@example.org") for n in range(8)]
    await until(lambda: world.watcher.paused_now.get("acme", False))
    await world.reload(world.plan("other", "acme"))
    await world.settled(*mails)
    assert set(world.upstreams["other"].accepted.values()) == {1}


async def test_a_recipient_whose_upstream_goes_while_another_is_being_sent_is_not_forgotten(world: World) -> None:
    await world.open(world.plan({"a.example": "acme", "b.example": "b"}))
    hold = Hold(world.upstreams["acme"])
    world.upstreams["b"].refuses = NO_LINE
    mail = await world.accept("x@a.example", "y@b.example")
    await until(lambda: hold.waiting == 1 and world.watcher.paused_now.get("b", False))
    await world.reload(world.plan("acme"))
    await asyncio.sleep(0.05)
    hold.open.set()
    await world.settled(mail)
    assert set(world.upstreams["acme"].accepted.values()) == {1}
    assert len(world.upstreams["acme"].accepted) == 2


async def test_mail_that_a_replaced_configuration_gave_a_lane_is_found(world: World) -> None:
    await world.open(world.plan("acme", "other"))
    old = world.current
    await world.reload(world.plan("other"))
    await until(lambda: not world.dispatcher._leaving)
    world.current = old
    mail = await world.accept("r@example.org")
    await world.settled(mail)
    assert set(world.upstreams["other"].accepted.values()) == {1}


async def test_at_start_mail_of_unknown_lanes_takes_its_route_and_parked_mail_stays_parked(world: World) -> None:
    world.on_uncertain = OnUncertain.HOLD
    await world.open(world.plan("gone"))
    world.upstreams["gone"].answer = lambda mail: [SILENCE]
    parked = await world.accept("p@example.org")
    await world.settled(parked, state=State.UNCERTAIN)
    world.upstreams["gone"].answer = lambda mail: [LATER]
    later = await world.accept("r@example.org")
    await world.settled(later, state=State.DEFERRED)
    await world.close()
    await world.open(world.plan("acme"))
    await world.settled(later)
    assert await world.states(parked) == [State.UNCERTAIN]
    assert len(world.upstreams["acme"].transactions) == 1
    await world.steering.act(Act.RELEASE, QueueFilter(), by="test")
    await world.settled(parked)


# -- an upstream's trouble


async def test_trouble_of_one_recipient_pauses_the_upstream_and_is_not_tried_in_circles(world: World) -> None:
    await world.open(world.plan("acme"))
    world.upstreams["acme"].answer = lambda mail: [TAKEN, QUOTA] if len(mail.recipients) > 1 else [QUOTA]
    mail = await world.accept("a@example.org", "b@example.org")
    await until(lambda: world.watcher.paused_now.get("acme", False))
    await asyncio.sleep(0.1)
    assert len(world.upstreams["acme"].transactions) == 1
    assert await world.states(mail) == [State.DELIVERED, State.QUEUED]
    world.upstreams["acme"].answer = lambda mail: [TAKEN]
    world.clock.advance(400)
    await world.reload(world.plan("acme"))
    world.dispatcher.wake_all()
    await world.settled(mail)


async def test_a_sender_that_the_upstream_refuses_does_not_halt_the_others(world: World) -> None:
    await world.open(world.plan("acme"))

    def answer(mail: Outgoing) -> Sequence[Outcome]:
        return [NOT_YOU if mail.envelope.sender.startswith("bad") else TAKEN] * len(mail.recipients)

    world.upstreams["acme"].answer = answer
    bad = [await world.accept(f"b{n}@example.org", sender=f"bad{n % 2}@example.com") for n in range(20)]
    good = [await world.accept(f"g{n}@example.org") for n in range(20)]
    done = 0
    for _ in range(40):
        world.clock.advance(10)
        world.dispatcher.wake_all()
        for line in world.dispatcher._lines.values():
            line.crew.all_ready()
        await asyncio.sleep(0.01)
        done = sum([(await world.states(mail))[0] is State.DELIVERED for mail in good])
    assert done == 20
    assert not world.watcher.paused_now["acme"]
    assert {state for mail in bad for state in await world.states(mail)} == {State.QUEUED}
    later = await world.accept("later@example.org")
    await world.settled(later)
    tried = sum(mail.envelope.sender.startswith("bad") for mail in world.upstreams["acme"].transactions)
    assert tried < 60  # some 45; without waits of their own more than 100
    world.upstreams["acme"].answer = lambda mail: [TAKEN] * len(mail.recipients)
    world.clock.advance(3 * 3600)
    await world.reload(world.plan("acme"))
    world.dispatcher.wake_all()
    await world.settled(*bad)


async def test_a_changed_login_is_tried_at_once(world: World) -> None:
    await world.open(world.plan("acme"))
    world.upstreams["acme"].refuses = NO_LINE
    mail = await world.accept("r@example.org")
    await until(lambda: world.watcher.paused_now.get("acme", False))
    world.upstreams["acme"].refuses = None
    other = await world.accept("s@example.org")
    world.settings["acme"] = {"identity": "new password"}
    await world.reload(world.plan("acme"))
    await world.settled(other)
    world.dispatcher.wake_all()
    world.clock.advance(10)
    world.dispatcher.wake_all()
    await world.settled(mail)


async def test_what_breaks_outside_of_an_attempt_leaves_no_message_in_hand(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "STALE", -1.0)
    await world.open(world.plan("acme"))
    await world.settled(await world.accept("first@example.org"))
    world.upstreams["acme"].probe_error = RuntimeError("a fault in our code")
    mail = await world.accept("r@example.org")
    await until(lambda: world.dispatcher.in_hand() == 0)
    world.upstreams["acme"].probe_error = None
    await world.settled(mail)


# -- a spool that fails


async def test_what_was_sent_but_cannot_be_written_is_not_sent_again(world: World) -> None:
    world.settings["acme"] = {"recipients": 1}
    await world.open(world.plan("acme"))
    fails = 3

    async def full(settlement: Settlement) -> None:
        nonlocal fails
        if any(change.after.n == 0 for change in settlement.changes) and fails:
            fails -= 1
            raise StoreError("the disk is full")

    world.tricky.before = full
    mail = await world.accept("a@example.org", "b@example.org", "c@example.org")
    others = [await world.accept(f"r{n}@other.example", push=False) for n in range(3)]
    await world.settled(mail, *others)
    assert set(world.upstreams["acme"].accepted.values()) == {1}


async def test_transactions_of_one_message_do_not_wait_for_the_disk_and_it_is_let_go_when_all_are_there(
    world: World,
) -> None:
    world.settings["acme"] = {"recipients": 1}
    await world.open(world.plan("acme"))
    may_write = {n: asyncio.Event() for n in range(40)}

    async def slow(settlement: Settlement) -> None:
        await may_write[settlement.changes[0].after.n].wait()

    world.tricky.before = slow
    mail = await world.accept(*(f"r{n}@example.org" for n in range(40)))
    sent = world.upstreams["acme"].transactions
    await until(lambda: len(sent) == BEHIND + 1)  # so many are on their way to the disk, and no more
    may_write[0].set()
    await until(lambda: len(sent) == BEHIND + 2)
    for n in range(2, 40):
        may_write[n].set()
    await until(lambda: len(sent) == BEHIND + 2)
    assert world.dispatcher.busy(mail)
    may_write[1].set()
    await world.settled(mail)
    await until(lambda: not world.dispatcher.busy(mail))
    assert len(sent) == 40
    assert set(world.upstreams["acme"].accepted.values()) == {1}


async def test_however_slow_the_disk_no_more_goes_out_than_a_crash_may_repeat(world: World) -> None:
    """Two mails for each connection: one under way, one of which it is being written what became of it."""
    world.settings["acme"] = {"connections": 3}
    await world.open(world.plan("acme"))
    disk = asyncio.Event()

    async def slow(settlement: Settlement) -> None:
        await disk.wait()

    world.tricky.before = slow
    mails = [await world.accept(f"r{n}@example.org", push=n % 2 == 0) for n in range(40)]
    world.look()
    lane, sent = world.dispatcher._lines["acme"].lane, world.upstreams["acme"].transactions
    try:
        await until(lambda: lane.unwritten >= 3)
        for _ in range(200):
            world.look()
            await asyncio.sleep(0)
        assert 3 <= len(sent) <= 2 * 3
    finally:
        disk.set()
    await world.settled(*mails)
    await until(lambda: not lane.unwritten)
    assert len(sent) == 40
    assert set(world.upstreams["acme"].accepted.values()) == {1}


async def test_a_message_in_many_transactions_keeps_no_others_waiting_for_a_slow_disk(world: World) -> None:
    world.settings["acme"] = {"connections": 3, "return_path": lambda *_: "b@bounce.example.com"}
    await world.open(world.plan("acme"))
    disk = asyncio.Event()

    async def slow(settlement: Settlement) -> None:
        await disk.wait()

    world.tricky.before = slow
    sent = world.upstreams["acme"].transactions
    many = await world.accept(*[f"r{n}@example.org" for n in range(40)])
    try:
        await until(lambda: len(sent) == BEHIND + 1)
        few = await world.accept("one@example.org")
        await until(lambda: len(sent) == BEHIND + 2)
    finally:
        disk.set()
    await world.settled(many, few)
    lane = world.dispatcher._lines["acme"].lane
    await until(lambda: not lane.unwritten)
    assert len(sent) == 41


async def test_a_lane_goes_on_when_a_message_has_no_place_any_more(world: World) -> None:
    await world.open(world.plan("acme"))

    async def gone(settlement: Settlement) -> None:
        if settlement.message == lost:
            raise NoSuchMessageError("its segment was set aside")

    world.tricky.before = gone
    lost = 0
    lost = await world.accept("lost@example.org", push=False)
    world.dispatcher.wake("acme", world.clock())
    await until(lambda: bool(world.upstreams["acme"].transactions))
    mail = await world.accept("r@example.org")
    await world.settled(mail)
    world.tricky.before = None


@pytest.mark.parametrize("holdable", [True, False])
async def test_what_can_never_be_written_is_set_aside_and_the_lane_goes_on(world: World, holdable: bool) -> None:
    await world.open(world.plan("acme"))
    odd = 0

    async def unwritable(settlement: Settlement) -> None:
        held = settlement.changes[0].after.state is State.HELD
        if settlement.message == odd and not (held and holdable):
            raise UnwritableError("cannot be written: an odd value")

    world.tricky.before = unwritable
    odd = await world.accept("odd@example.org", push=False)
    world.dispatcher.wake("acme", world.clock())
    await until(lambda: bool(world.upstreams["acme"].transactions))
    await world.settled(await world.accept("r@example.org"))
    await until(lambda: world.dispatcher.in_hand() == 0)
    world.dispatcher.wake_all()
    await world.settled(await world.accept("s@example.org"))
    assert len(world.upstreams["acme"].transactions) == 3
    assert await world.states(odd) == [State.HELD if holdable else State.QUEUED]
    if holdable:
        held = (await world.store.history(odd)).events[-1]
        assert "delivered; 250 2.0.0 Ok" in str(held.detail["reason"])
    world.tricky.before = None


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE message SET facts = '{' WHERE id = ?",
        "UPDATE message SET facts = '[]' WHERE id = ?",
        "UPDATE message SET subject = CAST(x'ff' AS TEXT) WHERE id = ?",
        "UPDATE recipient SET notify = 'SOMETIMES' WHERE message = ?",
        "DELETE FROM message WHERE id = ?",
    ],
)
async def test_a_row_that_cannot_be_read_is_set_aside_and_the_lane_goes_on(world: World, damage: str) -> None:
    await world.open(world.plan("acme"))
    await world.dispatcher.stop(0)
    mails = [await world.accept(f"r{n}@example.org", push=False) for n in range(5)]
    await world.store.close()
    [path] = (world.directory / "spool").rglob("*.db")
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(damage, (mails[2],))
    await world.open(world.plan("acme"))
    await world.settled(*mails[:2], *mails[3:])
    with closing(sqlite3.connect(path)) as db:
        rows = db.execute("SELECT state, due FROM recipient WHERE message = ?", (mails[2],)).fetchall()
        assert rows == [(3, None)]
        events = db.execute("SELECT kind, detail FROM event WHERE message = ?", (mails[2],)).fetchall()
    assert events[-1][0] == "held" and "cannot be read" in events[-1][1]
    assert len(await world.store.select(QueueFilter(sender="shop@*"), 10)) <= 1
    assert await world.store.relane(lambda message, waiting: "other", ()) == 0


# -- acts of operators


async def test_a_refused_claim_leaves_the_message_in_the_windows_it_is_in(world: World) -> None:
    await world.open(world.plan({"a.example": "aa", "b.example": "bb"}))
    world.upstreams["aa"].refuses = NO_LINE
    await world.accept("first@a.example")
    await until(lambda: world.watcher.paused_now.get("aa", False))
    hold = Hold(world.upstreams["bb"])
    mail = await world.accept("x@a.example", "y@b.example")
    await until(lambda: hold.waiting == 1)
    assert not world.dispatcher.claim(mail)
    world.upstreams["aa"].refuses = None
    world.clock.advance(10)
    world.dispatcher._lines["aa"].crew.all_ready()
    hold.open.set()
    await world.settled(mail)


async def test_an_act_that_cannot_be_written_loses_no_mail(world: World) -> None:
    await world.open(world.plan("acme"))
    world.upstreams["acme"].refuses = NO_LINE
    mails = [await world.accept(f"r{n}@example.org") for n in range(5)]
    await until(lambda: world.watcher.paused_now.get("acme", False))

    async def full(settlement: Settlement) -> None:
        raise StoreError("the disk is full")

    await until(lambda: world.dispatcher.in_hand() == 0)
    world.tricky.before = full
    with pytest.raises(StoreError):
        await world.steering.act(Act.HOLD, QueueFilter(), by="test")
    world.tricky.before = None
    world.upstreams["acme"].refuses = None
    world.clock.advance(10)
    world.dispatcher._lines["acme"].crew.all_ready()
    await world.settled(*mails)


async def test_two_acts_at_once_do_not_undo_each_other(world: World) -> None:
    await world.open(world.plan("acme"))
    world.upstreams["acme"].refuses = NO_LINE
    mails = [await world.accept(f"r{n}@example.org") for n in range(50)]
    await until(lambda: world.watcher.paused_now.get("acme", False) and world.dispatcher.in_hand() == 0)
    delay = world.steering
    delay.policy = replace(delay.policy, delay_notice=1)
    world.clock.advance(1)
    held, _ = await asyncio.gather(delay.act(Act.HOLD, QueueFilter(), by="test"), delay.tell_delays())
    if held.busy:
        await delay.act(Act.HOLD, QueueFilter(), by="test")
    assert {state for mail in mails for state in await world.states(mail)} == {State.HELD}


async def test_what_is_past_its_lifetime_ends_even_while_some_of_it_is_being_sent(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relayd.delivery.steering._BATCH", 3)
    await world.open(world.plan({"a.example": "aa", "b.example": "bb"}))
    hold = Hold(world.upstreams["aa"])
    world.upstreams["bb"].refuses = NO_LINE
    sending = await world.accept("x@a.example")
    await until(lambda: hold.waiting == 1)
    mails: list[MessageId] = [await world.accept(f"y{n}@b.example") for n in range(10)]
    await until(lambda: world.watcher.paused_now.get("bb", False) and world.dispatcher.in_hand() == 1)
    world.clock.advance(6 * 86_400)
    assert await world.steering.expire() == 10
    assert {state for mail in mails for state in await world.states(mail)} == {State.EXPIRED}
    hold.open.set()
    await world.settled(sending)
