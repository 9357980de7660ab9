"""Rules about replies by which a provider says "too much", "not now" or "not you": how they are written, what they fit.

Pure. What is done about such a reply is delivery/writing.py's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from relayd.core.lifecycle import Outcome, OutcomeKind, Stage
from relayd.core.phrases import parse, plain
from relayd.core.units import Millis

_HEAD = re.compile(r"(?:([45][0-9x]{2})(?![^ ]))? ?(?:([45]\.(?:\d{1,3}|x)\.(?:\d{1,3}|x))(?![^ ]))? ?(.*)", re.DOTALL)
_WORDS = re.compile(r"[^\W_]+(?:'[^\W_]+)?(?:-|(?:\|[^\W_]+-?)*\??)|\*")
_OPENING = frozenset({Stage.CONNECT, Stage.TLS, Stage.EHLO, Stage.AUTH})
LONGEST = 200


class ThrottleAction(StrEnum):
    """What to do about a reply."""

    PAUSE = "pause"
    """Nothing goes out by this upstream (or account) for so long; then one message probes."""
    SLOW = "slow"
    """The mail is tried again as usual; half as many connections, and no more for so long."""
    DEFER = "defer"
    """The mail is not tried again before that time; others go on."""
    NEXT = "next-upstream"
    """The mail goes by the next upstream that its route names."""


@dataclass(frozen=True, slots=True)
class ThrottleRule:
    """One rule. A reply fits where code, enhanced code and words all do, as far as they are given."""

    action: ThrottleAction
    duration: Millis
    code: re.Pattern[str]
    enhanced: re.Pattern[str] | None
    words: re.Pattern[str] | None

    def fits(self, outcome: Outcome) -> bool:
        """Is it about this reply?"""
        reply = outcome.reply
        return (
            self.code.fullmatch(str(reply.code)) is not None
            and (self.enhanced is None or self.enhanced.fullmatch(reply.enhanced) is not None)
            and (self.words is None or self.words.search(plain(reply.text)) is not None)
        )


def throttle_rule(match: str, action: ThrottleAction, duration: Millis) -> ThrottleRule:
    """A rule as it is written: `452 too many`, `550 5.7.x account|tenant suspended`, `throttl-`.

    A code (x for any digit), an enhanced code (x for any number), words as in core/phrases.py: each may be missing.
    Every pattern takes linear time. Raises ValueError, saying what is wrong.
    """
    text = " ".join(match.split())
    if not text or len(text) > LONGEST:
        raise ValueError(f"{'is empty' if not text else f'is longer than {LONGEST} characters'}")
    head = _HEAD.fullmatch(text)
    code, enhanced, words = head.groups() if head is not None else (None, None, text)
    for word in words.split():
        if not _WORDS.fullmatch(word):
            raise ValueError(f"{word!r} is no word to look for")
    if words and not words.replace("*", "").strip():
        raise ValueError("there is no word to look for")
    if code and enhanced and code[0] != enhanced[0]:
        raise ValueError(f"no reply has the code {code} with {enhanced}")
    return ThrottleRule(
        action,
        duration,
        re.compile(code.replace("x", "[0-9]") if code else "[45][0-9]{2}"),
        re.compile(re.escape(enhanced).replace("x", "[0-9]{1,3}")) if enhanced else None,
        re.compile(parse(words.lower()).pattern()) if words else None,
    )


def ruled(rules: Sequence[ThrottleRule], outcome: Outcome) -> tuple[Outcome, ThrottleRule | None]:
    """What an outcome is by the first rule that fits it; a mail that may have arrived is no rule's business."""
    if outcome.kind in (OutcomeKind.DELIVERED, OutcomeKind.UNCERTAIN) or outcome.stage is Stage.LOCAL:
        return outcome, None
    for rule in rules:
        if rule.fits(outcome):
            return _by(rule, outcome), rule
    return outcome, None


def _by(rule: ThrottleRule, outcome: Outcome) -> Outcome:
    retry_after: Millis = 0
    kind = OutcomeKind.DEFERRED
    if rule.action is ThrottleAction.PAUSE or outcome.stage in _OPENING:
        # without a session nothing can go on: what cannot be opened pauses
        kind = OutcomeKind.TROUBLE
    elif rule.action is ThrottleAction.DEFER:
        retry_after = rule.duration
    return Outcome(kind, outcome.stage, outcome.reply, outcome.cls, retry_after)
