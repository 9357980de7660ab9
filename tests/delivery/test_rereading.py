"""Contents that are read back from disk to go out: as many as there is room for, and each in the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.core.lifecycle import Outcome
from relayd.core.session import Outgoing
from relayd.delivery.rereading import MIDDLE, Rereading
from relayd.intake.memory import SMALL, MemoryBudget
from tests.support.dispatching import NO_LINE, TAKEN, ScriptedUpstream, World, until
from tests.support.mail import CONTENT

MIB = 1 << 20


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["enter", "leave", "cancel", "both"]),
            st.tuples(st.integers(1, 9 * MIB), st.sampled_from(["acme", "other"])),
            st.integers(0, 99),
        )
    )
)
def test_whatever_comes_and_goes_the_room_is_kept_to_and_nobody_waits_beside_room(
    acts: list[tuple[str, tuple[int, str], int]],
) -> None:
    async def played() -> None:
        memory = MemoryBudget(16 * MIB)
        rereading = Rereading(memory)
        tasks: dict[asyncio.Task[bool], tuple[int, str]] = {}
        inside: dict[asyncio.Task[bool], tuple[int, str]] = {}
        for act, content, which in acts:
            waiting = [task for task in tasks if task not in inside]
            if act == "enter":
                task = asyncio.create_task(rereading.enter(*content))
                tasks[task] = content
            elif act == "cancel" and waiting:
                chosen = waiting[which % len(waiting)]
                chosen.cancel()
                del tasks[chosen]
            elif inside:
                chosen = list(inside)[which % len(inside)]
                rereading.leave(*inside.pop(chosen))
                del tasks[chosen]
                if act == "both" and waiting:  # whoever has room at this very moment does not want it any more
                    waiting[0].cancel()
                    del tasks[waiting[0]]
            await turns()
            inside |= {task: content for task, content in tasks.items() if task.done()}
            assert memory.used == sum(octets for octets, _ in inside.values())
            for big in (False, True):
                here = [(octets, upstream) for octets, upstream in inside.values() if (octets > MIDDLE) == big]
                beside = sum(max([0, *(octets for octets, each in here if each == name)]) for name in ("acme", "other"))
                assert sum(octets for octets, _ in here) <= memory.limit // (2 if big else 8) + beside
                # nobody waits whose upstream has nothing in there
                assert {each for octets, each in tasks.values() if (octets > MIDDLE) == big} == {
                    each for _, each in here
                }
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for content in inside.values():
            rereading.leave(*content)
        assert memory.used == 0

    asyncio.run(played())


async def test_big_ones_take_no_more_than_is_free_and_one_of_them_goes_in_any_case() -> None:
    memory = MemoryBudget(16 * MIB)
    rereading = Rereading(memory)
    memory.take(9 * MIB)
    assert not await rereading.enter(2 * MIB, "acme")
    second = asyncio.create_task(rereading.enter(2 * MIB, "acme"))
    assert not await rereading.enter(MIB, "acme")  # has room of its own
    await turns()
    assert not second.done()
    rereading.leave(2 * MIB, "acme")
    assert await second


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    yield world
    await world.close()
    assert world.memory.used == 0


def stuck(upstream: ScriptedUpstream) -> tuple[asyncio.Event, asyncio.Event]:
    """Have the upstream answer nothing until the first event; the second tells that a transaction waits there."""
    opened, waiting = asyncio.Event(), asyncio.Event()

    async def answer(mail: Outgoing) -> Sequence[Outcome]:
        waiting.set()
        await opened.wait()
        return [TAKEN] * len(mail.recipients)

    upstream.answer = answer
    return opened, waiting


async def test_after_a_restart_memory_is_not_filled_by_big_mail_and_all_of_it_goes_out(world: World) -> None:
    """Some mails are as big as all of their room, and small ones go their way beside them."""
    slow, sending, peak, opened = asyncio.Event(), 0, 0, asyncio.Event()

    async def answer(mail: Outgoing) -> Sequence[Outcome]:
        nonlocal sending, peak
        sending += len(mail.content)
        peak = max(peak, sending)
        if len(mail.content) > SMALL:
            slow.set()
            await opened.wait()
        sending -= len(mail.content)
        return [TAKEN] * len(mail.recipients)

    world.upstream("acme").answer = answer
    world.settings["acme"] = {"connections": 12}
    world.memory.limit = 16 * MIB
    await world.open(world.plan("acme"))
    world.upstream("acme").refuses = NO_LINE
    big = [
        await world.accept("a@example.org", content=CONTENT + b"x" * size, push=False)
        for size in [3 * MIB] * 4 + [5 * MIB] + [MIB - 1000] * 5
    ]
    small = [await world.accept("b@example.org", push=False) for _ in range(5)]
    await world.close()
    world.upstream("acme").refuses = None
    world.clock.now += 600_000
    await world.open(world.plan("acme"))
    await asyncio.wait_for(slow.wait(), 20)
    await until(lambda: len(world.upstream("acme").transactions) >= 9)  # two big, two middling, all small ones
    assert world.memory.used <= 10 * MIB
    opened.set()
    await world.settled(*big, *small)
    assert peak <= 8 * MIB + 2 * MIB + 5 * len(CONTENT)


@pytest.mark.parametrize("why", ["suspended", "stopping"])
async def test_what_waited_for_room_while_its_upstream_was_shut_stays_where_it_was(world: World, why: str) -> None:
    world.memory.limit = 6 * MIB
    acme = world.upstream("acme")
    opened, waiting = stuck(acme)
    await world.open(world.plan("acme"))
    mails = [await world.accept("a@example.org", content=CONTENT + b"x" * 2 * MIB, push=False) for _ in range(3)]
    world.look()
    await asyncio.wait_for(waiting.wait(), 20)
    lane = world.dispatcher._lines["acme"].lane
    await until(lambda: lane.flying == 3)
    if why == "suspended":
        lane.gate.shut = True
        opened.set()
        await until(lambda: lane.flying == 0)
    else:
        closing = asyncio.create_task(world.close(60))
        await until(lambda: world.dispatcher._lines["acme"].crew.stopping)
        opened.set()
        await closing
    assert len(acme.transactions) == 1
    assert world.memory.used == 0
    if why == "suspended":
        lane.gate.shut = False
    else:
        await world.open(world.plan("acme"))
    world.look()
    await world.settled(*mails)
    assert len(acme.transactions) == 3


async def test_big_mail_of_a_slow_upstream_holds_up_no_other(world: World) -> None:
    world.memory.limit = 6 * MIB
    opened, waiting = stuck(world.upstream("slow"))
    await world.open(world.plan({"slow.example": "slow", "*": "acme"}))
    content = CONTENT + b"x" * 2 * MIB
    held_up = [await world.accept("a@slow.example", content=content, push=False) for _ in range(5)]
    world.look()
    await asyncio.wait_for(waiting.wait(), 20)
    others = [await world.accept("a@example.org", content=content, push=False) for _ in range(5)]
    others.append(await world.accept("a@example.org"))
    world.look()
    await world.settled(*others)
    assert len(world.upstream("slow").transactions) == 1
    opened.set()
    await world.settled(*held_up)


async def test_a_probe_that_waited_for_room_while_its_upstream_was_suspended_leaves_the_place_to_another(
    world: World,
) -> None:
    world.memory.limit = 6 * MIB
    opened, waiting = stuck(world.upstream("acme/slow"))
    await world.open(world.plan({"slow.example": "acme/slow", "*": "acme/well"}))
    content = CONTENT + b"x" * 2 * MIB
    other = await world.accept("a@slow.example", content=content, push=False)
    world.look()
    await asyncio.wait_for(waiting.wait(), 20)  # no room is left for another one of acme
    lane = world.dispatcher._lines["acme/well"].lane
    lane.gate.trouble(world.clock(), "down", 0)
    world.clock.now += 600_000
    probe = await world.accept("a@example.org", content=content, push=False)
    world.look()
    await until(lambda: lane.gate.probing and lane.flying == 1)
    lane.gate.shut = True
    opened.set()
    await until(lambda: lane.flying == 0)
    assert not world.upstream("acme/well").transactions
    lane.gate.shut = False
    world.look()
    await world.settled(other, probe)
