"""What every engine of the Store promises. Engine-specific matters (files, faults) are tested elsewhere."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Sequence

import pytest
from structlog.testing import capture_logs

from relayd.core.event import Event, EventKind
from relayd.core.ids import MessageId, slot_of
from relayd.core.lifecycle import State
from relayd.core.mail import Body, Envelope, Message, Notify, Origin, Recipient, Ret
from relayd.spool.filter import QueueFilter
from relayd.spool.sqlite import SqliteStore
from relayd.spool.store import (
    Amended,
    Amendment,
    Delivery,
    LaneDepth,
    NoSuchMessageError,
    Notice,
    Settlement,
    StoreError,
    Waiting,
)
from relayd.spool.writes import PART
from tests.spool.conftest import OpenStore
from tests.support.clock import Clock
from tests.support.mail import (
    CONTENT,
    NOW,
    make_attempt,
    make_change,
    make_message,
    make_settlement,
    make_waiting,
)


async def keep(
    store: SqliteStore, recipients: Sequence[Waiting] | None = None, content: bytes = CONTENT, **others: object
) -> Delivery:
    """Accept a message and wait for the disk."""
    message = make_message(store.mint(), content=content, **others)  # type: ignore[arg-type]
    chosen = tuple(recipients or [make_waiting()])
    await store.accept(message, chosen, content)
    return Delivery(message, chosen)


def ids(deliveries: Sequence[Delivery]) -> list[MessageId]:
    return [delivery.message.id for delivery in deliveries]


async def test_every_fact_of_a_message_comes_back(open_store: OpenStore) -> None:
    store = await open_store()
    message = Message(
        store.mint(),
        NOW,
        Envelope("söme@example.com", Body.EIGHT_BIT_MIME, True, Ret.HDRS, "QQ314159"),
        Origin("smtps", "2001:db8::1", "[192.0.2.1]", "shop", "office", "TLSv1.3", "UTF8SMTPSA"),
        len(CONTENT),
        "example.com",
        "<a@b>",
        "件名 ✓",
        "newsletter",
        7,
        {"x-list": "weekly"},
    )
    waiting = (
        Waiting(
            0,
            Recipient("a@example.org", frozenset({Notify.SUCCESS, Notify.DELAY}), "rfc822;A+2Bb@example.org"),
            "acme",
            due=NOW,
        ),
        Waiting(1, Recipient("b@example.org", frozenset({Notify.NEVER})), "", State.HELD, 3, None, True, Notice.DELAY),
        Waiting(2, Recipient("c@example.org"), "other", State.UNCERTAIN, 1, None),
    )
    await store.accept(message, waiting, CONTENT)
    for _ in range(2):
        history = await store.history(message.id)
        assert history.message == message
        assert history.recipients == waiting
        assert history.attempts == ()
        assert history.has_content
        assert await store.content(message.id) == CONTENT
        assert [(event.kind, event.n, event.recipient) for event in history.events] == [
            (EventKind.ACCEPTED, 0, "a@example.org"),
            (EventKind.ACCEPTED, 1, "b@example.org"),
            (EventKind.ACCEPTED, 2, "c@example.org"),
        ]
        await store.close()
        store = await open_store()


async def test_plain_message_comes_back_equal(store: SqliteStore) -> None:
    message = Message(store.mint(), NOW, Envelope(""), Origin("local", "127.0.0.1"), len(CONTENT))
    await store.accept(message, [make_waiting()], CONTENT)
    assert (await store.history(message.id)).message == message


async def test_minted_ids_rise_and_carry_the_slot(open_store: OpenStore, clock: Clock) -> None:
    store = await open_store(3, 4)
    first = store.mint()
    clock.advance(-3600)
    second = store.mint()
    clock.advance(7200)
    assert first < second < store.mint()
    assert slot_of(first) == 3


async def test_ids_stay_above_what_is_on_disk_when_the_clock_steps_back(open_store: OpenStore, clock: Clock) -> None:
    store = await open_store()
    kept = [(await keep(store)).message.id for _ in range(3)]
    await store.close()
    clock.advance(-86_400)
    store = await open_store()
    later = await keep(store)
    assert later.message.id > max(kept)
    assert (await store.history(later.message.id)).message == later.message


async def test_settling_writes_attempt_state_and_event(store: SqliteStore) -> None:
    mail = await keep(store, [make_waiting(0), make_waiting(1)])
    changes = (
        make_change(mail.message, mail.recipients[0], State.DELIVERED, reply="250 2.0.0 Ok"),
        make_change(mail.message, mail.recipients[1], State.DEFERRED, due=NOW + 60_000, reply="451 4.3.0 later"),
    )
    attempt = make_attempt((0, 1), transcript="C: QUIT", tls=None, endpoint="")
    await store.settle(Settlement(mail.message.id, changes, attempt))
    history = await store.history(mail.message.id)
    assert history.recipients == tuple(change.after for change in changes)
    assert history.attempts == (attempt,)
    assert history.events[2:] == tuple(change.event for change in changes)


async def test_first_final_outcome_stands(store: SqliteStore) -> None:
    heard: list[Event] = []
    store.subscribe(heard.extend)
    mail = await keep(store, [make_waiting(0), make_waiting(1)])
    await store.settle(make_settlement(mail.message, mail.recipients[:1], State.DELIVERED))
    await store.settle(make_settlement(mail.message, mail.recipients, State.BOUNCED))
    history = await store.history(mail.message.id)
    assert [waiting.state for waiting in history.recipients] == [State.DELIVERED, State.BOUNCED]
    told = [(event.n, event.kind) for event in history.events if event.kind is not EventKind.ACCEPTED]
    assert told == [(0, EventKind.DELIVERED), (1, EventKind.BOUNCED)]
    assert heard == list(history.events)


async def test_settlements_that_meet_in_one_commit_keep_their_order(store: SqliteStore) -> None:
    mail = await keep(store)
    other = await keep(store)
    deferred = make_settlement(mail.message, mail.recipients, State.DEFERRED, due=NOW + 5)
    delivered = make_settlement(mail.message, mail.recipients, State.DELIVERED)
    bounced = make_settlement(mail.message, mail.recipients, State.BOUNCED)
    elsewhere = make_settlement(other.message, other.recipients, State.DELIVERED)
    await asyncio.gather(*(store.settle(each) for each in (deferred, delivered, elsewhere, bounced)))
    history = await store.history(mail.message.id)
    assert [event.kind for event in history.events] == [EventKind.ACCEPTED, EventKind.DEFERRED, EventKind.DELIVERED]
    assert history.recipients[0].state is State.DELIVERED
    assert (await store.history(other.message.id)).recipients[0].state is State.DELIVERED


async def test_settling_what_is_not_there_fails_alone(store: SqliteStore) -> None:
    mail = await keep(store)
    ghost = make_message(store.mint())
    lost, fine, nobody = await asyncio.gather(
        store.settle(make_settlement(ghost, [make_waiting()], State.DELIVERED)),
        store.settle(make_settlement(mail.message, mail.recipients, State.DELIVERED)),
        store.settle(make_settlement(mail.message, [make_waiting(7)], State.DELIVERED)),
        return_exceptions=True,
    )
    assert isinstance(lost, NoSuchMessageError)
    assert fine is None
    assert isinstance(nobody, StoreError)
    with pytest.raises(NoSuchMessageError):
        await store.history(ghost.id)
    assert [event.n for event in (await store.history(mail.message.id)).events] == [0, 0]


async def test_an_attempt_without_changes_is_kept(store: SqliteStore) -> None:
    mail = await keep(store)
    await store.settle(Settlement(mail.message.id, (), make_attempt()))
    assert (await store.history(mail.message.id)).attempts == (make_attempt(),)
    with pytest.raises(NoSuchMessageError):
        await store.settle(Settlement(store.mint(), (), make_attempt()))


async def test_accepting_an_id_twice_fails_alone(store: SqliteStore) -> None:
    mail = await keep(store)
    other = make_message(store.mint())
    twice, fine = await asyncio.gather(
        store.accept(mail.message, mail.recipients, b"other\r\n"),
        store.accept(other, [make_waiting()], CONTENT),
        return_exceptions=True,
    )
    assert isinstance(twice, StoreError)
    assert fine is None
    assert await store.content(mail.message.id) == CONTENT
    assert await store.content(other.id) == CONTENT


async def test_text_that_cannot_be_written_fails_alone(store: SqliteStore) -> None:
    good, bad = make_message(store.mint()), make_message(store.mint())
    fine, refused = await asyncio.gather(
        store.accept(good, [make_waiting()], CONTENT),
        store.accept(bad, [make_waiting(address="\udc80@example.org")], CONTENT),
        return_exceptions=True,
    )
    assert fine is None
    assert isinstance(refused, StoreError)
    assert (await store.due("acme", NOW, 10, ())).deliveries[0].message.id == good.id


async def test_stray_octets_in_a_reply_do_not_keep_mail_from_being_settled(store: SqliteStore) -> None:
    mail = await keep(store)
    change = make_change(mail.message, mail.recipients[0], State.BOUNCED, reply="550 \udcff no")
    attempt = make_attempt(reply="550 \udcff no", transcript="S: 550 \udcff no")
    await store.settle(Settlement(mail.message.id, (change,), attempt))
    history = await store.history(mail.message.id)
    assert history.events[-1].detail == {"reply": "550 ? no"}
    assert history.attempts[0].reply == "550 ? no"


async def test_a_waiting_recipient_must_have_a_time(store: SqliteStore) -> None:
    message = make_message(store.mint())
    with pytest.raises(ValueError, match="needs a time"):
        store.accept(message, [make_waiting(due=None)], CONTENT)
    with pytest.raises(ValueError, match="cannot be accepted as delivered"):
        store.accept(message, [make_waiting(state=State.DELIVERED)], CONTENT)
    mail = await keep(store)
    with pytest.raises(ValueError, match="needs a time"):
        store.settle(make_settlement(mail.message, mail.recipients, State.DEFERRED))


async def test_a_settled_recipient_is_never_due(store: SqliteStore) -> None:
    mail = await keep(store, [make_waiting(n) for n in range(3)])
    changes = tuple(
        make_change(mail.message, waiting, state, due=NOW)
        for waiting, state in zip(mail.recipients, (State.DELIVERED, State.HELD, State.BOUNCED), strict=True)
    )
    await store.settle(Settlement(mail.message.id, changes))
    assert (await store.due("acme", NOW, 10, ())).deliveries == []
    assert await store.lanes() == []


async def test_due_gives_the_oldest_due_first_and_when_to_ask_again(store: SqliteStore) -> None:
    late = await keep(store, [make_waiting(due=NOW + 500)])
    soon = await keep(store, [make_waiting(due=NOW - 5), make_waiting(1, due=NOW + 700), make_waiting(2, lane="b")])
    first = await keep(store, [make_waiting(due=NOW - 10)])
    due = await store.due("acme", NOW, 10, ())
    assert ids(due.deliveries) == [first.message.id, soon.message.id]
    assert due.deliveries[1] == Delivery(soon.message, soon.recipients[:1])
    assert due.next_due == NOW + 500
    assert (await store.due("acme", NOW, 1, ())).next_due == NOW
    skipped = await store.due("acme", NOW, 1, {first.message.id})
    assert ids(skipped.deliveries) == [soon.message.id]
    assert skipped.next_due == NOW + 500
    assert ids((await store.due("acme", NOW + 500, 10, ())).deliveries)[-1] == late.message.id
    assert await store.due("none", NOW, 10, ()) == type(due)([], None)


async def test_due_walks_past_any_number_of_skipped_messages(store: SqliteStore) -> None:
    mails = await asyncio.gather(*(keep(store, [make_waiting(due=NOW - 1000 + n)]) for n in range(700)))
    last = mails[-1].message.id
    due = await store.due("acme", NOW, 2, {mail.message.id for mail in mails[:-1]})
    assert ids(due.deliveries) == [last]
    assert due.next_due is None


async def test_due_gives_a_large_message_whole_but_not_many_of_them(store: SqliteStore) -> None:
    crowd = [make_waiting(n) for n in range(6000)]
    first = await keep(store, crowd)
    await keep(store, crowd)
    due = await store.due("acme", NOW, 10, ())
    assert due.deliveries == [first]
    assert due.next_due == NOW


async def test_fresh_mail_is_not_due_before_its_owner_has_heard(store: SqliteStore) -> None:
    """Between the commit and the callback that hands the mail to delivery, due() must not hand it out as well."""
    taken: set[MessageId] = set()
    doubled = []
    for _ in range(20):
        message = make_message(store.mint())
        future = store.accept(message, [make_waiting()], CONTENT)
        future.add_done_callback(lambda _, number=message.id: taken.add(number))
        while not future.done():
            due = await store.due("acme", NOW, 100, taken)
            doubled += [number for number in ids(due.deliveries) if number not in taken]
        await asyncio.sleep(0)
    assert doubled == []
    assert len(taken) == 20


async def test_mail_that_is_settled_during_a_look_is_not_given_again(store: SqliteStore) -> None:
    """A message leaves `skip` when its settlement is on disk; an older look at the disk must not bring it back."""
    mail = await keep(store)

    class Skip:
        """Holds the message until it is asked for, and is settled at that very moment."""

        future: asyncio.Future[None] | None = None

        def __contains__(self, message: object) -> bool:
            if self.future is None:
                self.future = store.settle(make_settlement(mail.message, mail.recipients, State.DELIVERED))
                return False
            return False

    skip = Skip()
    original = store._due_heads

    async def slow(*arguments: object) -> object:
        found = await original(*arguments)  # type: ignore[arg-type]
        assert skip.future is not None
        await skip.future
        return found

    store._due_heads = slow  # type: ignore[assignment,method-assign]
    assert (await store.due("acme", NOW, 10, skip)).deliveries == []  # type: ignore[arg-type]


async def test_lanes_count_what_waits(store: SqliteStore, clock: Clock) -> None:
    await keep(store, [make_waiting(0), make_waiting(1, lane="")])
    clock.advance(60)
    await keep(
        store,
        [
            make_waiting(0),
            make_waiting(1, state=State.HELD),
            make_waiting(2, state=State.UNCERTAIN, due=None),
            make_waiting(3, lane="slow", state=State.UNCERTAIN),
        ],
    )
    assert await store.lanes() == [
        LaneDepth("", 1, NOW),
        LaneDepth("acme", 2, NOW),
        LaneDepth("slow", 1, NOW + 60_000),
    ]


async def test_relane_moves_all_that_is_not_final(store: SqliteStore) -> None:
    mails = [await keep(store, [make_waiting(0), make_waiting(1, state=State.HELD), make_waiting(2)]) for _ in range(3)]
    await store.settle(make_settlement(mails[0].message, mails[0].recipients[2:], State.DELIVERED))
    in_hand = {mails[2].message.id}
    heard: list[Event] = []
    store.subscribe(heard.extend)
    moved = await store.relane(lambda message, recipient: "b" if message.id else "", in_hand)
    assert moved == 5
    assert {(event.kind, event.detail["from"], event.detail["upstream"]) for event in heard} == {
        (EventKind.MOVED, "acme", "b")
    }
    told = [event for event in (await store.history(mails[1].message.id)).events if event.kind is EventKind.MOVED]
    assert [event.n for event in told] == [0, 1, 2]
    lanes = [[w.lane for w in (await store.history(mail.message.id)).recipients] for mail in mails]
    assert lanes == [["b", "b", "acme"], ["b", "b", "b"], ["acme", "acme", "acme"]]
    assert ids((await store.due("b", NOW, 9, ())).deliveries) == ids(mails[:2])
    assert await store.relane(lambda message, recipient: "b", in_hand) == 0


async def test_what_is_relaned_is_due_at_once_unless_an_operator_is_waited_for(
    store: SqliteStore, clock: Clock
) -> None:
    mail = await keep(store, [make_waiting(0), make_waiting(1, state=State.HELD), make_waiting(2)])
    later = make_settlement(mail.message, mail.recipients[:1], State.DEFERRED, due=NOW + 3_600_000)
    parked = make_settlement(mail.message, mail.recipients[2:], State.UNCERTAIN, due=None)
    await store.settle(later)
    await store.settle(parked)
    clock.advance(60)
    assert await store.relane(lambda message, recipient: "b", ()) == 3
    history = await store.history(mail.message.id)
    assert [waiting.due for waiting in history.recipients] == [NOW + 60_000, None, None]


async def test_owed_reports_are_found_until_they_are_made(store: SqliteStore) -> None:
    mail = await keep(store, [make_waiting(0), make_waiting(1)])
    quiet = await keep(store)
    assert await store.owing(10) == []
    await store.settle(make_settlement(mail.message, mail.recipients, State.BOUNCED, notice=Notice.FAILURE))
    await store.settle(make_settlement(quiet.message, quiet.recipients, State.BOUNCED))
    assert await store.owing(10) == [mail.message.id]
    await store.noticed(mail.message.id, [0])
    assert await store.owing(10) == [mail.message.id]
    await store.noticed(mail.message.id, [1])
    assert await store.owing(10) == []
    assert [waiting.notice for waiting in (await store.history(mail.message.id)).recipients] == [None, None]


async def test_overdue_finds_what_waits_whatever_the_reason(store: SqliteStore, clock: Clock) -> None:
    old = await keep(
        store,
        [
            make_waiting(0, due=NOW + 10**9),
            make_waiting(1, state=State.HELD),
            make_waiting(2, state=State.UNCERTAIN, due=None),
            make_waiting(3, state=State.DEFERRED),
        ],
    )
    clock.advance(10)
    await keep(store)
    assert await store.overdue(NOW, 10) == []
    [found] = await store.overdue(NOW + 1, 10)
    assert found.message == old.message
    assert [waiting.n for waiting in found.recipients] == [0, 2, 3]
    await store.settle(make_settlement(old.message, found.recipients, State.EXPIRED))
    assert await store.overdue(NOW + 1, 10) == []
    assert len(await store.overdue(NOW + 20_000, 10)) == 1


async def test_undelayed_comes_once_a_notice_was_considered(store: SqliteStore) -> None:
    mails = [await keep(store) for _ in range(5)]
    assert ids(await store.undelayed(NOW + 1, 2)) == ids(mails[:2])
    for mail in mails[:3]:
        await store.settle(
            make_settlement(
                mail.message, mail.recipients, State.DEFERRED, due=NOW + 1, delayed=True, kind=EventKind.DELAYED
            )
        )
    assert ids(await store.undelayed(NOW + 1, 10)) == ids(mails[3:])


async def test_what_is_released_is_considered_again(store: SqliteStore) -> None:
    """Time's questions remember how far they came; what starts to wait behind that place must still be met."""
    held = await keep(store, [make_waiting(state=State.HELD)])
    assert await store.overdue(NOW + 1, 10) == await store.undelayed(NOW + 1, 10) == []
    await store.settle(make_settlement(held.message, held.recipients, State.QUEUED, due=NOW))
    assert ids(await store.overdue(NOW + 1, 10)) == [held.message.id]
    assert ids(await store.undelayed(NOW + 1, 10)) == [held.message.id]


async def test_select_finds_what_a_filter_means(store: SqliteStore) -> None:
    shop = await keep(store, [make_waiting(0), make_waiting(1, "other@example.net")])
    news = await keep(store, [make_waiting(0, lane="slow")], sender="News@Example.COM")
    null = await keep(store, [make_waiting(state=State.HELD)], sender="")
    done = await keep(store)
    await store.settle(make_settlement(done.message, done.recipients, State.DELIVERED))

    async def found(**conditions: object) -> list[tuple[MessageId, int]]:
        deliveries = await store.select(QueueFilter(**conditions), 10)  # type: ignore[arg-type]
        return [(each.message.id, waiting.n) for each in deliveries for waiting in each.recipients]

    a, b, c = shop.message.id, news.message.id, null.message.id
    assert await found() == [(a, 0), (a, 1), (b, 0), (c, 0)]
    assert await found(sender="news@*") == await found(upstream="slow") == [(b, 0)]
    assert await found(sender="<>") == await found(states=frozenset({State.HELD})) == [(c, 0)]
    assert await found(recipient="*@example.net") == [(a, 1)]
    assert await found(ids=frozenset({a, c, done.message.id})) == [(a, 0), (a, 1), (c, 0)]
    assert await found(states=frozenset({State.DELIVERED})) == [(done.message.id, 0)]
    assert ids(await store.select(QueueFilter(), 2)) == [a, b]
    assert ids(await store.select(QueueFilter(), 2, b)) == [c]


async def test_events_are_told_after_their_commit_in_order(store: SqliteStore) -> None:
    heard: list[Event] = []
    kept: list[int] = []
    store.subscribe(lambda events: kept.append(len(events)))
    store.subscribe(heard.extend)
    mail = await keep(store, [make_waiting(0), make_waiting(1)])
    await store.settle(make_settlement(mail.message, mail.recipients, State.DELIVERED, reply="250 Ok"))
    assert heard == list((await store.history(mail.message.id)).events)
    assert sum(kept) == 4
    assert heard[0].detail["credential"] == "shop"
    assert heard[0].sender == "shop@example.com"


async def test_a_faulty_reader_of_events_stops_nobody(store: SqliteStore) -> None:
    heard: list[Event] = []

    def faulty(events: Sequence[Event]) -> None:
        raise RuntimeError("reader")

    store.subscribe(faulty)
    store.subscribe(heard.extend)
    with capture_logs() as logs:
        mail = await keep(store)
        await store.settle(make_settlement(mail.message, mail.recipients, State.DELIVERED))
    assert len(heard) == 2
    assert [log["event"] for log in logs] == ["event_reader_failed"] * 2


async def test_a_cancelled_wait_cancels_no_commit(store: SqliteStore) -> None:
    message = make_message(store.mint())
    future = store.accept(message, [make_waiting()], CONTENT)
    future.cancel()
    other = await keep(store)
    assert (await store.history(message.id)).message == message
    assert ids((await store.due("acme", NOW, 10, ())).deliveries) == [message.id, other.message.id]


async def test_many_at_once_share_commits(store: SqliteStore) -> None:
    commits: list[int] = []
    store.observe(lambda seconds, items: commits.append(items))
    await asyncio.gather(*(keep(store) for _ in range(300)))
    assert sum(commits) == 300
    assert len(commits) < 20


@pytest.mark.parametrize("size", [0, 1, 4096, 2 * PART, 2 * PART + 1, 5 * PART, 5 * PART + 17])
async def test_content_comes_back_octet_for_octet(store: SqliteStore, size: int) -> None:
    content = bytes(range(256)) * (size // 256) + b"\x00\xff" * (size % 256 // 2) + b"x" * (size % 2)
    mail = await keep(store, content=content)
    assert await store.content(mail.message.id) == content
    assert (await store.history(mail.message.id)).has_content


async def test_a_large_message_lets_others_pass(store: SqliteStore) -> None:
    large = asyncio.ensure_future(keep(store, content=b"x" * (20 * PART)))
    await asyncio.sleep(0)
    others = [await keep(store) for _ in range(3)]
    assert not large.done()
    assert len(others) == 3
    await large


async def test_unknown_messages_are_said_to_be_so(store: SqliteStore) -> None:
    for number in (store.mint(), make_message().id, 1, 5 << 12):
        with pytest.raises(NoSuchMessageError):
            await store.history(number)
        with pytest.raises(NoSuchMessageError):
            await store.content(number)
        with pytest.raises(NoSuchMessageError):
            await store.noticed(number, [0])


async def test_all_of_it_is_there_after_opening_again(open_store: OpenStore, clock: Clock) -> None:
    store = await open_store()
    waiting = await keep(store, [make_waiting(due=NOW - 3)])
    owed = await keep(store)
    await store.settle(make_settlement(owed.message, owed.recipients, State.BOUNCED, notice=Notice.FAILURE))
    # closing waits for what is on its way
    last = make_message(store.mint())
    future = store.accept(last, [make_waiting()], CONTENT)
    await store.close()
    assert future.done()
    store = await open_store()
    assert ids((await store.due("acme", NOW, 10, ())).deliveries) == [waiting.message.id, last.id]
    assert await store.owing(10) == [owed.message.id]
    assert await store.content(last.id) == CONTENT


def amendment(
    mail: Delivery, before: State, after: State, kind: EventKind, *, key: str = "failed", n: int = 0, **others: object
) -> Amendment:
    """A fact that came back about recipient `n`."""
    change = make_change(mail.message, mail.recipients[n], after, kind=kind, source="bounce", **others)  # type: ignore[arg-type]
    return Amendment(change, before, key)


async def delivered(store: SqliteStore, *recipients: Waiting) -> Delivery:
    mail = await keep(store, recipients or None)
    await store.settle(make_settlement(mail.message, mail.recipients, State.DELIVERED))
    return mail


async def test_a_fact_changes_delivered_to_bounced_once_and_survives_a_restart(open_store: OpenStore) -> None:
    store = await open_store()
    heard: list[Event] = []
    store.subscribe(heard.extend)
    mail = await delivered(store, make_waiting(0), make_waiting(1))
    bounce = amendment(mail, State.DELIVERED, State.BOUNCED, EventKind.BOUNCED, notice=Notice.FAILURE)
    assert await store.amend(bounce) is Amended.WRITTEN
    assert await store.amend(bounce) is Amended.KNOWN
    for _ in range(2):
        history = await store.history(mail.message.id)
        assert [waiting.state for waiting in history.recipients] == [State.BOUNCED, State.DELIVERED]
        assert [waiting.notice for waiting in history.recipients] == [Notice.FAILURE, None]
        assert [event.kind for event in history.events if event.n == 0][1:] == [EventKind.DELIVERED, EventKind.BOUNCED]
        assert await store.owing(10) == [mail.message.id]
        await store.close()
        store = await open_store()
        assert await store.amend(bounce) is Amended.KNOWN
    assert [event.kind for event in heard].count(EventKind.BOUNCED) == 1


async def test_duplicates_that_meet_in_one_commit_count_once(store: SqliteStore) -> None:
    mail = await delivered(store)
    bounce = amendment(mail, State.DELIVERED, State.BOUNCED, EventKind.BOUNCED)
    results = await asyncio.gather(*(store.amend(bounce) for _ in range(5)))
    assert sorted(results) == [Amended.KNOWN] * 4 + [Amended.WRITTEN]


async def test_a_fact_that_changes_no_state_leaves_the_recipient_as_it_is(store: SqliteStore) -> None:
    mail = await keep(store)
    late = amendment(mail, State.QUEUED, State.QUEUED, EventKind.POSTPONED, key="delayed", due=NOW + 5)
    assert await store.amend(late) is Amended.WRITTEN
    history = await store.history(mail.message.id)
    assert history.recipients == mail.recipients
    assert [event.kind for event in history.events] == [EventKind.ACCEPTED, EventKind.POSTPONED]


async def test_a_fact_decided_on_an_older_state_writes_nothing(store: SqliteStore) -> None:
    mail = await delivered(store)
    late = amendment(mail, State.UNCERTAIN, State.BOUNCED, EventKind.BOUNCED)
    assert await store.amend(late) is Amended.OVERTAKEN
    history = await store.history(mail.message.id)
    assert [event.kind for event in history.events] == [EventKind.ACCEPTED, EventKind.DELIVERED]
    again = amendment(mail, State.DELIVERED, State.BOUNCED, EventKind.BOUNCED)
    assert await store.amend(again) is Amended.WRITTEN


async def test_what_waits_is_ended_by_a_fact_and_the_attempt_in_hand_changes_it_no_more(store: SqliteStore) -> None:
    mail = await keep(store)
    bounce = amendment(mail, State.QUEUED, State.BOUNCED, EventKind.BOUNCED)
    assert await store.amend(bounce) is Amended.WRITTEN
    assert (await store.due("acme", NOW, 10, ())).deliveries == []
    await store.settle(make_settlement(mail.message, mail.recipients, State.DELIVERED))
    [recipient] = (await store.history(mail.message.id)).recipients
    assert (recipient.state, recipient.due) == (State.BOUNCED, None)


@pytest.mark.parametrize("state", [State.BOUNCED, State.EXPIRED, State.SUPPRESSED, State.DELETED])
async def test_no_fact_changes_another_final_state(store: SqliteStore, state: State) -> None:
    mail = await keep(store)
    await store.settle(make_settlement(mail.message, mail.recipients, state))
    fact = amendment(mail, state, State.DELIVERED, EventKind.CONFIRMED, notice=Notice.SUCCESS)
    assert await store.amend(fact) is Amended.WRITTEN
    [recipient] = (await store.history(mail.message.id)).recipients
    assert (recipient.state, recipient.notice) == (state, None)


async def test_a_fact_never_makes_a_recipient_wait(store: SqliteStore) -> None:
    mail = await keep(store)
    with pytest.raises(ValueError, match="makes no recipient"):
        store.amend(amendment(mail, State.QUEUED, State.DEFERRED, EventKind.POSTPONED, due=NOW))


async def test_facts_about_what_is_not_here_raise(store: SqliteStore) -> None:
    mail = await keep(store)
    stranger = Delivery(make_message(store.mint()), (make_waiting(),))
    with pytest.raises(NoSuchMessageError):
        await store.amend(amendment(stranger, State.DELIVERED, State.BOUNCED, EventKind.BOUNCED))
    nobody = Delivery(mail.message, (make_waiting(7),))
    with pytest.raises(NoSuchMessageError):
        await store.amend(amendment(nobody, State.DELIVERED, State.BOUNCED, EventKind.BOUNCED))
    assert (await store.history(mail.message.id)).recipients == mail.recipients


async def test_a_fact_opens_an_old_segment(open_store: OpenStore, clock: Clock) -> None:
    store = await open_store(segment=60.0)
    mail = await delivered(store)
    for _ in range(3):
        clock.advance(61)
        await delivered(store)
    await store.close()
    store = await open_store(segment=60.0)
    assert await store.amend(amendment(mail, State.DELIVERED, State.BOUNCED, EventKind.BOUNCED)) is Amended.WRITTEN
    assert (await store.history(mail.message.id)).recipients[0].state is State.BOUNCED


async def test_a_closed_store_takes_nothing_more_and_finishes_what_it_has_taken(
    store: SqliteStore, clock: Clock
) -> None:
    first = make_message(store.mint())
    taken = store.accept(first, [make_waiting()], CONTENT)
    closing = asyncio.create_task(store.close())
    await asyncio.sleep(0)
    for _ in range(2):
        late = make_message(store.mint())
        with pytest.raises(StoreError, match="closed"):
            await store.accept(late, [make_waiting()], CONTENT)
        clock.advance(2 * 86_400)
    await closing
    await taken
    with pytest.raises(StoreError):
        await store.lanes()


async def test_a_walk_over_the_whole_queue_keeps_no_other_read_waiting(store: SqliteStore) -> None:
    message = make_message(store.mint())
    await store.accept(message, [make_waiting()], CONTENT)
    begun, may_end = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def walk(_: sqlite3.Connection) -> None:
        loop.call_soon_threadsafe(begun.set)
        may_end.wait(20)

    walking = asyncio.create_task(store._shelf.current.survey(walk))
    try:
        await begun.wait()
        assert await asyncio.wait_for(store.content(message.id), 10) == CONTENT
        due = await asyncio.wait_for(store.due("acme", NOW, 10, ()), 10)
        assert [delivery.message.id for delivery in due.deliveries] == [message.id]
    finally:
        may_end.set()
        await walking
