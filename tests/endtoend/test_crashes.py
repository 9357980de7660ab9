"""kill -9 at every step between the final dot and 250, and between the upstream's 250 and our commit.

The promise: what was answered 250 is delivered, whatever happens; what is delivered twice was in flight when the
daemon died. The upstream counts, and `relayd audit` finds nothing wrong on the disk, before and after the restart.
"""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from typing import Any

import pytest

from tests.endtoend.client import Client, Reply, mail, subject_of
from tests.endtoend.conftest import MakeDaemon
from tests.support.crashing import ACCEPTING, CARRYING, STARTING
from tests.support.daemon import Daemon, smtp_upstream
from tests.support.fake_upstream import FakeUpstream, Wait

DOOMED = "doomed"
EARLIER = ("first", "second")
RECIPIENT = "a@example.org"


def taken(upstream: FakeUpstream) -> Counter[str]:
    """How often the upstream has taken each mail."""
    return Counter(subject_of(each.content) for each in upstream.accepted)


async def send(client: Client, subject: str, *recipients: str, size: int = 0) -> Reply:
    return await client.send("app@example.com", recipients or (RECIPIENT,), mail(subject, size=size))


async def crash(
    daemon: Daemon, upstream: FakeUpstream, step: str, nth: int = 1, *recipients: str, size: int = 0
) -> bool:
    """Two mails that arrive, then the one at which the daemon dies. Was that one promised?"""
    await daemon.start(plan={"crash": {"step": step, "nth": nth}})
    async with Client(daemon.port) as client:
        for subject in EARLIER:
            assert (await send(client, subject))[0] == 250
        await daemon.wait_for_event("delivered", count=len(EARLIER))
        answer = await send(client, DOOMED, *recipients, size=size)
    assert await daemon.ended() == -signal.SIGKILL
    return answer[0] == 250


async def drained(daemon: Daemon) -> None:
    """Wait until nothing waits any more, and no report is to be made."""

    async def empty() -> bool:
        report = await asyncio.to_thread(daemon.audit)
        return not report.waiting and not report.owed

    await daemon.until(empty, "the queue is empty")


async def recover(daemon: Daemon, *recipients: str, promised: bool, size: int = 0) -> None:
    """Start again; the client, unless it was promised, sends its mail again. Then all must be delivered."""
    await daemon.restart()
    if not promised:
        async with Client(daemon.port) as client:
            assert (await send(client, DOOMED, *recipients, size=size))[0] == 250
    await drained(daemon)
    assert await daemon.stop() == 0
    report = daemon.audit()
    assert report.clean, report.discrepancies


BEFORE_COMMIT = (
    ("the content is whole", 1),
    ("headers are added", 1),
    ("the store is asked", 1),
    ("it waits for the commit", 1),
    ("the commit begins", 1),
    ("the transaction is open", 1),
    ("message, body and recipients are written", 2),
    ("message, body and recipients are written", 3),
    ("message, body and recipients are written", 4),
    ("message, body and recipients are written", 6),
    ("all but COMMIT", 1),
)
BEHIND_COMMIT = (
    "COMMIT",
    "the loop hears of the commit",
    "before the mail log",
    "behind the mail log",
    "before delivery has it",
    "delivery has it",
    "the reply is made",
    "the reply is about to be written",
)


def test_every_step_is_in_a_table() -> None:
    assert {step for step, _ in BEFORE_COMMIT} | set(BEHIND_COMMIT) == set(ACCEPTING)
    assert {step for step, _ in UNSENT} | {step for step, _ in REPEATED} | set(SETTLED) == set(CARRYING)


@pytest.mark.parametrize(("step", "nth"), BEFORE_COMMIT)
async def test_killed_before_the_commit_nothing_is_kept_and_nothing_was_promised(
    make_daemon: MakeDaemon, step: str, nth: int
) -> None:
    async with FakeUpstream() as upstream:
        daemon = make_daemon({"upstreams": {"acme": smtp_upstream(upstream)}})
        assert not await crash(daemon, upstream, step, nth)
        report = daemon.audit()
        assert report.clean and report.accepted == len(EARLIER)
        await recover(daemon, promised=False)
        assert taken(upstream) == Counter((*EARLIER, DOOMED))


@pytest.mark.parametrize("step", BEHIND_COMMIT)
async def test_killed_between_commit_and_250_it_is_delivered_and_may_come_again(
    make_daemon: MakeDaemon, step: str
) -> None:
    async with FakeUpstream() as upstream:
        daemon = make_daemon({"upstreams": {"acme": smtp_upstream(upstream)}})
        assert not await crash(daemon, upstream, step)
        report = daemon.audit()
        assert report.clean and report.accepted == len(EARLIER) + 1
        await recover(daemon, promised=False)
        # once from our disk, and once more because the client, not having read 250, has sent it again
        assert taken(upstream) == Counter((*EARLIER, DOOMED, DOOMED))


async def test_killed_behind_250_it_is_delivered(make_daemon: MakeDaemon) -> None:
    async with FakeUpstream({"MAIL": "451 4.3.0 not now"}) as upstream:
        daemon = make_daemon({"upstreams": {"acme": smtp_upstream(upstream)}})
        await daemon.start()
        async with Client(daemon.port) as client:
            answers = [await send(client, f"mail-{number}") for number in range(5)]
            await daemon.kill9()
        assert [code for code, _ in answers] == [250] * 5
        assert daemon.audit().accepted == 5
        upstream.script.clear()
        await recover(daemon, promised=True)
        assert taken(upstream) == Counter(f"mail-{number}" for number in range(5))


@pytest.mark.parametrize(
    ("step", "nth", "kept"),
    [
        ("a part is about to be committed", 1, 0),
        ("a part is committed", 1, 0),
        ("a part is committed", 2, 0),
        ("a part is about to be committed", 3, 0),
        ("a part is committed", 3, 1),
    ],
)
async def test_killed_between_the_parts_of_a_large_body(
    make_daemon: MakeDaemon, step: str, nth: int, kept: int
) -> None:
    size = 5 * 1024**2 // 2  # three parts of up to 1 MiB
    async with FakeUpstream() as upstream:
        daemon = make_daemon({"upstreams": {"acme": smtp_upstream(upstream)}})
        assert not await crash(daemon, upstream, step, nth, size=size)
        report = daemon.audit()
        assert report.clean and report.accepted == len(EARLIER) + kept
        await recover(daemon, promised=False, size=size)
        assert taken(upstream) == Counter((*EARLIER, *[DOOMED] * (1 + kept)))
        assert {len(each.content) > size * 0.9 for each in upstream.accepted if subject_of(each.content) == DOOMED} == {
            True
        }


UNSENT = (("before MAIL", 1), ("before the content", 1))
REPEATED = (
    ("the upstream's 250 is read", 1),
    ("the session has reported", 1),
    ("before it is decided", 1),
    ("before the store is asked", 1),
    ("the settlement waits for the commit", 1),
    ("the settlement's commit begins", 1),
    ("the settlement is half written", 5),
    ("the settlement is half written", 6),
    ("the settlement, all but COMMIT", 1),
)
SETTLED = (
    "the settlement's COMMIT",
    "the loop hears of the settlement",
    "before the mail log of the settlement",
    "behind the mail log of the settlement",
    "before the window has room again",
    "the window has room again",
)


@pytest.mark.parametrize(
    ("step", "nth", "times"),
    [
        *((step, nth, 1) for step, nth in UNSENT),
        *((step, nth, 2) for step, nth in REPEATED),
        *((step, 1, 1) for step in SETTLED),
    ],
)
async def test_killed_while_it_is_carried_only_the_transaction_in_flight_repeats(
    make_daemon: MakeDaemon, step: str, nth: int, times: int
) -> None:
    async with FakeUpstream() as upstream:
        daemon = make_daemon({"upstreams": {"acme": smtp_upstream(upstream)}})
        assert await crash(daemon, upstream, step, nth) or times
        report = daemon.audit()
        assert report.clean and report.accepted == len(EARLIER) + 1
        await recover(daemon, promised=True)
        assert taken(upstream) == Counter((*EARLIER, *[DOOMED] * times))


async def test_killed_while_the_upstream_has_the_dot_and_has_not_answered(make_daemon: MakeDaemon) -> None:
    answer = asyncio.Event()
    async with FakeUpstream({"DOT": [Wait(answer)]}) as upstream:
        daemon = make_daemon({"upstreams": {"acme": smtp_upstream(upstream)}})
        await daemon.start()
        async with Client(daemon.port) as client:
            assert (await send(client, DOOMED))[0] == 250
        await daemon.until(lambda: upstream.mails, "the dot is there")
        await daemon.kill9()
        answer.set()
        await recover(daemon, promised=True)
        assert len(upstream.mails) == 2


MIXED = ("good@example.org", "late@example.org", "bad@example.org")


@pytest.mark.parametrize(("step", "times"), [("the settlement, all but COMMIT", 2), ("the settlement's COMMIT", 1)])
async def test_killed_with_mixed_replies_those_that_are_settled_stay_settled(
    make_daemon: MakeDaemon, step: str, times: int
) -> None:
    replies: dict[str, Any] = {
        "RCPT": [None, None, None, "450 4.2.1 later", "550 5.1.1 no such user"]
        + [None, "450 4.2.1 later", "550 5.1.1 no such user"] * (times - 1)
    }
    async with FakeUpstream(replies) as upstream:
        daemon = make_daemon({"upstreams": {"acme": smtp_upstream(upstream)}, "bounces": {"notify": "none"}})
        await crash(daemon, upstream, step, 1, *MIXED)
        assert daemon.audit().clean
        await recover(daemon, promised=True)
        doomed = [each.recipients for each in upstream.accepted if subject_of(each.content) == DOOMED]
        assert doomed == [["good@example.org"]] * times + [["late@example.org"]]
        assert daemon.audit().final == {"delivered": 4, "bounced": 1}


async def test_killed_between_the_transactions_of_one_message(make_daemon: MakeDaemon) -> None:
    async with FakeUpstream() as upstream:
        section = smtp_upstream(upstream, limits={"recipients_per_message": 1, "connections": 1})
        # no commit waits for company: on a busy machine all three would share the first one
        alone = {"relayd.spool.company:PATIENCE": 0.0}
        daemon = make_daemon({"upstreams": {"acme": section}}, constants=alone)
        await crash(daemon, upstream, "the settlement's COMMIT", 2, *MIXED)
        await recover(daemon, promised=True)
        doomed = Counter(r for each in upstream.accepted if subject_of(each.content) == DOOMED for r in each.recipients)
        # the third may be on its way before the second is on disk: then its transaction is in flight, and repeats
        assert doomed in (Counter(MIXED), Counter((*MIXED, MIXED[2])))


@pytest.mark.parametrize(
    ("step", "nth"),
    [
        *((step, 1) for step in STARTING),
        ("key and certificate are written", 2),
        ("key and certificate are put in place", 2),
    ],
)
async def test_killed_while_it_starts_for_the_first_time(make_daemon: MakeDaemon, step: str, nth: int) -> None:
    daemon = make_daemon()
    await daemon.start(ready=False, plan={"crash": {"step": step, "nth": nth}})
    assert await daemon.ended() == -signal.SIGKILL, daemon.log_text()
    await daemon.start()
    async with Client(daemon.port) as client:
        assert (await send(client, "after"))[0] == 250
    await daemon.wait_for_event("delivered")
    assert await daemon.stop() == 0
    report = daemon.audit()
    assert report.clean and report.accepted == 1


@pytest.mark.parametrize("step", ["the spool is open", "state.db is open", "lanes are filled"])
async def test_killed_while_it_recovers(make_daemon: MakeDaemon, step: str) -> None:
    async with FakeUpstream() as upstream:
        daemon = make_daemon({"upstreams": {"acme": smtp_upstream(upstream)}})
        await crash(daemon, upstream, "delivery has it")
        for _ in range(2):
            await daemon.start(ready=False, plan={"crash": {"step": step}})
            assert await daemon.ended() == -signal.SIGKILL
            assert daemon.audit().clean
        await recover(daemon, promised=True)
        assert taken(upstream) == Counter((*EARLIER, DOOMED))
