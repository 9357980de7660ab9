"""What came back is written once, in the message's own segment, and told to whom it concerns."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from relayd.config.models import Spool
from relayd.core.event import Event, EventKind
from relayd.core.feedback import Applied, Fact, FactError, FeedbackKind
from relayd.core.ids import MessageId
from relayd.core.lifecycle import State
from relayd.core.mail import Envelope, Notify, Recipient
from relayd.inbound.apply import FactApplier, came_back
from relayd.spool.audit import audit
from relayd.spool.sqlite import SqliteStore
from relayd.spool.store import Amended, Amendment, Notice, StoreError
from tests.support.clock import Clock
from tests.support.mail import CONTENT, NOW, make_message, make_settlement, make_waiting


class Desk:
    """A store, an applier on it, and what it told."""

    def __init__(self, store: SqliteStore) -> None:
        self.store = store
        self.notify, self.rewrites = True, False
        self.owed = 0
        self.claimed: list[MessageId] = []
        self.busy = False
        self.heard: list[Event] = []
        store.subscribe(self.heard.extend)
        self.applier = FactApplier(
            store, self, notify=lambda: self.notify, rewrites=lambda lane: self.rewrites, owed=self._owed
        )

    def _owed(self) -> None:
        self.owed += 1

    def claim(self, message: MessageId) -> bool:
        self.claimed.append(message)
        return not self.busy

    def unclaim(self, message: MessageId) -> None:
        self.claimed.remove(message)

    async def mail(self, state: State = State.DELIVERED, *, sender: str = "shop@example.com", notify: Any = ()) -> Fact:
        """A mail to one recipient in that state; a hard bounce of it."""
        message = make_message(self.store.mint(), envelope=Envelope(sender))
        waiting = make_waiting(recipient=Recipient("a@example.org", frozenset(notify)))
        await self.store.accept(message, [waiting], CONTENT)
        if state is not State.QUEUED:
            await self.store.settle(make_settlement(message, [waiting], state))
        self.heard.clear()
        return Fact(
            message.id,
            0,
            FeedbackKind.BOUNCE,
            "user-unknown",
            NOW + 5000,
            "d1",
            action="failed",
            hard=True,
            status="5.1.1",
            diagnostic="550 5.1.1 No such user",
            recipient="a@example.org",
        )

    async def standing(self, fact: Fact) -> tuple[State, Notice | None]:
        [waiting] = (await self.store.history(fact.message)).recipients
        return waiting.state, waiting.notice


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    store = SqliteStore(tmp_path / "spool", 0, 1, Spool(), Clock())
    await store.open()
    yield Desk(store)
    await store.close()
    report = audit(tmp_path / "spool")
    assert report.clean, report.discrepancies


async def test_a_bounce_after_delivery_changes_the_state_once(desk: Desk) -> None:
    fact = await desk.mail()
    assert await desk.applier.apply(fact) is Applied.NEW
    for again in (fact, replace(fact, source="d2", at=NOW + 9000), replace(fact, cls="mailbox-full", hard=False)):
        assert await desk.applier.apply(again) is Applied.DUPLICATE
    assert await desk.standing(fact) == (State.BOUNCED, None)
    [event] = desk.heard
    assert (event.kind, event.at, event.recipient) == (EventKind.BOUNCED, NOW + 5000, "a@example.org")
    assert event.detail["source"] == "bounce"
    assert (event.detail["class"], event.detail["reply"]) == ("user-unknown", "550 5.1.1 No such user")
    assert (event.detail["upstream"], event.detail["digest"]) == ("acme", "d1")
    assert desk.owed == 0


@pytest.mark.parametrize("by_plan", [True, False])
async def test_the_sender_hears_of_it_where_the_return_path_was_ours(desk: Desk, by_plan: bool) -> None:
    fact = await desk.mail()
    desk.rewrites = by_plan
    await desk.applier.apply(replace(fact, rewritten=not by_plan))
    assert await desk.standing(fact) == (State.BOUNCED, Notice.FAILURE)
    assert desk.owed == 1
    assert await desk.store.owing(5) == [fact.message]


@pytest.mark.parametrize(
    ("sender", "notify", "wanted"),
    [
        ("", (), True),
        ("shop@example.com", (Notify.NEVER,), True),
        ("shop@example.com", (Notify.SUCCESS,), True),
        ("shop@example.com", (), False),
    ],
)
async def test_nobody_is_told_who_does_not_want_it(desk: Desk, sender: str, notify: Any, wanted: bool) -> None:
    fact = await desk.mail(sender=sender, notify=notify)
    desk.notify = wanted
    await desk.applier.apply(replace(fact, rewritten=True))
    assert await desk.standing(fact) == (State.BOUNCED, None)
    assert desk.owed == 0


async def test_what_waits_is_taken_out_of_memory_and_ended(desk: Desk) -> None:
    fact = await desk.mail(State.QUEUED)
    assert await desk.applier.apply(fact) is Applied.NEW
    assert await desk.standing(fact) == (State.BOUNCED, None)
    assert desk.claimed == []
    busy = await desk.mail(State.QUEUED)
    desk.busy = True
    assert await desk.applier.apply(busy) is Applied.NEW
    assert desk.claimed == [busy.message]


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"kind": FeedbackKind.COMPLAINT, "cls": "complaint", "action": ""}, EventKind.COMPLAINED),
        ({"kind": FeedbackKind.AUTO_REPLY, "cls": "vacation", "action": ""}, EventKind.REPLIED),
        ({"kind": FeedbackKind.DELIVERY_REPORT, "cls": "delivered", "action": "delivered"}, EventKind.CONFIRMED),
        ({"action": "delayed", "hard": False}, EventKind.POSTPONED),
    ],
)
async def test_other_facts_are_events_only(desk: Desk, change: dict[str, Any], kind: EventKind) -> None:
    fact = replace(await desk.mail(), **change)
    assert await desk.applier.apply(fact) is Applied.NEW
    assert await desk.applier.apply(replace(fact, source="d2")) is Applied.DUPLICATE
    assert await desk.standing(fact) == (State.DELIVERED, None)
    assert [event.kind for event in desk.heard] == [kind]
    # and a bounce is still news
    later = replace(fact, kind=FeedbackKind.BOUNCE, action="failed", hard=True)
    assert await desk.applier.apply(later) is Applied.NEW


async def test_what_is_not_ours_changes_nothing(desk: Desk) -> None:
    fact = await desk.mail()
    stranger = make_message(desk.store.mint())
    for other in (
        replace(fact, message=stranger.id),
        replace(fact, n=3),
        replace(fact, message=5),
        replace(fact, n=-1),
    ):
        assert await desk.applier.apply(other) is Applied.UNKNOWN
    assert desk.heard == []
    assert await desk.standing(fact) == (State.DELIVERED, None)


async def test_a_state_that_changes_meanwhile_is_looked_at_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    fact = await desk.mail(State.QUEUED)
    real = desk.store.amend
    seen: list[State] = []

    def amend(amendment: Amendment) -> Any:
        seen.append(amendment.before)
        if len(seen) == 1:
            message = make_message(fact.message)
            desk.store.settle(make_settlement(message, [make_waiting()], State.DELIVERED))
        return real(amendment)

    monkeypatch.setattr(desk.store, "amend", amend)
    assert await desk.applier.apply(fact) is Applied.NEW
    assert seen == [State.QUEUED, State.DELIVERED]
    assert await desk.standing(fact) == (State.BOUNCED, None)


async def test_a_store_that_fails_is_an_error_to_try_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    fact = await desk.mail()

    async def failing(amendment: Amendment) -> Amended:
        raise StoreError("the disk is full")

    monkeypatch.setattr(desk.store, "amend", failing)
    with pytest.raises(FactError, match="disk is full"):
        await desk.applier.apply(fact)


@pytest.mark.parametrize(
    ("change", "reply"),
    [
        ({}, "550 5.1.1 No such user"),
        ({"diagnostic": "5.1.1 No such user"}, "550 5.1.1 No such user"),
        ({"diagnostic": "No such user\n here"}, "550 5.1.1 No such user here"),
        ({"diagnostic": "", "status": "4.2.2", "action": "delayed"}, "450 4.2.2"),
        ({"diagnostic": "gone", "status": "", "reply_code": 554}, "554 gone"),
        ({"diagnostic": "", "status": ""}, None),
    ],
)
async def test_the_words_of_the_other_side_take_the_form_of_a_reply(
    desk: Desk, change: dict[str, Any], reply: str | None
) -> None:
    fact = replace(await desk.mail(), **change)
    amendment = came_back(make_message(fact.message), make_waiting(state=State.DELIVERED), fact, report=False)
    assert amendment.change.event.detail.get("reply") == reply


async def test_however_many_facts_come_few_are_kept(desk: Desk) -> None:
    fact = await desk.mail()
    for number in range(30):
        for action in ("failed", "delayed", "", "relayed"):
            await desk.applier.apply(replace(fact, source=f"d{number}", action=action, diagnostic=f"words {number}"))
    assert len(desk.heard) <= 4
