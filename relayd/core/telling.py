"""What became of a mail, in sentences for the support desk: English and Japanese, from the events of one recipient.

The sentences about failures stand in classes.py; here are those about where a mail is, and the choice among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from relayd.core.bounce.verdict import Action
from relayd.core.classes import CLASSES, ClassFacts, ReplyClass
from relayd.core.event import Event, EventKind
from relayd.core.lifecycle import State
from relayd.core.units import Millis


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence in both languages."""

    en: str
    ja: str

    def of(self, language: str) -> str:
        """The text in `ja`, or else English."""
        return self.ja if language == "ja" else self.en


@dataclass(frozen=True, slots=True)
class Told:
    """What became of a mail to one recipient."""

    at: Millis
    """When the last thing happened that is told here."""
    cls: str
    """The class of what is told; "" where nothing was decided yet."""
    sentences: tuple[Sentence, ...]
    reply: str
    """The words of the other side; "" where there are none."""

    @property
    def facts(self) -> ClassFacts | None:
        """What is known of the class."""
        return facts_of(self.cls)


_STATES = {
    State.QUEUED: Sentence("The mail waits for its first attempt.", "メールは最初の送信を待っています。"),
    State.DEFERRED: Sentence(
        "The mail has not arrived yet; it is tried again by itself.",
        "メールはまだ届いていません。自動的に再送されます。",
    ),
    State.UNCERTAIN: Sentence(
        "The mail was handed over, but no answer came: it may have arrived. Ask the customer.",
        "メールは送信しましたが応答がなく、届いているか確認できません。お客様にご確認ください。",
    ),
    State.HELD: Sentence(
        "An operator holds the mail back; it goes out when it is released.",
        "メールは管理者により保留されています。解除されると送信されます。",
    ),
    State.DELETED: Sentence(
        "An operator deleted the mail; it was not sent.", "メールは管理者により削除され、送信されていません。"
    ),
    State.SUPPRESSED: Sentence(
        "The mail was not sent, because the address is blocked after earlier failures or by an operator.",
        "以前の配信失敗または管理者の設定により宛先がブロックされているため、メールは送信されていません。",
    ),
}
_BY_HAND = Sentence("An operator ended the delivery of the mail.", "メールの配信は管理者により中止されました。")
_TAKEN = Sentence(
    "The receiving side accepted the mail, and nothing came back since. If the customer does not see it, have them "
    "look in the spam folder.",
    "メールは相手側に受け付けられ、その後エラーは返ってきていません。見当たらない場合は迷惑メールフォルダーをご確認ください。",
)
_BLOCKED_BY_HAND = Sentence("An operator blocked the address.", "宛先は管理者によりブロックされました。")
_CONFIRMED = Sentence(
    "The recipient's system confirmed that it delivered the mail. If the customer does not see it, have them look in "
    "the spam folder.",
    "相手側のシステムから配信完了の通知がありました。見当たらない場合は迷惑メールフォルダーをご確認ください。",
)
_PASSED_ON = Sentence(
    "The receiving side passed the mail on to a system that reports no success, and nothing came back since.",
    "メールは配信完了を通知しない別のシステムへ転送され、その後エラーは返ってきていません。",
)
_LATE = Sentence(
    "A system on the way reported a delay; it goes on trying.",
    "途中のサーバーで遅延しており、再試行が続けられています。",
)
_UNTOLD = frozenset(
    {EventKind.ACCEPTED, EventKind.DELAYED, EventKind.RETRIED, EventKind.MOVED, EventKind.NOTED, EventKind.CONFIRMED}
)
"""Events that say nothing about why."""


def facts_of(cls: str) -> ClassFacts | None:
    """The facts of a class id; None where it is none."""
    return CLASSES[ReplyClass(cls)] if cls in CLASSES else None


def tell(state: State, events: Sequence[Event]) -> Told:
    """What became of a recipient, from its events in the order in which they were written."""
    telling = [event for event in events if event.kind not in _UNTOLD]
    last = telling[-1] if telling else None
    at = last.at if last else events[-1].at if events else 0
    cls = str(last.detail.get("class") or "") if last else ""
    reply = str(last.detail.get("reply") or "") if last else ""
    sentences: list[Sentence] = []
    if state is State.DELIVERED:
        cls, said = _after_delivery(events)
        sentences += said
    elif state is State.BOUNCED and last is not None and "by" in last.detail:
        sentences.append(_BY_HAND)
    else:
        if state in _STATES:
            sentences.append(_STATES[state])
        if state is State.SUPPRESSED and facts_of(cls) is None:
            sentences.append(_BLOCKED_BY_HAND)
        if state is not State.UNCERTAIN:
            # why no answer came says nothing about the address, and "try again" would be wrong
            sentences += _of_class(cls)
        if state is State.EXPIRED:
            # that time is up is only half of the answer
            before = next((e for e in reversed(telling) if e.kind is EventKind.DEFERRED), None)
            sentences += _of_class(str(before.detail.get("class") or "") if before else "")
    return Told(at, cls, tuple(dict.fromkeys(sentences)), reply)


def _after_delivery(events: Sequence[Event]) -> tuple[str, list[Sentence]]:
    """Accepted by the other side: and then?"""
    kinds = {event.kind: event for event in events}
    for kind in (EventKind.COMPLAINED, EventKind.REPLIED):
        if kind in kinds:
            cls = str(kinds[kind].detail.get("class") or "")
            return cls, _of_class(cls)
    confirmed, late = kinds.get(EventKind.CONFIRMED), kinds.get(EventKind.POSTPONED)
    if confirmed is not None and (late is None or events.index(late) < events.index(confirmed)):
        passed_on = confirmed.detail.get("action") == Action.RELAYED.value
        return ReplyClass.DELIVERED.value, [_PASSED_ON if passed_on else _CONFIRMED]
    if late is not None:
        cls = str(late.detail.get("class") or "")
        return cls, [_LATE, *_of_class(cls)]
    return ReplyClass.DELIVERED.value, [_TAKEN]


def _of_class(cls: str) -> list[Sentence]:
    facts = facts_of(cls)
    return [] if facts is None else [Sentence(facts.sentence_en, facts.sentence_ja)]
